"""Embedding files: what is written comes back, arrays stay on disk, and misfits are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.embeddings import EmbeddingSet, read_embeddings, write_embeddings
from utils.errors import UserError

N, D = 5, 3
ARRAYS = {
    "embeddings": np.arange(N * D, dtype=np.float32).reshape(N, D),
    "ids": np.array([7, 3, 9, 1, 5]),
    "labels": np.array([0, 1, 0, 2, 1]),
    "sigma": np.linspace(-1, 1, N, dtype=np.float32),
}


def write_folder(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    path.mkdir()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    return path


def write_archive(path: Path, arrays: dict[str, Any]) -> Path:
    path = path.with_suffix(".npz")
    np.savez(path, **arrays)
    return path


WRITERS = [write_folder, write_archive]


@pytest.mark.parametrize("sigma", [torch.randn(N), torch.randn(N, 1), torch.randn(N, D), None])
def test_what_is_written_comes_back(tmp_path: Path, sigma: torch.Tensor | None) -> None:
    items = EmbeddingSet(torch.randn(N, D), ARRAYS["ids"], torch.arange(N), sigma)
    write_embeddings(tmp_path / "new" / "e.npz", items)
    read = read_embeddings(tmp_path / "new" / "e.npz", where="w")
    assert len(read) == N
    for name, expected in vars(items).items():
        actual = getattr(read, name)
        assert (actual is None) if expected is None else np.array_equal(actual, expected)
    with np.load(tmp_path / "new" / "e.npz") as archive:
        assert set(archive.files) == set(ARRAYS) - ({"sigma"} if sigma is None else set())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["e.npz"]


def test_a_folder_is_written_under_any_other_name(tmp_path: Path) -> None:
    items = EmbeddingSet(torch.randn(N, D).half(), np.array(list("nopqr")), log_variance=torch.randn(N))
    write_embeddings(tmp_path / "e", items)
    read = read_embeddings(tmp_path / "e", where="w")
    assert torch.equal(read.embeddings, items.embeddings)
    assert np.array_equal(read.ids, items.ids)  # type: ignore[arg-type]
    assert read.labels is None
    assert [path.name for path in tmp_path.iterdir()] == ["e"]
    with pytest.raises(UserError, match="cannot be written"):
        write_embeddings(tmp_path / "e", items)
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


@pytest.mark.parametrize("write", WRITERS)
def test_both_forms_read_the_same(tmp_path: Path, write: type) -> None:
    items = read_embeddings(write(tmp_path / "e", ARRAYS), where="w")
    read = {"embeddings": items.embeddings, "ids": items.ids, "labels": items.labels, "sigma": items.log_variance}
    for name, expected in ARRAYS.items():
        actual = read[name]
        assert actual is not None
        assert np.array_equal(actual, expected)


@pytest.mark.parametrize("write", WRITERS)
def test_only_the_embeddings_are_needed(tmp_path: Path, write: type) -> None:
    half = ARRAYS["embeddings"].astype(np.float16)
    items = read_embeddings(write(tmp_path / "e", {"embeddings": half}), where="w")
    assert items.embeddings.dtype == torch.float16
    assert items.ids is None
    assert items.labels is None
    assert items.log_variance is None


def test_integers_and_log_variances_of_any_width_are_read(tmp_path: Path) -> None:
    arrays = {**ARRAYS, "labels": ARRAYS["labels"].astype(np.uint8), "sigma": ARRAYS["sigma"].astype(np.float64)}
    items = read_embeddings(write_archive(tmp_path / "e", arrays), where="w")
    assert items.labels is not None
    assert items.log_variance is not None
    assert (items.labels.dtype, items.log_variance.dtype) == (torch.int64, torch.float32)


def test_a_folder_is_mapped_and_never_written_to(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "e", ARRAYS)
    with (folder / "embeddings.npy").open("r+b") as file:
        items = read_embeddings(folder, where="w")
        file.seek(-4, 2)
        file.write(np.float32(99).tobytes())
    assert items.embeddings[-1, -1] == 99  # read from the file when it is looked at, not before
    items.embeddings.fill_(0)
    assert np.load(folder / "embeddings.npy")[0, 1] == 1


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": np.zeros((N, D))}, r"should be \(n, d\) float16 or float32, got \(5, 3\) float64"),
        ({"embeddings": np.zeros(N, np.float32)}, r"should be \(n, d\) float16 or float32, got \(5,\) float32"),
        ({"embeddings": np.zeros((N, D), np.int64)}, r"got \(5, 3\) int64"),
        ({"embeddings": np.zeros((0, D), np.float32)}, r"is empty, its embeddings are \(0, 3\)"),
        ({"ids": np.array([7, 8, 7, 9, 9])}, "2 ids occur more than once, the first is 7"),
        ({"ids": np.array(["b", "a", "c", "a", "d"])}, "1 ids occur more than once, the first is a"),
        (
            {"ids": np.arange(N) / 2},
            r"ids should be \(n,\) whole numbers or texts \(ids.astype\(str\)\), got .* float64",
        ),
        ({"ids": np.array(list("nopqr"), object)}, r"ids: an array of Python objects; save it as ids.astype\(str\)"),
        ({"ids": np.arange(4)}, r"ids is \(4,\), embeddings \(5, 3\)"),
        ({"labels": np.int64(3)}, r"labels is \(\), embeddings \(5, 3\)"),
        ({"labels": np.zeros((N, 1), np.int64)}, r"labels should be \(n,\) whole numbers, got \(5, 1\) int64"),
        ({"labels": np.full(N, 2**63, np.uint64)}, "labels go up to 9223372036854775808, beyond int64"),
        ({"labels": np.zeros(N)}, r"labels should be \(n,\) whole numbers, got \(5,\) float64"),
        ({"sigma": np.zeros((4, D), np.float32)}, r"sigma is \(4, 3\), embeddings \(5, 3\)"),
        ({"sigma": np.zeros(N, np.int64)}, "sigma should be .* floating point"),
        ({"sigma": np.zeros((N, D, 2), np.float32)}, r"sigma should be \(n,\) or \(n, d\)"),
        ({"labels": np.array([None] * N)}, "no embedding file"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, write: type, changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UserError, match=f"gallery: .*e.*{message}"):
        read_embeddings(write(tmp_path / "e", {**ARRAYS, **changes}), where="gallery")


def test_what_is_no_embedding_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"w: there is no embedding file {tmp_path}/none\.npz"):
        read_embeddings(tmp_path / "none.npz", where="w")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder has no array `embeddings`"):
        read_embeddings(tmp_path / "folder", where="w")
    np.save(tmp_path / "single.npy", ARRAYS["embeddings"])
    whole = write_archive(tmp_path / "whole", ARRAYS).read_bytes()
    contents = {
        "empty.npz": b"",
        "text.npz": b"hello",
        "cut.npz": whole[: len(whole) // 2],
        "folder/embeddings.npy": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in ("single.npy", "empty.npz", "text.npz", "cut.npz", "folder"):
        with pytest.raises(UserError, match=f"w: .*{name} is no embedding file"):
            read_embeddings(tmp_path / name, where="w")
