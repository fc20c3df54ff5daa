"""Embeddings in safetensors, `.pt` and Parquet files, as rows: `embeddings`, perhaps `ids` and `labels`."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.parquet_files import columns_of, joined, values_of
from upgrade.ends.rows import Array, Concatenated, HeldRows, RowFile, Rows
from utils.errors import UserError
from utils.extras import load_extra
from utils.files import read_torch

ARRAYS = ("embeddings", "ids", "labels")
SAFETENSORS_TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U64": "<u8", "U32": "<u4"}


def open_safetensors(path: Path) -> dict[str, Rows]:
    """The tensors of a safetensors file, where they lie in it.

    Raises:
        ValueError, KeyError, OSError: it is none, is cut short, or a tensor is of another type.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(size, path.stat().st_size)))
    found: dict[str, Rows] = {}
    for name in set(ARRAYS) & set(header):
        kind, shape, (start, _) = (header[name][key] for key in ("dtype", "shape", "data_offsets"))
        if kind not in SAFETENSORS_TYPES:
            raise ValueError(f"`{name}` is {kind}, not one of {', '.join(SAFETENSORS_TYPES)}")
        found[name] = RowFile.within(path, tuple(shape), np.dtype(SAFETENSORS_TYPES[kind]), 8 + size + start)
    return found


def open_torch(path: Path) -> dict[str, Rows]:
    """The arrays of a file of torch.save: the embeddings as a tensor, or a dict; tensors are memory-mapped.

    Raises:
        ValueError, OSError: it holds something else.
    """
    content = read_torch(path, mmap=True)
    content = {"embeddings": content} if isinstance(content, torch.Tensor) else content
    if not isinstance(content, dict):
        raise ValueError("it should hold a tensor, or a dict of `embeddings` and perhaps `ids` and `labels`")
    try:
        return {name: HeldRows(np.asarray(content[name])) for name in ARRAYS if content.get(name) is not None}
    except (TypeError, RuntimeError) as error:  # a type that numpy does not have; a tensor with gradients
        raise ValueError(error) from None


@dataclass(frozen=True)
class RowGroup:
    """The embeddings of one row group of a Parquet file; the last one that was read is kept."""

    where: str  # names the file in error messages
    read_group: Callable[[int], Array]
    number: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, start: int, stop: int) -> Array:
        """The rows [start, stop).

        Raises:
            UserError: they are of another dimension than those of the first group.
        """
        return self.take(np.arange(start, stop))

    def take(self, index: Array) -> Array:
        """The rows `index` (m,) -> (m, d); raises as `read`."""
        rows = self.read_group(self.number)
        if rows.shape != self.shape:
            raise UserError(f"{self.where}: row group {self.number} is {rows.shape[1]}-d, the first {self.shape[1]}-d")
        return rows[index]


def open_parquet(path: Path, where: str) -> dict[str, Rows]:
    """The columns of a Parquet file: embeddings as lists, read by row groups; ids and labels, which are held in memory.

    Raises:
        UserError: pyarrow is not installed.
        ValueError, OSError: it is no Parquet file, or a column is of something else.
    """
    parquet = load_extra("pyarrow.parquet", where=f"{where}: {path}")
    file = parquet.ParquetFile(path)
    counts = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    groups = [number for number, count in enumerate(counts) if count]
    columns = columns_of(file.schema_arrow.names, ARRAYS)

    def read(name: str, numbers: list[int]) -> Array:
        chunks = file.read_row_groups(numbers, columns=[columns[name]])[columns[name]].chunks
        try:
            return joined([values_of(chunk) for chunk in chunks if len(chunk)], name)
        except ValueError as error:
            raise ValueError(f"`{columns[name]}`: {error}") from None

    @lru_cache(maxsize=1)
    def read_group(number: int) -> Array:
        try:
            return read("embeddings", [number])
        except ValueError as error:
            raise UserError(f"{where}: {path}: {error}") from None

    if not groups:
        return {name: HeldRows(np.empty((0, 0) if name == "embeddings" else 0, np.float32)) for name in columns}
    found: dict[str, Rows] = {name: HeldRows(read(name, groups)) for name in columns if name != "embeddings"}
    if "embeddings" in columns:
        first = read_group(groups[0])
        shapes = [(counts[number], *first.shape[1:]) for number in groups]
        found["embeddings"] = Concatenated(
            [
                RowGroup(f"{where}: {path}", read_group, number, shape, first.dtype)
                for number, shape in zip(groups, shapes, strict=True)
            ]
        )
    return found
