"""export: the gallery as files and indexes, pairs, and what comes next; and FAISS indexes as galleries."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.embeddings import read_embeddings
from tests.tiny import succeed
from tests.upgrade.conftest import BATCHES, IDS, OLD_DIM, Case, N, make_case, prepared
from tests.upgrade.test_ids import with_texts
from tests.upgrade.test_transform import check, expected
from upgrade.columns import values

faiss = pytest.importorskip("faiss")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("texts", [False, True])
def test_a_file_holds_what_the_table_holds(
    case: Case, suffix: str, texts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written in many parts; and the file is a gallery as the table was one."""
    monkeypatch.setattr("upgrade.table.Table.in_order.__defaults__", (37,))
    if texts:
        with_texts(case)
    else:
        case.write_old(labels=np.arange(N) % 7)
    case.run("transform")
    if not texts:
        case.run("apply", "--batch", case.write_batch("batch.npz", np.arange(0, N, 3)))
    assert f"gallery{suffix}: 500 items, by rising ids" in case.run("export", "--to", f"gallery{suffix}")
    found, content = read_embeddings(case.folder / f"gallery{suffix}", where="x"), case.content()
    assert found.ids is not None
    assert found.ids.tolist() == content["id"].to_pylist()
    assert np.array_equal(found.embeddings.numpy(), values(content["embedding"]))
    assert found.log_variance is not None
    assert np.array_equal(found.log_variance.numpy(), values(content["sigma"]))
    assert (found.labels is None) == texts
    if found.labels is not None:
        assert np.array_equal(found.labels.numpy(), values(content["label"]))


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_a_quantised_file_stands_for_what_the_table_holds(case: Case, precision: str) -> None:
    """By the ranges of what is re-embedded, or by those in a file."""
    case.run("transform")
    quantise = ("export", "--to", "gallery.npz", f"quantise={precision}")
    if precision.endswith("int8"):
        assert "ranges: is missing: no item is re-embedded" in case.refuse(*quantise)
    case.run("apply", "--batch", case.write_batch("batch.npz", np.arange(0, N, 3)))
    case.run(*quantise)
    held = values(case.content()["embedding"]).astype(np.float32)
    content, found = np.load(case.folder / "gallery.npz"), read_embeddings(case.folder / "gallery.npz", where="x")
    assert found.ids is not None
    assert found.ids.tolist() == case.content()["id"].to_pylist()
    if precision.endswith("binary"):
        assert content["embeddings"].dtype == (np.int8 if precision == "binary" else np.uint8)
        assert np.array_equal(found.embeddings.numpy() > 0, held > 0)
        return
    low, high = case.new[::3].min(0), case.new[::3].max(0)
    assert np.array_equal(content["ranges"], [low, high])
    assert (np.abs(found.embeddings.numpy() - held.clip(low, high)) <= 1.01 * (high - low) / 255).all()
    np.save(case.folder / "ranges.npy", np.stack([low - 9, high + 9]))
    case.run(*quantise, "ranges=ranges.npy")
    wide = read_embeddings(case.folder / "gallery.npz", where="x").embeddings.numpy()
    assert (np.abs(wide - held) <= 1.01 * (high - low + 18) / 255).all()
    np.save(case.folder / "ranges.npy", np.stack([high, low]))
    assert "ranges.npy: should be (2, 5), the least values" in case.refuse(*quantise, "ranges=ranges.npy")
    assert "quantise: is for .npz" in case.refuse("export", "--to", "g.parquet", f"quantise={precision}")


def read_index(case: Case, name: str = "gallery.faiss") -> Any:
    """An index that has each id once."""
    index = faiss.read_index(str(case.folder / name))
    assert np.array_equal(np.sort(faiss.vector_to_array(index.id_map)), np.sort(IDS))
    return index


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_index_finds_what_the_table_holds(case: Case, dtype: str) -> None:
    case.run("transform", f"dtype={dtype}")
    case.run("apply", f"dtype={dtype}", "--batch", case.write_batch("batch.npz", np.append(np.arange(40), 3)))
    case.run("export", "--to", "gallery.faiss")
    index, embeddings = read_index(case), case.array("embedding").astype(np.float32)
    assert np.array_equal(index.reconstruct_batch(IDS), embeddings)
    query = case.new[:5].astype(np.float32)
    distances = ((query[:, None] - embeddings) ** 2).sum(2)
    assert np.array_equal(index.search(query, 1)[1][:, 0], IDS[distances.argmin(1)])


def test_approximate_indexes_by_a_factory_string(case: Case) -> None:
    case.run("transform")
    case.run("export", "--to", "gallery.faiss", "index=IVF4,SQ8")
    index, embeddings = read_index(case), case.array("embedding").astype(np.float32)
    faiss.extract_index_ivf(index).nprobe = 4
    found = index.search(embeddings, 1)[1][:, 0]
    assert (found == IDS).mean() > 0.9
    assert "index: IVF4,Nonsense is no index factory string" in case.refuse(
        "export", "--to", "x.faiss", "index=IVF4,Nonsense"
    )
    assert "index: IVF600,Flat cannot be trained on 500 rows" in case.refuse(
        "export", "--to", "x.faiss", "index=IVF600,Flat"
    )


def test_of_embeddings_of_length_1_the_index_searches_by_inner_product(tmp_path: Path) -> None:
    case = make_case(tmp_path / "unit", unit=True)
    case.run("transform")
    case.run("export", "--to", "gallery.faiss")
    assert read_index(case).metric_type == faiss.METRIC_INNER_PRODUCT


def test_pairs_fit_a_transformation_that_renews_the_rest(case: Case) -> None:
    case.write_old(labels=np.arange(N) % 7)
    prepared(case)
    assert "no item is re-embedded, so that there are no pairs" in case.refuse("export", "--pairs", "pairs")
    for batch in BATCHES:
        case.run("apply", "--batch", batch)
    case.write_old(labels=np.arange(N) % 7, embeddings=np.append(case.old[:10] + 1, case.old[10:], axis=0))
    output = case.run("export", "--pairs", "pairs.npz")
    old, new = (read_embeddings(case.folder / f"pairs_{role}.npz", where="x") for role in ("old", "new"))
    rows = np.arange(10, 220)  # less those whose old embedding has changed
    assert old.ids is not None
    place = {item: row for row, item in enumerate(IDS.tolist())}
    found = np.array([place[item] for item in old.ids.tolist()])
    assert np.array_equal(np.sort(found), rows)
    assert np.array_equal(old.embeddings.numpy(), case.old[found])
    assert np.array_equal(new.embeddings.numpy(), case.new[found])
    case.write_old(labels=np.arange(N) % 7)
    assert "python fit_embeddings.py" in output
    recipe = ("method=ridge", "inner_dim=null", "normalised=off", "held_out=0.5", "output=second.pt")
    (case.folder / "fit.yaml").write_text("old: pairs_old.npz\nnew: pairs_new.npz\n")
    succeed("fit_embeddings.py", "--config", "fit.yaml", *recipe, cwd=case.folder, processes=None)
    before = case.array("embedding")
    output = case.run("transform", "transformation_path=second.pt")
    assert "220 of them re-embedded as before (no row has changed)" in output
    after, kept = case.array("embedding"), case.array("batch") > 0
    assert np.array_equal(after[kept], before[kept])
    assert not (after[~kept] == before[~kept]).all(1).any()
    case.run("status", "--verify", "transformation_path=second.pt")
    few = case.run("export", "--pairs", "few", "--limit", "50", "transformation_path=second.pt")
    assert 25 < int(few.split(": ")[1].split()[0]) < 80


def test_what_cannot_be_exported(case: Case) -> None:
    case.run("transform")
    assert "to: is missing; name what to write" in case.refuse("export")
    assert "to: gallery.h5 should be .npz, .parquet or .faiss" in case.refuse("export", "--to", "gallery.h5")
    texts = with_texts(make_case(case.folder / "texts"))
    texts.run("transform")
    assert "FAISS takes whole numbers alone" in texts.refuse("export", "--to", "gallery.faiss")


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
    embeddings, _ = expected(case)
    np.testing.assert_allclose(case.array("embedding"), embeddings, rtol=2e-3, atol=2e-3)


def test_an_index_without_ids_numbers_its_vectors_or_has_ids_beside_it(case: Case) -> None:
    write_index(case, "Flat")
    (case.folder / "old.faiss").rename(case.folder / "old.index")
    case.run("transform", "gallery=old.index")
    check(case, ids=np.arange(N))
    texts = np.arange(N).astype(str)
    np.save(case.folder / "texts.npy", texts)
    case.run("transform", "gallery=old.index", "ids=texts.npy", "output=named")
    assert np.array_equal(case.table("named").all_ids(), np.sort(texts))


def test_an_index_that_cannot_give_its_vectors_back_is_refused(case: Case) -> None:
    write_index(case, "IVF4,PQ3x4fs")
    error = case.refuse("transform", "gallery=old.faiss")
    assert "old.faiss: an index of type IndexIVFPQFastScan cannot give its vectors back" in error
    write_index(case, "Flat")
    (case.folder / "old.faiss").write_bytes((case.folder / "old.faiss").read_bytes()[:-200])
    assert "old.faiss cannot be read as a FAISS index" in case.refuse("transform", "gallery=old.faiss")
