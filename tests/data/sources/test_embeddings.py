"""Embedding files in every form: what is written comes back, arrays stay on disk, and misfits are named."""

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet as pq
from safetensors.torch import save_file

from data.embeddings import EmbeddingSet, read_embeddings, write_embeddings
from data.sources.arrays import read_matrix, write_named_arrays
from utils import extras
from utils.errors import UserError
from utils.files import write_arrays

N, D = 6, 3
ROWS = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
IDS = np.array(["b1", "a", "c-77", "ü", "x", "y"])
LABELS = np.arange(N) % 3


def lists(rows: Sequence[Any] | np.ndarray, kind: Any = None) -> Any:
    return pa.array(list(rows), kind or pa.list_(pa.float32()))


def same(one: EmbeddingSet, other: EmbeddingSet) -> bool:
    """Whether both hold the same values, and tensors of the same types."""
    pairs = [*zip(vars(one).values(), vars(other).values(), strict=True)]
    types = [(a.dtype, b.dtype) for a, b in pairs if isinstance(a, torch.Tensor) and b is not None]
    return all(np.array_equal(a, b) for a, b in pairs) and all(a == b for a, b in types)


@pytest.mark.parametrize("name", ["e", "e.npz", "e.parquet", "e.safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("sigma", [torch.randn(N), torch.randn(N, 1), torch.randn(N, D), None])
def test_what_is_written_comes_back(tmp_path: Path, name: str, dtype: torch.dtype, sigma: torch.Tensor | None) -> None:
    ids = np.arange(N, dtype=np.uint64) + np.uint64(2**63) if name == "e.safetensors" else IDS
    embeddings = torch.from_numpy(ROWS).to(dtype)
    whole = EmbeddingSet(embeddings, ids, torch.from_numpy(LABELS), sigma)
    for folder, items in (("whole", whole), ("bare", EmbeddingSet(embeddings))):
        write_embeddings(tmp_path / folder / name, items)
        assert same(read_embeddings(tmp_path / folder / name, where="w"), items)
        assert [path.name for path in (tmp_path / folder).iterdir()] == [name]


def test_a_folder_is_mapped_and_never_written_to(tmp_path: Path) -> None:
    write_arrays(tmp_path / "e", {"embeddings": ROWS})
    with (tmp_path / "e" / "embeddings.npy").open("r+b") as file:
        items = read_embeddings(tmp_path / "e", where="w")
        file.seek(-4, 2)
        file.write(np.float32(99).tobytes())
    assert items.embeddings[-1, -1] == 99  # read from the file when it is looked at, not before
    items.embeddings.fill_(0)
    assert np.array_equal(np.load(tmp_path / "e" / "embeddings.npy")[:-1], ROWS[:-1])


@pytest.mark.parametrize("name", ["e", "e.npz"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": np.zeros(N, np.float32)}, r"should be \(n, d\) floating point, got \(6,\) float32"),
        ({"embeddings": np.zeros((N, D), np.int64)}, r"should be \(n, d\) floating point, got \(6, 3\) int64"),
        ({"embeddings": np.zeros((0, D), np.float32)}, r"is empty, its embeddings are \(0, 3\)"),
        ({"ids": np.array([7, 8, 7, 9, 9, 1])}, "2 ids occur more than once, the first is 7"),
        ({"ids": np.array(list("bacadf"))}, "1 ids occur more than once, the first is a"),
        ({"ids": np.arange(N) / 2}, r"ids should be \(n,\) whole numbers or texts \(ids.astype\(str\)\), .* float64"),
        ({"ids": IDS.astype(object)}, r"its array holds Python objects; save texts with \.astype\(str\)"),
        ({"ids": np.arange(4)}, r"ids is \(4,\), embeddings \(6, 3\)"),
        ({"labels": np.int64(3)}, r"labels is \(\), embeddings \(6, 3\)"),
        ({"labels": np.zeros((N, 1), np.int64)}, r"labels should be \(n,\) whole numbers, got \(6, 1\) int64"),
        ({"labels": np.full(N, 2**63, np.uint64)}, r"labels: 9223372036854775808 is beyond 2\^63 - 1"),
        ({"labels": np.zeros(N)}, r"labels should be \(n,\) whole numbers, got \(6,\) float64"),
        ({"sigma": np.zeros(N, np.int64)}, "sigma should be .* floating point"),
        ({"sigma": np.zeros((N, D, 2), np.float32)}, r"sigma should be \(n,\) or \(n, d\)"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    write_arrays(tmp_path / name, {"embeddings": ROWS, **changes})
    with pytest.raises(UserError, match=f"gallery: .*{name}.*{message}"):
        read_embeddings(tmp_path / name, where="gallery")


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_embeddings(tmp_path / "e", EmbeddingSet(torch.from_numpy(ROWS)))
    assert [*tmp_path.rglob("*")] == [tmp_path / "e"]


def test_texts_and_tensors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"e\.safetensors: its ids are texts, which \.safetensors cannot hold"):
        write_named_arrays(tmp_path / "e.safetensors", {"ids": IDS})
    assert not list(tmp_path.iterdir())
    rows = torch.from_numpy(ROWS).bfloat16()
    torch.save({"embeddings": rows, "ids": IDS.tolist(), "other": 3}, tmp_path / "e.pt")
    assert same(read_embeddings(tmp_path / "e.pt", where="w"), EmbeddingSet(rows.float(), IDS))
    save_file({"embeddings": rows}, tmp_path / "e.safetensors")
    assert same(read_embeddings(tmp_path / "e.safetensors", where="w"), EmbeddingSet(rows.float()))


@pytest.mark.parametrize(
    "column",
    [
        lists(ROWS),
        lists(ROWS, pa.large_list(pa.float32())),
        lists(ROWS, pa.list_(pa.float32(), D)),
        pa.FixedShapeTensorArray.from_numpy_ndarray(ROWS),
        lists(np.concatenate([ROWS, ROWS])).slice(N),
    ],
)
def test_columns_as_tables_have_them(tmp_path: Path, column: Any) -> None:
    table = {"id": pa.array(IDS.tolist()).dictionary_encode(), "embedding": column, "url": ["u"] * N}
    table |= {"label": pa.array(LABELS, pa.int8()), "sigma": pa.array(LABELS / 2)}
    pq.write_table(pa.table(table), tmp_path / "e.parquet", row_group_size=4)
    labels = torch.from_numpy(LABELS)
    expected = EmbeddingSet(torch.from_numpy(ROWS), IDS, labels, labels.float() / 2)
    assert same(read_embeddings(tmp_path / "e.parquet", where="w"), expected)


@pytest.mark.parametrize("kind", [pa.binary(16), pa.uuid()])
def test_uuids_are_their_texts(tmp_path: Path, kind: Any) -> None:
    uuids = [uuid.uuid5(uuid.NAMESPACE_URL, str(i)) for i in range(N)]
    ids = pa.array([one.bytes for one in uuids], pa.binary(16)).cast(kind)
    pq.write_table(pa.table({"ids": ids, "embeddings": lists(ROWS)}), tmp_path / "e.parquet", row_group_size=4)
    expected = EmbeddingSet(torch.from_numpy(ROWS), np.array([str(one) for one in uuids]))
    assert same(read_embeddings(tmp_path / "e.parquet", where="w"), expected)


def write_shards(folder: Path, parts: dict[str, slice]) -> None:
    folder.mkdir()
    for name, rows in parts.items():
        pq.write_table(pa.table({"embeddings": lists(ROWS[rows]), "ids": IDS[rows]}), folder / name)


def test_shards_are_taken_by_their_numbers_and_may_be_empty(tmp_path: Path) -> None:
    """The empty one is of no type, as a table without rows is."""
    write_shards(tmp_path / "e", {"p-2.parquet": slice(0, 3), "p-10.parquet": slice(3, 5), "p-11.parquet": slice(5, 6)})
    pq.write_table(pa.table({"embeddings": pa.nulls(0), "more": pa.nulls(0)}), tmp_path / "e" / "p-1.parquet")
    (tmp_path / "e" / "_SUCCESS").write_text("")
    (tmp_path / "e" / "._p-3.parquet").write_text("a copy's metadata")
    assert same(read_embeddings(tmp_path / "e", where="w"), EmbeddingSet(torch.from_numpy(ROWS), IDS))
    write_shards(tmp_path / "none", {"p-1.parquet": slice(0, 0), "p-2.parquet": slice(0, 0)})
    with pytest.raises(UserError, match=r"w: .*none is empty"):
        read_embeddings(tmp_path / "none", where="w")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"embeddings": lists([*ROWS[1:], ROWS[0, :2]])}, "`embeddings`: its lists are of different lengths, 3 and 2"),
        ({"embeddings": lists([*ROWS[1:], None])}, r"`embeddings`: 1 of its values are missing \(null\)"),
        ({"embeddings": lists(ROWS), "ids": [None, *IDS[1:]]}, r"`ids`: 1 of its values are missing"),
        ({"embeddings": lists(ROWS), "ids": [True] * N}, "`ids`: is of bool, neither numbers nor texts"),
        ({"embeddings": lists(ROWS), "embedding": lists(ROWS)}, "has both embeddings and embedding"),
        ({"vector": lists(ROWS)}, "has no array `embeddings`"),
    ],
)
def test_columns_that_do_not_do(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    with pytest.raises(UserError, match=f"gallery: .*e.parquet.*{message}"):
        read_embeddings(tmp_path / "e.parquet", where="gallery")


def test_shards_that_do_not_go_together(tmp_path: Path) -> None:
    write_shards(tmp_path / "e", {"a.parquet": slice(0, 3)})
    pq.write_table(pa.table({"embeddings": lists(ROWS[3:])}), tmp_path / "e" / "b.parquet")
    with pytest.raises(UserError, match=r"b.parquet and a.parquet: one has ids, the other has none"):
        read_embeddings(tmp_path / "e", where="w")
    pq.write_table(pa.table({"embeddings": lists(ROWS[3:, :2]), "ids": IDS[3:]}), tmp_path / "e" / "b.parquet")
    with pytest.raises(UserError, match=r"b.parquet and a.parquet: embeddings are \(3, 2\) float32 and \(3, 3\)"):
        read_embeddings(tmp_path / "e", where="w")


WRITERS: dict[str, Callable[[Path, np.ndarray], None]] = {
    "npy": lambda path, array: np.save(path, array),
    "npz": lambda path, array: np.savez(path, classifier=array),
    "pt": lambda path, array: torch.save(torch.from_numpy(array), path),
    "pth": lambda path, array: torch.save({"classifier": torch.from_numpy(array)}, path),
    "safetensors": lambda path, array: save_file({"classifier": torch.from_numpy(array)}, path),
    "parquet": lambda path, array: pq.write_table(pa.table({"classifier": lists(array)}), path),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_matrix_from_every_form(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    WRITERS[suffix](path, ROWS)
    matrix = read_matrix(path, "classifier", where="w", dim=D)
    assert matrix.dtype == torch.float32
    assert np.array_equal(matrix, ROWS)
    with pytest.raises(UserError, match=rf"w: .*w\.{suffix}: should be \(classes, 4\) floating point, got \(6, 3\)"):
        read_matrix(path, "classifier", where="w", dim=4)
    if suffix not in ("npy", "pt"):
        with pytest.raises(UserError, match=rf"w: .*w\.{suffix} has no array `class_means`"):
            read_matrix(path, "class_means", where="w")


def test_what_is_no_embedding_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"w: there is no {tmp_path}/none\.npz"):
        read_embeddings(tmp_path / "none.npz", where="w")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder has no array `embeddings`"):
        read_embeddings(tmp_path / "folder", where="w")
    write_arrays(tmp_path / "whole.npz", {"embeddings": ROWS})
    whole = (tmp_path / "whole.npz").read_bytes()
    contents = {"cut.npz": whole[: len(whole) // 2], "empty.npz": b"", "folder/embeddings.npy": b""}
    contents |= {f"text.{suffix}": b"PAR1" + b"x" * 99 for suffix in ("npz", "parquet", "safetensors", "pt", "npy")}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"w: {tmp_path / name} cannot be read: "):
            read_embeddings((tmp_path / name).parent if "/" in name else tmp_path / name, where="w")
    (tmp_path / "e.h5").write_bytes(b"x")
    with pytest.raises(UserError, match=r"w: .*e\.h5 should be \.npy, \.npz, \.parquet, .* or a Lance table"):
        read_embeddings(tmp_path / "e.h5", where="w")


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS["parquet"](tmp_path / "e.parquet", ROWS)
    monkeypatch.setattr(extras.importlib, "import_module", mock.Mock(side_effect=ModuleNotFoundError("pyarrow")))
    with pytest.raises(UserError, match=r"w: .*e\.parquet: needs pyarrow, .*: pip install pyarrow$"):
        read_embeddings(tmp_path / "e.parquet", where="w")
