"""Every form holds what was written, as a whole, in parts and by rows; and what is broken is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import faiss
import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet as pq
from safetensors.numpy import save_file

from data.embeddings import read_embeddings
from data.sources import parquet_files
from data.sources.embeddings import open_embeddings, open_source
from data.sources.rows import parts_of
from utils.errors import UserError

N, D = 150, 6
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(N, D)).astype(np.float32)
IDS = RNG.permutation(10 * N)[:N] - N
TEXTS = np.array([f"{'x' * (row % 40)}{row}" for row in range(N)])
LABELS = np.arange(N) % 7
Write = Callable[..., None]


def as_npz(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


def as_compressed(path: Path, **arrays: np.ndarray) -> None:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def in_columns(path: Path, **arrays: np.ndarray) -> None:
    as_npz(path, **{name: np.asfortranarray(array) for name, array in arrays.items()})


def as_torch(path: Path, *, legacy: bool = False, **arrays: np.ndarray) -> None:
    content = {name: torch.from_numpy(a) if a.dtype.kind != "U" else a.tolist() for name, a in arrays.items()}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def as_old_torch(path: Path, **arrays: np.ndarray) -> None:
    as_torch(path, legacy=True, **arrays)


def as_safetensors(path: Path, **arrays: np.ndarray) -> None:
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file({"unrelated": np.zeros(3, np.uint8), **contiguous}, path)


def columns(arrays: dict[str, np.ndarray], *, fixed: bool = False) -> pa.Table:
    embeddings = arrays["embeddings"]
    flat, width = pa.array(embeddings.reshape(-1)), embeddings.shape[1]
    ends = pa.array(np.arange(0, embeddings.size + 1, width), pa.int32())
    lists = pa.FixedSizeListArray.from_arrays(flat, width) if fixed else pa.ListArray.from_arrays(ends, flat)
    return pa.table({name: lists if name == "embeddings" else pa.array(array) for name, array in arrays.items()})


def as_parquet(path: Path, **arrays: np.ndarray) -> None:
    """In row groups, on whose borders nothing else ends."""
    pq.write_table(columns(arrays), path, row_group_size=32)


def as_lance(path: Path, **arrays: np.ndarray) -> None:
    lance.write_dataset(columns(arrays, fixed=True), str(path), max_rows_per_file=64)


def as_index(path: Path, embeddings: np.ndarray, ids: np.ndarray, labels: np.ndarray | None = None) -> None:
    index = faiss.index_factory(embeddings.shape[1], "IDMap2,Flat")
    index.add_with_ids(embeddings, ids)
    faiss.write_index(index, str(path))


def as_folder(path: Path, **arrays: np.ndarray) -> None:
    path.mkdir()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)


FORMS: dict[str, Write] = {
    "e.npz": as_npz,
    "compressed.npz": as_compressed,
    "columns.npz": in_columns,
    "e": as_folder,
    "e.pt": as_torch,
    "e.pth": as_old_torch,
    "e.safetensors": as_safetensors,
    "e.parquet": as_parquet,
    "e.lance": as_lance,
    "e.faiss": as_index,
}
NO_TEXTS = ("e.safetensors", "e.faiss")


def check(path: Path, ids: np.ndarray, rows: np.ndarray, labels: np.ndarray | None) -> None:
    """Whatever way it is read; labels are compared where the form has them."""
    source, items = open_source(path, where="w"), read_embeddings(path, where="w")
    index = np.array([len(rows) - 1, 0, 3, 3, len(rows) // 2])
    for expected, found, read in (
        (rows, source.vectors, items.embeddings.numpy()),
        (ids, source.ids, items.ids),
        (labels, source.labels, None if items.labels is None else items.labels.numpy()),
    ):
        if expected is None:
            continue
        assert found is not None
        assert read is not None
        assert np.array_equal(np.concatenate([found.read(*part) for part in parts_of(len(rows), 37)]), expected)
        assert np.array_equal(found.take(index), expected[index])
        assert np.array_equal(read, expected)
        assert expected.dtype.kind == "U" or found.dtype == read.dtype == expected.dtype


@pytest.mark.parametrize(
    ("name", "ids", "dtype"),
    [
        *((name, IDS, np.float32) for name in FORMS),
        *((name, IDS, np.float16) for name in FORMS if name != "e.faiss"),
        *((name, TEXTS, np.float32) for name in FORMS if name not in NO_TEXTS),
    ],
)
def test_every_form_is_read_in_every_way(tmp_path: Path, name: str, ids: np.ndarray, dtype: Any) -> None:
    FORMS[name](tmp_path / name, embeddings=ROWS.astype(dtype), ids=ids, labels=LABELS)
    check(tmp_path / name, ids, ROWS.astype(dtype), None if name == "e.faiss" else LABELS)


@pytest.mark.parametrize("name", [name for name in FORMS if name not in ("e", "e.lance")])
def test_shards_of_every_form_follow_each_other_by_their_numbers(tmp_path: Path, name: str) -> None:
    """One of them is hidden, one has no rows, and text ids are of another width in each."""
    ids = IDS if name in NO_TEXTS else TEXTS
    for number, rows in enumerate([*np.array_split(np.arange(N), 11), np.arange(0)]):
        arrays = {"embeddings": ROWS[rows], "ids": ids[rows].astype(f"U{50 - number}") if ids is TEXTS else ids[rows]}
        (tmp_path / "e").mkdir(exist_ok=True)
        FORMS[name](tmp_path / "e" / f"{number}{Path(name).suffix.upper()}", **arrays)
    (tmp_path / "e" / f".{name}").write_bytes(b"x")
    check(tmp_path / "e", ids, ROWS, None)


def test_shards_of_one_array_each_and_ids_of_all_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    folder.mkdir()
    for number, rows in enumerate(np.array_split(np.arange(N), 11)):
        np.save(folder / f"part_{number}.npy", ROWS[rows])
    check_alone = open_embeddings(folder, where="w")
    assert check_alone.ids is None
    assert np.array_equal(check_alone.vectors.read(3, 120), ROWS[3:120])
    np.save(folder / "ids.npy", TEXTS)
    check(folder, TEXTS, ROWS, None)
    np.savez(folder / "part_11.npz", embeddings=ROWS)
    with pytest.raises(UserError, match=r"part_11.npz and part_0.npy: one has .*, the other has none"):
        open_embeddings(folder, where="w")
    np.save(folder / "embeddings.npy", ROWS)
    np.save(folder / "embeddings_1.npy", ROWS)
    with pytest.raises(UserError, match=r"has both embeddings.npy and embeddings_1.npy: number all shards, or none"):
        open_embeddings(folder, where="w")


@pytest.mark.parametrize(
    ("write", "dtype"), [(as_npz, np.float64), (as_npz, ">f4"), (as_parquet, np.float64), (as_safetensors, np.float64)]
)
def test_other_floating_point_numbers_are_rounded_to_float32(tmp_path: Path, write: Write, dtype: Any) -> None:
    path = tmp_path / {as_npz: "e.npz", as_parquet: "e.parquet", as_safetensors: "e.safetensors"}[write]
    write(path, embeddings=(ROWS.astype(np.float64) * (1 + 1e-12)).astype(dtype), ids=IDS)
    check(path, IDS, ROWS, None)


def test_a_lone_tensor_and_an_index_that_numbers_its_vectors_have_no_ids(tmp_path: Path) -> None:
    torch.save(torch.from_numpy(ROWS), tmp_path / "e.pt")
    index = faiss.IndexFlatL2(D)
    index.add(ROWS)
    faiss.write_index(index, str(tmp_path / "e.index"))
    np.save(tmp_path / "e.npy", ROWS)
    np.save(tmp_path / "ids.npy", TEXTS)
    for name in ("e.pt", "e.index", "e.npy"):
        items = read_embeddings(tmp_path / name, where="w")
        assert items.ids is None
        assert np.array_equal(items.embeddings, ROWS)
        named = open_source(tmp_path / name, where="w", ids=str(tmp_path / "ids.npy"))
        assert named.ids is not None
        assert np.array_equal(named.ids.read(0, N), TEXTS)
    as_npz(tmp_path / "e.npz", embeddings=ROWS)
    with pytest.raises(UserError, match=r"w: .*e.npz has no array `ids`"):
        open_source(tmp_path / "e.npy", where="w", ids=str(tmp_path / "e.npz"))
    as_npz(tmp_path / "e.npz", embeddings=ROWS, ids=IDS)
    named = open_source(tmp_path / "e.npy", where="w", ids=str(tmp_path / "e.npz"))
    assert named.ids is not None
    assert np.array_equal(named.ids.read(0, N), IDS)
    with pytest.raises(UserError, match=r"w: .*e.npz has ids of its own"):
        open_source(tmp_path / "e.npz", where="w", ids=str(tmp_path / "ids.npy"))


@pytest.mark.parametrize("name", [name for name in FORMS if name not in ("e", "e.lance", "e.faiss")])
def test_what_is_cut_short_is_named(tmp_path: Path, name: str) -> None:
    FORMS[name](tmp_path / name, embeddings=ROWS, ids=IDS)
    content = (tmp_path / name).read_bytes()
    for size in (0, 40, len(content) - 20):
        (tmp_path / name).write_bytes(content[:size])
        with pytest.raises(UserError, match=rf"w: {tmp_path / name} cannot be read: "):
            open_embeddings(tmp_path / name, where="w")


def test_several_vectors_an_item_are_refused(tmp_path: Path) -> None:
    message = "several vectors an item"
    as_npz(tmp_path / "e.npz", embeddings=ROWS.reshape(N // 2, 2, D), ids=IDS[: N // 2])
    nested = pa.list_(pa.list_(pa.float32()))
    for name, counts in (("even", [2, 2]), ("ragged", [2, 3])):
        tokens = [ROWS[:count].tolist() for count in counts]
        pq.write_table(pa.table({"embeddings": pa.array(tokens, nested)}), tmp_path / f"{name}.parquet")
    for name in ("e.npz", "even.parquet", "ragged.parquet"):
        with pytest.raises(UserError, match=f"w: .*{name}.*{message}"):
            read_embeddings(tmp_path / name, where="w")


@pytest.mark.parametrize("held", [0, 2**27])
def test_row_groups_are_read_again_where_there_is_no_room_for_them(
    tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room each is read once, in whatever order rows are asked for; no more are kept than there is room for."""
    monkeypatch.setattr(parquet_files, "HELD_BYTES", held)
    monkeypatch.setattr(parquet_files, "_held", WeakKeyDictionary())
    read, groups_read = parquet_files._Column.read, list[int]()

    def counted(column: Any, groups: Any) -> np.ndarray:
        groups_read.extend(groups)
        return read(column, groups)

    monkeypatch.setattr(parquet_files._Column, "read", counted)
    for number, rows in enumerate(np.array_split(np.arange(N), 3)):
        (tmp_path / "e").mkdir(exist_ok=True)
        as_parquet(tmp_path / "e" / f"{number}.parquet", embeddings=ROWS[rows])
    source = open_embeddings(tmp_path / "e", where="w")
    for _ in range(3):
        order = RNG.permutation(N)
        assert np.array_equal(source.vectors.take(order), ROWS[order])
        assert sum(len(groups) for groups in parquet_files._held.values()) == (1 if held == 0 else 6)
    assert len(groups_read) == (18 if held == 0 else 6)
    del source
    assert not parquet_files._held


def test_a_row_group_that_does_not_fit_is_named_when_it_is_read(tmp_path: Path) -> None:
    floats, rows = pa.list_(pa.float32()), np.ones((4, D), np.float32).tolist()
    for column, message in (
        ([*rows[:3], None], "`embeddings`: 1 of its values are missing"),
        ([*rows[:2], rows[0][:5]], "row group 1 is 5-d, the first 6-d"),
        ([*rows, rows[0][:5], rows[0]], "its lists are of different lengths, 5 and 6"),
    ):
        pq.write_table(pa.table({"embeddings": pa.array(column, floats)}), tmp_path / "e.parquet", row_group_size=2)
        source = open_embeddings(tmp_path / "e.parquet", where="w")
        with pytest.raises(UserError, match=f"w: .*e.parquet: .*{message}"):
            source.vectors.read(0, len(source))
