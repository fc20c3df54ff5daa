"""Bytes as embeddings: what sentence-transformers made of vectors comes back as near as it can, or is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from data.embeddings import read_embeddings
from data.sources.arrays import write_named_arrays
from data.sources.embeddings import open_source
from data.sources.quantisation import quantised as quantise
from utils.errors import UserError

N, D = 1200, 24
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(N, D)) * RNG.uniform(0.1, 3, D) + RNG.normal(size=D)
RANGES = np.stack([ROWS.min(0), ROWS.max(0)]).astype(np.float32)
STEP = (RANGES[1].astype(np.float64) - RANGES[0]) / 255


def quantised(precision: str, *, before_6: bool = False) -> np.ndarray:
    """As sentence-transformers has it, a value at a time: rounded down; in int8 before 6.0 towards zero."""
    values = np.empty((N, D), {"int8": np.int8, "uint8": np.uint8}[precision])
    for row in range(N):
        for column in range(D):
            steps = (float(ROWS[row, column]) - float(RANGES[0, column])) / STEP[column]
            steps = min(max(steps, 0), 255)
            if precision == "int8":
                values[row, column] = int(steps - 128) if before_6 else math.floor(steps) - 128
            else:
                values[row, column] = math.floor(steps)
    return values


def packed(rows: np.ndarray, precision: str) -> np.ndarray:
    """Eight signs a byte, the first in the highest bit."""
    values = np.zeros((len(rows), -(-rows.shape[1] // 8)), int)
    for column in range(rows.shape[1]):
        values[:, column // 8] += (rows[:, column] > 0) * 2 ** (7 - column % 8)
    return values.astype(np.uint8) if precision == "ubinary" else (values - 128).astype(np.int8)


def read(path: Path) -> np.ndarray:
    embeddings = read_embeddings(path, where="gallery").embeddings
    assert embeddings.dtype == torch.float32
    return embeddings.numpy()


@pytest.mark.parametrize(("precision", "before_6"), [("int8", False), ("int8", True), ("uint8", False)])
def test_steps_between_ranges_come_back_to_half_a_step_and_without_bias(
    tmp_path: Path, precision: str, before_6: bool
) -> None:
    values = quantised(precision, before_6=before_6)
    np.savez(tmp_path / "e.npz", embeddings=values, ranges=RANGES)
    error = (read(tmp_path / "e.npz") - ROWS) / STEP
    around_zero = (values == 0) & before_6  # from -1 to 1 all became 0
    assert np.abs(error[~around_zero]).max() < 0.51
    assert np.abs(error).max() < 1.01
    assert abs(error.mean()) < 0.01


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_what_is_written_is_what_sentence_transformers_writes(precision: str) -> None:
    """And beyond the ranges their ends."""
    if precision.endswith("int8"):
        expected, ranges = quantised(precision), RANGES
        beyond = quantise(np.concatenate([ROWS - 1e3, ROWS + 1e3]), precision, RANGES)
        assert set(beyond[:N].flat) == {np.iinfo(expected.dtype).min}
        assert set(beyond[N:].flat) == {np.iinfo(expected.dtype).max}
    else:
        expected, ranges = packed(ROWS, precision), None
    found = quantise(ROWS, precision, ranges)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


def test_a_constant_dimension_and_embeddings_of_length_one(tmp_path: Path) -> None:
    """Those keep so near to length 1 that they are recognised."""
    np.savez(tmp_path / "e.npz", embeddings=np.full((3, 2), -7, np.int8), ranges=np.full((2, 2), 0.25, np.float32))
    assert (read(tmp_path / "e.npz") == 0.25).all()
    unit = RNG.normal(size=(2000, 128))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    low, high = unit.min(0), unit.max(0)
    steps = (unit - low) / (high - low) * 255
    for values in (np.floor(steps) - 128, np.trunc(steps - 128)):
        np.savez(tmp_path / "e.npz", embeddings=values.astype(np.int8), ranges=np.stack([low, high]))
        assert np.abs(np.linalg.norm(read(tmp_path / "e.npz"), axis=1) - 1).max() < 5e-3


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_scale_and_offset(tmp_path: Path, dtype: Any) -> None:
    values, scale = RNG.integers(0, 127, (N, D)).astype(dtype), RNG.uniform(0.1, 2, D).astype(np.float32)
    for one, other in ((scale, scale - 1), (np.float32(0.5), np.full(1, 3.0))):
        np.savez(tmp_path / "e.npz", embeddings=values, scale=one, offset=other)
        assert np.allclose(read(tmp_path / "e.npz"), values.astype(float) * one + other, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
@pytest.mark.parametrize("dim", [24, 21])
def test_packed_bits_are_signs_of_length_one(tmp_path: Path, precision: str, dim: int) -> None:
    rows = ROWS[:, :dim] - ROWS[:, :dim].mean(0)
    np.savez(tmp_path / "e.npz", embeddings=packed(rows, precision), bits=dim, ids=np.arange(N))
    found = read(tmp_path / "e.npz")
    assert found.shape == (N, dim)
    assert np.array_equal(found > 0, rows > 0)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    differ = ((rows[0] > 0) != (rows[1:] > 0)).sum(1)
    assert found[1:] @ found[0] == pytest.approx(1 - 2 * differ / dim, abs=1e-5)


def test_every_form_has_a_place_to_say_it(tmp_path: Path) -> None:
    """In the file, or for all shards in their folder; each shard may have ranges of its own."""
    bits = packed(ROWS, "ubinary")
    np.savez(tmp_path / "e.npz", embeddings=bits, bits=[D])
    expected = read(tmp_path / "e.npz")
    torch.save({"embeddings": torch.from_numpy(bits), "bits": D}, tmp_path / "e.pt")
    save_file({"embeddings": bits, "bits": np.array(D)}, tmp_path / "e.safetensors")
    for name in ("lone", "folder", "shards", "tables", "own"):
        (tmp_path / name).mkdir()
        if name != "own":
            np.save(tmp_path / name / "bits.npy", D)
    np.save(tmp_path / "lone/e.npy", bits)
    np.save(tmp_path / "folder/embeddings.npy", bits)
    for number, rows in enumerate(np.array_split(np.arange(N), 3)):
        np.save(tmp_path / f"shards/{number}.npy", bits[rows])
        write_named_arrays(tmp_path / f"tables/{number}.parquet", {"embeddings": bits[rows]})
        np.savez(tmp_path / f"own/{number}.npz", embeddings=bits[rows], bits=D)
    for name in ("e.pt", "e.safetensors", "lone", "folder", "shards", "tables", "own"):
        assert np.array_equal(read(tmp_path / name), expected), name


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, r"its embeddings are \(1200, 24\) int8:\nsay what they mean by one more array in the file"),
        ({"scale": np.ones(D)}, r"\(1200, 24\) int8, not scale:\nsay what"),
        ({"ranges": RANGES, "bits": 192}, r"int8, not bits and ranges:\nsay what"),
        ({"ranges": RANGES[:, :5]}, r"ranges should be \(2, 24\) finite numbers, got \(2, 5\) float32"),
        ({"ranges": RANGES * np.nan}, r"ranges should be \(2, 24\) finite numbers"),
        ({"ranges": RANGES[::-1]}, "ranges should be the least values and then the largest"),
        (
            {"scale": np.ones(D), "offset": np.ones(D - 1)},
            r"offset should be \(24,\) finite numbers, or one, got",
        ),
        ({"bits": 1024}, "bits is 1024, but 24 bytes hold 185 to 192"),
        ({"bits": 192.0}, r"bits should be a whole number, got \(\) float64"),
    ],
)
def test_bytes_of_no_or_of_another_meaning_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "e.npz", embeddings=quantised("int8"), **arrays)
    with pytest.raises(UserError, match=f"gallery: .*e.npz: .*{message}"):
        read_embeddings(tmp_path / "e.npz", where="gallery")


def test_columns_of_a_table_say_nothing_of_its_embeddings(tmp_path: Path) -> None:
    """Where a document begins, say."""
    arrays: dict[str, np.ndarray] = {
        "embeddings": ROWS.astype(np.float32),
        "offset": np.arange(N),
        "scale": np.array(["x"] * N),
    }
    write_named_arrays(tmp_path / "e.parquet", arrays)
    assert np.array_equal(read(tmp_path / "e.parquet"), arrays["embeddings"])
    np.savez(tmp_path / "e.npz", **arrays)  # type: ignore[arg-type]
    assert np.array_equal(read(tmp_path / "e.npz"), arrays["embeddings"])


@pytest.mark.parametrize("shape", [(0, D), (N, 0), (0,)])
def test_none_at_all(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.savez(tmp_path / "e.npz", embeddings=np.zeros(shape, np.int8), ranges=RANGES[:, : shape[-1]])
    with pytest.raises(UserError, match=r"gallery: .*e\.npz is empty"):
        read_embeddings(tmp_path / "e.npz", where="gallery")
    if shape[0] == 0:
        assert len(open_source(tmp_path / "e.npz", where="batch", may_be_empty=True)) == 0
