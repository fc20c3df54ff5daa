"""Embedding files: arrays stay on disk, and misfits are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.embeddings import read_embeddings
from utils.errors import UserError
from utils.files import write_arrays

N, D = 5, 3
ARRAYS: dict[str, np.ndarray] = {
    "embeddings": np.arange(N * D, dtype=np.float32).reshape(N, D),
    "ids": np.array([7, 3, 9, 1, 5]),
    "labels": np.array([0, 1, 0, 2, 1]),
    "sigma": np.linspace(-1, 1, N, dtype=np.float32),
}


def test_a_folder_is_mapped_and_never_written_to(tmp_path: Path) -> None:
    write_arrays(tmp_path / "e", ARRAYS)
    with (tmp_path / "e" / "embeddings.npy").open("r+b") as file:
        items = read_embeddings(tmp_path / "e", where="w")
        file.seek(-4, 2)
        file.write(np.float32(99).tobytes())
    assert items.embeddings[-1, -1] == 99  # read from the file when it is looked at, not before
    items.embeddings.fill_(0)
    assert np.load(tmp_path / "e" / "embeddings.npy")[0, 1] == 1


@pytest.mark.parametrize("name", ["e", "e.npz"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": np.zeros((N, D))}, r"should be \(n, d\) float16 or float32, got \(5, 3\) float64"),
        ({"embeddings": np.zeros(N, np.float32)}, r"should be \(n, d\) float16 or float32, got \(5,\) float32"),
        ({"embeddings": np.zeros((0, D), np.float32)}, r"is empty, its embeddings are \(0, 3\)"),
        ({"ids": np.array([7, 8, 7, 9, 9])}, "2 ids occur more than once, the first is 7"),
        ({"ids": np.array(["b", "a", "c", "a", "d"])}, "1 ids occur more than once, the first is a"),
        ({"ids": np.arange(N) / 2}, r"ids should be \(n,\) whole numbers or texts \(ids.astype\(str\)\), .* float64"),
        ({"ids": np.array(list("nopqr"), object)}, r"ids: an array of Python objects; save it as ids.astype\(str\)"),
        ({"ids": np.arange(4)}, r"ids is \(4,\), embeddings \(5, 3\)"),
        ({"labels": np.int64(3)}, r"labels is \(\), embeddings \(5, 3\)"),
        ({"labels": np.zeros((N, 1), np.int64)}, r"labels should be \(n,\) whole numbers, got \(5, 1\) int64"),
        ({"labels": np.full(N, 2**63, np.uint64)}, "labels go up to 9223372036854775808, beyond int64"),
        ({"labels": np.zeros(N)}, r"labels should be \(n,\) whole numbers, got \(5,\) float64"),
        ({"sigma": np.zeros(N, np.int64)}, "sigma should be .* floating point"),
        ({"sigma": np.zeros((N, D, 2), np.float32)}, r"sigma should be \(n,\) or \(n, d\)"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    write_arrays(tmp_path / name, {**ARRAYS, **changes})
    with pytest.raises(UserError, match=f"gallery: .*{name}.*{message}"):
        read_embeddings(tmp_path / name, where="gallery")


def test_what_is_no_embedding_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"w: there is no embedding file {tmp_path}/none\.npz"):
        read_embeddings(tmp_path / "none.npz", where="w")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder has no array `embeddings`"):
        read_embeddings(tmp_path / "folder", where="w")
    np.save(tmp_path / "single.npy", ARRAYS["embeddings"])
    np.savez(tmp_path / "whole.npz", **ARRAYS)  # type: ignore[arg-type]
    whole = (tmp_path / "whole.npz").read_bytes()
    for name, content in {
        "empty.npz": b"",
        "text.npz": b"hello",
        "cut.npz": whole[: len(whole) // 2],
        "folder/embeddings.npy": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
    for name in ("single.npy", "empty.npz", "text.npz", "cut.npz", "folder"):
        with pytest.raises(UserError, match=f"w: .*{name} is no embedding file"):
            read_embeddings(tmp_path / name, where="w")
