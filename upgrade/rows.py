"""Arrays of rows in `.npy` files, read and written a part at a time.

Whole passes go by plain reads and writes: every page of a memory map that they touch would count as the process's own
memory. A map serves where few rows are scattered over the file.
"""

import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
            ValueError, OSError: it is none, is cut short, or is not in row order.
        """
        mapped = npy.open_memmap(path, mode="r")
        if not mapped.flags.c_contiguous:
            raise ValueError("its array is in column order; write numpy.ascontiguousarray of it")
        return cls(path, mapped.shape, mapped.dtype, mapped.offset)

    @classmethod
    def create(cls, path: Path, shape: tuple[int, ...], dtype: Any) -> "RowFile":
        """A new `.npy` file of zeros, with its room on the disk taken.

        Raises:
            OSError: the disk has no room for it.
        """
        with path.open("w+b") as file:
            header = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(file, header)
            offset = file.tell()
            file.flush()
            size = offset + int(np.prod(shape)) * np.dtype(dtype).itemsize
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:  # macOS: a full disk shows later, when the rows are written
                    os.ftruncate(file.fileno(), size)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from None
        return cls(path, shape, np.dtype(dtype), offset)

    def read(self, start: int, stop: int) -> Array:
        """The rows [start, stop), as an array of their own."""
        shape = (stop - start, *self.shape[1:])
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        values = np.fromfile(self.path, self.dtype, int(np.prod(shape)), offset=self.offset + start * row_bytes)
        return values.reshape(shape)

    def write(self, start: int, rows: Array) -> None:
        """Write `rows` (m, ...) durably, from the row `start` on."""
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        with self.path.open("r+b") as file:
            file.seek(self.offset + start * row_bytes)
            file.write(np.ascontiguousarray(rows, self.dtype).data)
            file.flush()
            os.fsync(file.fileno())

    def take(self, index: Array) -> Array:
        """The rows `index` (m,) -> (m, ...)."""
        return np.asarray(self.mapped("r")[index])

    def put(self, index: Array, rows: Array) -> None:
        """Set the rows `index` (m,); durable after `sync`."""
        self.mapped("r+")[index] = rows

    def sync(self) -> None:
        """Wait until everything that was written to the file is on the disk."""
        with self.path.open("r+b") as file:
            os.fsync(file.fileno())

    def mapped(self, mode: Any) -> Array:
        """A memory map of all rows."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, mode, self.offset, self.shape)


@dataclass(frozen=True)
class Concatenated:
    """The rows of several files, one after the other."""

    parts: Sequence[Rows]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.parts[0].dtype

    def read(self, start: int, stop: int) -> Array:
        """The rows [start, stop), as an array of their own."""
        found, first = [], 0
        for part in self.parts:
            low, high = max(start - first, 0), min(stop - first, part.shape[0])
            if low < high:
                found.append(part.read(low, high))
            first += part.shape[0]
        return np.concatenate(found)


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
            header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            shape, column_order, dtype = header[npy.read_magic(member)](member)
            if column_order and len(shape) > 1:
                raise ValueError("its array is in column order; write numpy.ascontiguousarray of it")
            data = member.tell()
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)  # the lengths of the local header's name and extra field
        lengths = np.frombuffer(file.read(4), "<u2")
    return RowFile(path, shape, dtype, info.header_offset + 30 + int(lengths.sum()) + data)


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
