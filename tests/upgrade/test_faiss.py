"""FAISS indexes as a gallery and beside one: they hold what the files hold, whatever happens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.upgrade.conftest import IDS, OLD_DIM, Case, N, make_case
from tests.upgrade.test_kills import run_forked
from tests.upgrade.test_transform import check

faiss = pytest.importorskip("faiss")


def check_index(case: Case) -> None:
    """The index has each id once, with the embedding that the files have."""
    index = faiss.read_index(str(case.folder / "upgraded/gallery.faiss"))
    assert np.array_equal(np.sort(faiss.vector_to_array(index.id_map)), np.sort(IDS))
    assert np.array_equal(index.reconstruct_batch(IDS), case.array("embeddings").astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_index_follows_the_files(case: Case, dtype: str) -> None:
    case.run("transform", "faiss=True", f"dtype={dtype}")
    check_index(case)
    case.run("apply", "--batch", case.write_batch("batch.npz", np.append(np.arange(40), 3)))
    check_index(case)
    index = faiss.read_index(str(case.folder / "upgraded/gallery.faiss"))
    query = case.new[:5].astype(np.float32)
    distances = ((query[:, None] - case.array("embeddings").astype(np.float32)) ** 2).sum(2)
    assert np.array_equal(index.search(query, 1)[1][:, 0], IDS[distances.argmin(1)])
    case.run("rollback")
    check_index(case)


def test_of_embeddings_of_length_1_the_index_searches_by_inner_product(tmp_path: Path) -> None:
    case = make_case(tmp_path / "unit", unit=True)
    case.run("transform", "faiss=True")
    index = faiss.read_index(str(case.folder / "upgraded/gallery.faiss"))
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT


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


def added(index: Any, vectors: np.ndarray) -> Any:
    index.train(vectors)
    index.add_with_ids(vectors, IDS)
    return index


@pytest.mark.parametrize(
    "build",
    [
        lambda: faiss.IndexIDMap2(faiss.IndexFlatL2(OLD_DIM)),
        lambda: faiss.index_factory(OLD_DIM, "IVF4,Flat"),
        lambda: faiss.index_factory(OLD_DIM, "IDMap,HNSW8"),
    ],
    ids=["flat", "ivf", "hnsw"],
)
def test_an_index_is_a_gallery(case: Case, build: Callable[[], Any]) -> None:
    index = added(build(), case.old)
    faiss.write_index(index, str(case.folder / "old.faiss"))
    case.run("transform", "gallery=old.faiss")
    order = np.argsort(case.array("ids"))
    assert np.array_equal(case.array("ids")[order], np.sort(IDS))
    reference = make_case(case.folder / "reference")
    reference.run("transform")
    expected = reference.array("embeddings")[np.argsort(IDS)]
    np.testing.assert_allclose(case.array("embeddings")[order], expected, rtol=2e-3, atol=2e-3)


def test_an_index_without_ids_numbers_its_vectors(case: Case) -> None:
    index = faiss.IndexFlatL2(OLD_DIM)
    index.add(case.old)
    faiss.write_index(index, str(case.folder / "old.index"))
    case.run("transform", "gallery=old.index")
    check(case, ids=np.arange(N))


def test_an_index_that_cannot_give_its_vectors_back_is_refused(case: Case) -> None:
    index = faiss.index_factory(OLD_DIM, "IVF4,PQ3x4fs")
    index.train(case.old)
    index.add(case.old)
    faiss.write_index(index, str(case.folder / "old.faiss"))
    assert "old.faiss: an index of type IndexIVFPQFastScan cannot give its vectors back" in case.refuse(
        "transform", "gallery=old.faiss"
    )
    index = faiss.IndexFlatL2(OLD_DIM)
    index.add(case.old)
    faiss.write_index(index, str(case.folder / "old.faiss"))
    (case.folder / "old.faiss").write_bytes((case.folder / "old.faiss").read_bytes()[:-200])
    assert "old.faiss cannot be read as a FAISS index" in case.refuse("transform", "gallery=old.faiss")
