"""Parquet files of named arrays: a column each, of numbers, texts, UUIDs or lists of numbers of one length."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.items import Array
from utils.extras import load_extra

COLUMNS = {"embeddings": "embedding", "ids": "id", "labels": "label"}  # by what else tables call them
UUID_BYTES = 16


def shards_of(folder: Path) -> list[Path]:
    """The Parquet files in a folder, by the numbers in their names; hidden ones are left out."""
    files = [file for file in folder.glob("*.parquet") if file.name[0] not in "._"]
    return sorted(files, key=lambda file: natural_key(file.name))


def natural_key(name: str) -> list[str | int]:
    """A key that sorts names by the numbers in them.

    >>> sorted(["part-10.parquet", "part-2.parquet"], key=natural_key)
    ['part-2.parquet', 'part-10.parquet']
    """
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]  # text, number, text, ...


def read_columns(files: Sequence[Path], names: Sequence[str], *, where: str) -> dict[str, Array]:
    """The named columns of files of the same columns, whose rows follow each other; files without rows say nothing.

    Raises:
        ValueError: a column is of something else, or files do not go together.
        UserError: pyarrow is not installed.
    """
    parquet = load_extra("pyarrow.parquet", where=where)
    parts: dict[str, list[Array]] = {}
    columns: dict[str, str] = {}
    for file in files:
        with parquet.ParquetFile(file) as content:
            found = columns_of(content.schema_arrow.names, names)
            if not content.metadata.num_rows:
                columns = columns or found
                continue
            if parts and found.keys() != parts.keys():
                raise ValueError(f"{file.name} has {', '.join(found)}, files before it {', '.join(parts)}")
            columns = found
            table = content.read(columns=list(found.values()))
        for name, column in found.items():
            try:
                parts.setdefault(name, []).extend(values_of(chunk) for chunk in table[column].chunks if len(chunk))
            except ValueError as error:
                raise ValueError(f"{file.name}: {column}: {error}") from None
    if not parts:
        return {name: np.zeros(0) for name in columns}
    return {name: joined(chunks, name) for name, chunks in parts.items()}


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


def joined(chunks: list[Array], name: str) -> Array:
    """The rows of all chunks; a ValueError where these are of several dimensions or kinds."""
    shapes = {f"(n{''.join(f', {size}' for size in chunk.shape[1:])}) {chunk.dtype.kind}": chunk for chunk in chunks}
    if len(shapes) > 1:
        one, other = list(shapes.values())[:2]
        raise ValueError(f"{name} are {one.shape} {one.dtype} in some rows and {other.shape} {other.dtype} in others")
    return np.concatenate(chunks)


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
