"""Arrays of rows that lie in files, read a part at a time.

Whole passes go by plain reads: every page of a memory map that they touch would count as the process's own
memory. A map serves where few rows are scattered over the file.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.items import Array
from utils.errors import UserError

PART_ROWS = 2**16  # of a pass over a file, at a time


@dataclass(frozen=True)
class Rows:
    """An array (n, ...) on disk: all that a pass over its rows needs."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[int, int], Array]  # start, stop -> the rows [start, stop)
    take: Callable[[Array], Array]  # index (m,) -> (m, ...)
    mapped: Callable[[], Array] | None = None  # all of it, memory-mapped copy-on-write, where that is wanted


def in_memory(array: Array) -> Rows:
    """An array that is in memory, or mapped there."""
    return Rows(array.shape, array.dtype, lambda start, stop: array[start:stop], array.__getitem__, lambda: array)


def by_numbers(shape: tuple[int, ...], dtype: Any, take: Callable[[Array], Array]) -> Rows:
    """Rows that something gives by their numbers (m,)."""
    return Rows(shape, np.dtype(dtype), lambda start, stop: take(np.arange(start, stop)), take)


def in_file(path: Path, shape: tuple[int, ...], dtype: Any, offset: int) -> Rows:
    """An array that lies in a file from `offset` on, as it would in an `.npy`.

    Raises:
        ValueError: the file ends before it does.
    """
    dtype, width = np.dtype(dtype), int(np.prod(shape[1:]))
    if path.stat().st_size < offset + int(np.prod(shape)) * dtype.itemsize:
        raise ValueError("the file ends before its array does")

    def read(start: int, stop: int) -> Array:
        begin = offset + start * dtype.itemsize * width
        return np.fromfile(path, dtype, (stop - start) * width, offset=begin).reshape(stop - start, *shape[1:])

    def mapped(mode: Any = "c") -> Array:
        return np.empty(shape, dtype) if 0 in shape else np.memmap(path, dtype, mode, offset, shape)

    return Rows(
        shape, dtype, read, lambda index: np.asarray(mapped("r")[index]), mapped if path.suffix == ".npy" else None
    )


def converted(rows: Rows, convert: Callable[[Array], Array], dtype: Any, width: tuple[int, ...] | None = None) -> Rows:
    """What `convert` makes of each part of other rows; `width` is the shape of a row, where it is another one."""
    shape = rows.shape if width is None else (rows.shape[0], *width)
    read, take = (lambda start, stop: convert(rows.read(start, stop))), (lambda index: convert(rows.take(index)))
    return Rows(shape, np.dtype(dtype), read, take)


def reordered(rows: Rows, order: Array) -> Rows:
    """Rows in another order: `order` (m,) tells where each of them is."""
    return by_numbers((len(order), *rows.shape[1:]), rows.dtype, lambda index: rows.take(order[index]))


def concatenated(parts: Sequence[Rows]) -> Rows:
    """The rows of several files, one after the other; of texts, the type is the widest."""
    ends = np.cumsum([part.shape[0] for part in parts])
    shape, dtype = (int(ends[-1]), *parts[0].shape[1:]), np.result_type(*(part.dtype for part in parts))

    def read(start: int, stop: int) -> Array:
        found = np.empty((stop - start, *shape[1:]), dtype)
        for part, end in zip(parts, ends, strict=True):
            first = end - part.shape[0]
            low, high = max(start, first), min(stop, end)
            if low < high:
                found[low - start : high - start] = part.read(low - first, high - first)
        return found

    def take(index: Array) -> Array:
        found, place = np.empty((len(index), *shape[1:]), dtype), np.searchsorted(ends, index, side="right")
        for number in np.unique(place):
            here, part = place == number, parts[number]
            found[here] = part.take(index[here] - (ends[number] - part.shape[0]))
        return found

    return Rows(shape, dtype, read, take)


def whole(rows: Rows) -> Array:
    """All rows; those of an `.npy` file memory-mapped, copy-on-write."""
    return rows.read(0, (*rows.shape, 1)[0]).reshape(rows.shape) if rows.mapped is None else rows.mapped()


def parts_of(count: int, size: int = PART_ROWS) -> Iterator[tuple[int, int]]:
    """The (start, stop) of successive parts of `count` rows.

    >>> list(parts_of(5, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    for start in range(0, count, size):
        yield start, min(start + size, count)


def check_finite(values: Array, where: str, first_row: int) -> None:
    """Raise a UserError that names the first row of `values` (m, d) with NaN or infinity, counted from `first_row`."""
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        raise UserError(f"{where}: row {first_row + bad[0]} holds NaN or infinity ({len(bad)} such rows in this part)")
