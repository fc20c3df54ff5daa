"""FAISS indexes as a gallery and beside one: they hold what the files hold, whatever happens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.upgrade.conftest import BATCH, IDS, OLD_DIM, Case, N, make_case, make_refittable, prepared
from tests.upgrade.test_kills import run_forked
from tests.upgrade.test_transform import check, expected

faiss = pytest.importorskip("faiss")


def check_index(case: Case) -> Any:
    """The index has each id once, with the embedding that the files have -> the index."""
    index = faiss.read_index(str(case.folder / "upgraded/gallery.faiss"))
    assert np.array_equal(np.sort(faiss.vector_to_array(index.id_map)), np.sort(IDS))
    assert np.array_equal(index.reconstruct_batch(IDS), case.array("embeddings").astype(np.float32))
    return index


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_index_follows_the_files(case: Case, dtype: str) -> None:
    case.run("transform", "faiss=True", f"dtype={dtype}")
    check_index(case)
    case.run("apply", "--batch", case.write_batch("batch.npz", np.append(np.arange(40), 3)))
    query = case.new[:5].astype(np.float32)
    distances = ((query[:, None] - case.array("embeddings").astype(np.float32)) ** 2).sum(2)
    assert np.array_equal(check_index(case).search(query, 1)[1][:, 0], IDS[distances.argmin(1)])
    case.run("rollback")
    check_index(case)


def test_of_embeddings_of_length_1_the_index_searches_by_inner_product(tmp_path: Path) -> None:
    case = make_case(tmp_path / "unit", unit=True)
    case.run("transform", "faiss=True")
    assert check_index(case).metric_type == faiss.METRIC_INNER_PRODUCT


def test_the_index_agrees_with_the_files_after_a_kill(case: Case) -> None:
    case.run("transform", "faiss=True")
    case.write_batch("batch.npz", np.arange(100))
    for step in (("apply", "--batch", "batch.npz"), ("rollback",)):
        for moment in (400, 900, 1100):
            run_forked(case, *step, moment=moment)
            case.run("status", "--verify")
            check_index(case)
        case.run(*step)
        check_index(case)


def test_the_index_follows_a_refit(tmp_path: Path) -> None:
    case = prepared(make_refittable(tmp_path), "faiss=True")
    case.run(*BATCH)
    assert "refit: with" in case.run("refit")
    check_index(case)
    case.run("rollback")
    check_index(case)


def write_index(case: Case, kind: str, ids: np.ndarray | None = None) -> None:
    """Write the old embeddings as an index `old.faiss` of a kind of FAISS's index_factory."""
    index = faiss.index_factory(OLD_DIM, kind)
    index.train(case.old)
    if ids is None:
        index.add(case.old)
    else:
        index.add_with_ids(case.old, ids)
    faiss.write_index(index, str(case.folder / "old.faiss"))


@pytest.mark.parametrize("kind", ["IDMap2,Flat", "IVF4,Flat", "IDMap,HNSW8"])
def test_an_index_is_a_gallery(case: Case, kind: str) -> None:
    write_index(case, kind, IDS)
    case.run("transform", "gallery=old.faiss")
    order = np.argsort(case.array("ids"))
    assert np.array_equal(case.array("ids")[order], np.sort(IDS))
    embeddings, _ = expected(case)
    np.testing.assert_allclose(case.array("embeddings")[order], embeddings[np.argsort(IDS)], rtol=2e-3, atol=2e-3)


def test_an_index_without_ids_numbers_its_vectors_or_has_ids_beside_it(case: Case) -> None:
    write_index(case, "Flat")
    (case.folder / "old.faiss").rename(case.folder / "old.index")
    case.run("transform", "gallery=old.index")
    check(case, ids=np.arange(N))
    texts = np.arange(N).astype(str)
    np.save(case.folder / "texts.npy", texts)
    case.run("transform", "gallery=old.index", "ids=texts.npy", "output=named")
    assert np.array_equal(np.load(case.folder / "named/ids.npy"), texts)


def test_an_index_that_cannot_give_its_vectors_back_is_refused(case: Case) -> None:
    write_index(case, "IVF4,PQ3x4fs")
    error = case.refuse("transform", "gallery=old.faiss")
    assert "old.faiss: an index of type IndexIVFPQFastScan cannot give its vectors back" in error
    write_index(case, "Flat")
    (case.folder / "old.faiss").write_bytes((case.folder / "old.faiss").read_bytes()[:-200])
    assert "old.faiss cannot be read as a FAISS index" in case.refuse("transform", "gallery=old.faiss")
