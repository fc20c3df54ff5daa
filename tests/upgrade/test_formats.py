"""Parquet, safetensors and `.pt` as galleries, side-information and batches: what they hold is what `.npz` holds."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.upgrade.conftest import IDS, Case, N, write_transformation

Write = Callable[..., None]
TEXTS = np.array([f"{'x' * (row % 40)}{row}" for row in range(N)])


def as_torch(path: Any, embeddings: np.ndarray, **arrays: np.ndarray) -> None:
    others = {name: torch.from_numpy(a) if a.dtype.kind != "U" else a.tolist() for name, a in arrays.items()}
    torch.save({"embeddings": torch.from_numpy(embeddings), **others}, path)


def as_safetensors(path: Any, embeddings: np.ndarray, **arrays: np.ndarray) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.save_file({"unrelated": np.zeros(3, np.uint8), "embeddings": embeddings, **contiguous}, path)


def as_parquet(path: Any, embeddings: np.ndarray, *, fixed: bool = False, **arrays: np.ndarray) -> None:
    """In row groups of 64 rows, on whose borders nothing else ends."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    flat = pyarrow.array(embeddings.reshape(-1))
    width = embeddings.shape[1]
    ends = pyarrow.array(np.arange(0, embeddings.size + 1, width), pyarrow.int32())
    lists = pyarrow.FixedSizeListArray.from_arrays(flat, width) if fixed else pyarrow.ListArray.from_arrays(ends, flat)
    columns = {name: pyarrow.array(array) for name, array in arrays.items()}
    parquet.write_table(pyarrow.table({"embeddings": lists, **columns}), path, row_group_size=64)


def as_fixed_parquet(path: Any, embeddings: np.ndarray, **arrays: np.ndarray) -> None:
    as_parquet(path, embeddings, fixed=True, **arrays)


FORMS = [(".pt", as_torch), (".safetensors", as_safetensors), (".parquet", as_parquet), (".parquet", as_fixed_parquet)]


@pytest.mark.parametrize(("suffix", "write"), FORMS)
def test_every_form_holds_what_npz_holds(case: Case, suffix: str, write: Write) -> None:
    """A gallery with labels, side-information in another order, and a batch."""
    write_transformation(case.folder / "transformation.pt", side_info_dim=3)
    rng = np.random.default_rng(0)
    side, order, labels = rng.normal(size=(N, 3)).astype(np.float32), rng.permutation(N), np.arange(N) % 7
    rows = rng.permutation(N)[:150]
    np.savez(case.folder / "old.npz", embeddings=case.old, ids=IDS, labels=labels)
    np.savez(case.folder / "side.npz", embeddings=side, ids=IDS)
    write(case.folder / f"old{suffix}", case.old, ids=IDS.astype(np.int32), labels=labels)
    write(case.folder / f"side{suffix}", side[order], ids=IDS[order])
    write(case.folder / f"batch{suffix}", case.new[rows], ids=IDS[rows])
    case.write_batch("batch.npz", rows)
    contents = []
    for kind in (".npz", suffix):
        case.run("transform", f"gallery=old{kind}", f"side_info=side{kind}")
        case.run("plan")
        case.run("apply", "--insist", "--batch", f"batch{kind}")
        contents.append(case.content())
        case.run("rollback", "--to", "old", f"gallery=old{kind}", f"side_info=side{kind}")
    assert contents[0] == contents[1]


@pytest.mark.parametrize(("suffix", "write"), [FORMS[0], *FORMS[2:]])
def test_text_ids_in_shards(case: Case, suffix: str, write: Write) -> None:
    (case.folder / "shards").mkdir()
    for number, rows in enumerate([*np.array_split(np.arange(N), 11), np.arange(0)]):
        write(case.folder / f"shards/{number}{suffix}", case.old[rows], ids=TEXTS[rows])
    case.run("transform", "gallery=shards")
    ids = case.content()["id"].to_pylist()
    assert sorted(TEXTS.tolist()) == ids
    case.run("transform", "output=plain")
    place = {text: row for row, text in enumerate(TEXTS.tolist())}
    assert np.array_equal(case.array("embedding", "plain")[[place[text] for text in ids]], case.array("embedding"))


def test_what_is_broken_or_something_else_is_refused(case: Case) -> None:
    as_safetensors(case.folder / "old.safetensors", case.old)
    whole = (case.folder / "old.safetensors").read_bytes()
    for part in (b"", whole[:40], whole[:-8]):
        (case.folder / "old.safetensors").write_bytes(part)
        assert "old.safetensors cannot be read" in case.refuse("transform", "gallery=old.safetensors")
    torch.save({"embeddings": torch.zeros(3, 6, dtype=torch.bfloat16)}, case.folder / "old.pt")
    assert "old.pt cannot be read: " in case.refuse("transform", "gallery=old.pt")
    assert "transformation.pt has no array `embeddings`" in case.refuse("transform", "gallery=transformation.pt")
    (case.folder / "old.h5").write_bytes(b"x")
    assert "old.h5 should be .npy, .npz, .safetensors, .pt, .parquet" in case.refuse("transform", "gallery=old.h5")


def test_a_table_with_gaps_is_refused(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = case.folder / "old.parquet"

    def refused(**columns: Any) -> str:
        parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
        return case.refuse_midway("transform", "gallery=old.parquet")

    rows = [np.ones(6, np.float32).tolist()] * 4
    floats = pyarrow.list_(pyarrow.float32())
    assert "`ids`: 1 of its values are missing" in refused(embeddings=pyarrow.array(rows, floats), ids=[1, 2, None, 3])
    assert "`embeddings`: 1 of its values are missing" in refused(embeddings=pyarrow.array([*rows[:3], None], floats))
    assert "its lists are of different lengths, 5 and 6" in refused(
        embeddings=pyarrow.array([*rows, rows[0][:5], rows[0]], floats)
    )
    assert "row group 1 is 5-d, the first 6-d" in refused(embeddings=pyarrow.array([*rows[:2], rows[0][:5]], floats))
    assert "embeddings should be (n, d) float16 or float32, got (2,) <U1" in refused(embeddings=["a", "b"])
    raw = [b"01234567", b"89abcdef"]
    assert "`ids`: is of fixed_size_binary[8], neither numbers nor texts" in refused(
        embeddings=pyarrow.array(rows[:2], floats), ids=pyarrow.array(raw, pyarrow.binary(8))
    )
    assert "got (2, 6) float64" in refused(embeddings=rows[:2])
    path.write_bytes(path.read_bytes()[:-20])
    assert "old.parquet cannot be read" in case.refuse("transform", "gallery=old.parquet", "output=other")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    error = case.refuse("transform", "gallery=old.parquet", "output=other")
    assert "gallery: old.parquet: needs pyarrow, which is not here: pip install pyarrow" in error
