"""Arrays of rows in `.npy` files, read a part at a time.

Whole passes go by plain reads: every page of a memory map that they touch would count as the process's own
memory. A map serves where few rows are scattered over the file.
"""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy

from utils.errors import UserError

Array = np.ndarray[Any, Any]
PART_ROWS = 2**16  # of a pass over a file, at a time


class Rows(Protocol):
    """Rows on disk: all that a pass over them needs."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def read(self, start: int, stop: int) -> Array:
        """The rows [start, stop), as an array of their own."""

    def take(self, index: Array) -> Array:
        """The rows `index` (m,) -> (m, ...)."""


@dataclass(frozen=True)
class RowFile:
    """An array (n, ...) that begins at `offset` of a file: an `.npy` file, or a member of an `.npz` archive."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @classmethod
    def open(cls, path: Path) -> "RowFile":
        """An existing `.npy` file.

        Raises:
            ValueError, KeyError, OSError: it is none, is cut short, is not in row order, or holds Python objects.
        """
        with path.open("rb") as file:
            shape, dtype = _read_header(file)
            return cls.within(path, shape, dtype, file.tell())

    @classmethod
    def within(cls, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> "RowFile":
        """An array that lies in a file as it would in an `.npy`.

        Raises:
            ValueError: the file ends before it does.
        """
        if path.stat().st_size < offset + int(np.prod(shape)) * dtype.itemsize:
            raise ValueError("the file ends before its array does")
        return cls(path, shape, dtype, offset)

    def read(self, start: int, stop: int) -> Array:
        """The rows [start, stop), as an array of their own."""
        shape = (stop - start, *self.shape[1:])
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        values = np.fromfile(self.path, self.dtype, int(np.prod(shape)), offset=self.offset + start * row_bytes)
        return values.reshape(shape)

    def take(self, index: Array) -> Array:
        """The rows `index` (m,) -> (m, ...)."""
        if 0 in self.shape:
            return np.empty((len(index), *self.shape[1:]), self.dtype)
        return np.asarray(np.memmap(self.path, self.dtype, "r", self.offset, self.shape)[index])


@dataclass(frozen=True)
class HeldRows:
    """An array that is in memory, or mapped there."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def read(self, start: int, stop: int) -> Array:
        """The rows [start, stop)."""
        return self.array[start:stop]

    def take(self, index: Array) -> Array:
        """The rows `index` (m,) -> (m, ...)."""
        taken: Array = self.array[index]
        return taken


@dataclass(frozen=True)
class Concatenated:
    """The rows of several files, one after the other."""

    parts: Sequence[Rows]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.result_type(*(part.dtype for part in self.parts))  # of text: the widest

    def read(self, start: int, stop: int) -> Array:
        """The rows [start, stop), as an array of their own."""
        found, first = np.empty((stop - start, *self.shape[1:]), self.dtype), 0
        for part in self.parts:
            low, high = max(start - first, 0), min(stop - first, part.shape[0])
            if low < high:
                found[first + low - start : first + high - start] = part.read(low, high)
            first += part.shape[0]
        return found

    def take(self, index: Array) -> Array:
        """The rows `index` (m,) -> (m, ...)."""
        found, first = np.empty((len(index), *self.shape[1:]), self.dtype), 0
        for part in self.parts:
            here = (index >= first) & (index < first + part.shape[0])
            if here.any():
                found[here] = part.take(index[here] - first)
            first += part.shape[0]
        return found


@dataclass(frozen=True)
class Reordered:
    """Rows in another order: `index` (m,) tells where each of them is."""

    rows: Rows
    index: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.index), *self.rows.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.rows.dtype

    def read(self, start: int, stop: int) -> Array:
        """The rows [start, stop), as an array of their own."""
        return self.rows.take(self.index[start:stop])

    def take(self, index: Array) -> Array:
        """The rows `index` (m,) -> (m, ...)."""
        return self.rows.take(self.index[index])


def archive_member(path: Path, name: str) -> RowFile | None:
    """The array `name` of an `.npz` archive, where it lies in the file; None if there is none.

    Raises:
        ValueError, OSError, zipfile.BadZipFile: the file is no archive, is cut short, or its arrays are compressed.
    """
    with zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        info = archive.getinfo(f"{name}.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError("its arrays are compressed and cannot be streamed; write it with numpy.savez")
        with archive.open(info) as member:
            shape, dtype = _read_header(member)
            data = member.tell()
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)  # the lengths of the local header's name and extra field
        lengths = np.frombuffer(file.read(4), "<u2")
    return RowFile(path, shape, dtype, info.header_offset + 30 + int(lengths.sum()) + data)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and type of an `.npy` array, whose numbers follow in the file."""
    headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, column_order, dtype = headers[npy.read_magic(file)](file)
    if column_order and len(shape) > 1:
        raise ValueError("its array is in column order; write numpy.ascontiguousarray of it")
    if dtype.hasobject:
        raise ValueError("its array holds Python objects; write ids that are text with ids.astype(str)")
    return shape, dtype


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
