"""Parquet files of named arrays: a column each, of numbers, texts, UUIDs or lists of numbers of one length."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from data.items import Array
from data.sources.rows import PART_ROWS, Rows, by_numbers, concatenated, in_memory
from utils.errors import UserError
from utils.extras import load_extra

COLUMNS = {"embeddings": "embedding", "ids": "id", "labels": "label"}  # by what else tables call them
UUID_BYTES = 16
HELD_BYTES = 2**27  # of row groups
SEVERAL_VECTORS = "several vectors an item, as ColBERT gives them, and one is needed (their mean, say)"


@dataclass(frozen=True, eq=False)
class _Column:
    """A column of a Parquet file."""

    path: Path
    name: str
    metadata: Any
    where: str

    def parts(self, groups: Sequence[int], rows: int) -> Iterator[Array]:
        """The values in these row groups, so many rows at a time; a ValueError where they are of something else."""
        with load_extra("pyarrow.parquet", where=self.where).ParquetFile(self.path, metadata=self.metadata) as file:
            for batch in file.iter_batches(rows, row_groups=groups, columns=[self.name]):
                try:
                    yield values_of(batch.column(0))
                except ValueError as error:
                    raise ValueError(f"`{self.name}`: {error}") from None

    def read(self, groups: Sequence[int]) -> Array:
        """All of them."""
        return np.concatenate([*self.parts(groups, PART_ROWS)])


_held: WeakKeyDictionary[_Column, dict[int, Array]] = WeakKeyDictionary()


def _row_group(column: _Column, number: int, width: tuple[int, ...]) -> Array:
    """A row group, kept with others of all files while these have room: rows in another order come back to it."""
    kept = _held.setdefault(column, {})
    if number in kept:
        return kept[number]
    try:
        rows = column.read([number])
    except ValueError as error:
        raise UserError(f"{column.where}: {error}") from None
    if rows.shape[1:] != width:
        raise UserError(f"{column.where}: row group {number} is {rows.shape[1]}-d, the first {width[0]}-d")
    if rows.nbytes + sum(each.nbytes for groups in _held.values() for each in groups.values()) > HELD_BYTES:
        for groups in _held.values():
            groups.clear()
    kept[number] = rows
    return rows


def open_parquet(path: Path, names: Sequence[str], where: str) -> dict[str, Rows]:
    """The columns of a Parquet file: the first of `names` is read by row groups, the others are held in memory."""
    parquet = load_extra("pyarrow.parquet", where=where)
    with parquet.ParquetFile(path) as file:
        metadata, present = file.metadata, file.schema_arrow.names
    counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    groups = [number for number, count in enumerate(counts) if count]
    columns = {name: _Column(path, column, metadata, where) for name, column in columns_of(present, names).items()}
    if not groups:
        return {name: in_memory(np.empty(0)) for name in columns}
    found: dict[str, Rows] = {name: in_memory(one.read(groups)) for name, one in columns.items() if name != names[0]}
    if names[0] in columns:
        found[names[0]] = concatenated([*_by_groups(columns[names[0]], groups, counts)])
    return found


def _by_groups(column: _Column, groups: list[int], counts: list[int]) -> Iterator[Rows]:
    first = next(column.parts(groups, 1))
    for number in groups:

        def take(index: Array, number: int = number) -> Array:
            return _row_group(column, number, first.shape[1:])[index]

        yield by_numbers((counts[number], *first.shape[1:]), first.dtype, take)


def columns_of(present: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Array name -> column, of those of the arrays that a file has; a ValueError where two columns may be one."""
    found = {}
    for name in names:
        called = [column for column in (name, COLUMNS.get(name)) if column in present]
        if len(called) > 1:
            raise ValueError(f"has both {called[0]} and {called[1]}")
        if called:
            found[name] = str(called[0])
    return found


def values_of(chunk: Any) -> Array:
    """An Arrow array -> (n,), of lists (n, d); a ValueError where it is of something else, or values are missing."""
    from pyarrow import types

    chunk = getattr(chunk, "storage", chunk)  # of an extension type, as UUIDs and tensors are
    if types.is_dictionary(chunk.type):
        chunk = chunk.dictionary_decode()
    if chunk.null_count:
        raise ValueError(f"{chunk.null_count} of its values are missing (null)")
    if types.is_list(chunk.type) or types.is_large_list(chunk.type) or types.is_fixed_size_list(chunk.type):
        values = values_of(chunk.flatten())
        lengths = chunk.value_lengths().to_numpy(zero_copy_only=False)
        odd = np.flatnonzero(lengths != lengths[0])
        if len(odd) and values.ndim > 1:
            raise ValueError(f"it has {SEVERAL_VECTORS}")
        if len(odd):
            raise ValueError(f"its lists are of different lengths, {lengths[0]} and {lengths[odd[0]]}")
        return values.reshape(len(chunk), lengths[0], *values.shape[1:])
    if types.is_fixed_size_binary(chunk.type) and chunk.type.byte_width == UUID_BYTES:
        raw = np.frombuffer(chunk.buffers()[1], f"V{UUID_BYTES}")[chunk.offset : chunk.offset + len(chunk)]
        digits = np.frombuffer(raw.tobytes().hex().encode(), "S1").reshape(len(chunk), 2 * UUID_BYTES)
        texts = np.insert(digits, (8, 12, 16, 20), b"-", axis=1)  # (n, 36): 0123abcd-4567-89ef-0123-456789abcdef
        return texts.view("S36").reshape(len(chunk)).astype(str)
    if types.is_string(chunk.type) or types.is_large_string(chunk.type):
        return chunk.to_numpy(zero_copy_only=False).astype(str)
    if types.is_integer(chunk.type) or types.is_floating(chunk.type):
        return chunk.to_numpy(zero_copy_only=False)
    raise ValueError(f"is of {chunk.type}, neither numbers nor texts nor lists of numbers")


def write_columns(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays (n,) or (n, d) by name, as columns of values or of lists.

    Raises:
        UserError: pyarrow is not installed.
    """
    parquet = load_extra("pyarrow.parquet", where=str(path))
    import pyarrow

    def column(array: Array) -> Any:
        flat = pyarrow.array(np.ascontiguousarray(array).reshape(-1))
        return flat if array.ndim == 1 else pyarrow.FixedSizeListArray.from_arrays(flat, array.shape[1])

    parquet.write_table(pyarrow.table({name: column(array) for name, array in arrays.items()}), path)
