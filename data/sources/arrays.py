"""Files, folders and tables of named arrays: opened, read and written."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from data.items import Array
from data.sources.formats import LONE, OPENERS, UNREADABLE
from data.sources.ids import int64_or_texts
from data.sources.lance_tables import is_table, open_table
from data.sources.parquet_files import open_parquet, write_columns
from data.sources.quantisation import SAYING, dequantised, is_quantised
from data.sources.rows import Rows, concatenated, whole
from utils.errors import UserError
from utils.extras import load_extra
from utils.files import atomic_path, write_arrays

FORMS = f"{', '.join(OPENERS)}, a folder of .npy or of shards, or a Lance table"
WRITERS = {".parquet": "pyarrow.parquet", ".safetensors": "safetensors.torch"}  # that are no requirements


def open_arrays(path: str | Path, names: Sequence[str], *, where: str) -> dict[str, Rows]:
    """Those of the named arrays that a file, folder or table has; nothing is read yet but what a form holds in memory.

    A folder has an `.npy` of each name, or shards: files of any form, whose rows follow each other in the order of the
    numbers in their names. Hidden files are left out. bfloat16, which numpy does not know, comes as float32, and so do
    bytes, where arrays beside `embeddings` in the file or the folder say what they mean (`dequantised`).

    Args:
        names: the array that has a row for each item comes first. One without a name is called LONE.
        where: the config key that names the file, for error messages.

    Raises:
        UserError: no such file, not one of FORMS, cut short, arrays of something else than numbers and texts, shards
            that do not go together, or the package that reads the form is not installed.
    """
    path = Path(path)
    if path.is_dir() and not is_table(path):
        return _open_folder(path, names, where)
    if not path.exists():
        raise UserError(f"{where}: there is no {path}")
    opener = open_table if path.is_dir() else OPENERS.get(path.suffix.lower())
    if opener is None:
        raise UserError(f"{where}: {path} should be {FORMS}")
    asked = names if opener in (open_table, open_parquet) else _with_meaning(names)  # columns are of items alone
    try:
        return _dequantised(opener(path, asked, f"{where}: {path}"), f"{where}: {path}")
    except UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{where}: {path} cannot be read: {reason}") from None


def _with_meaning(names: Sequence[str]) -> tuple[str, ...]:
    return (*names, *SAYING) if names[0] == "embeddings" else tuple(names)


def _dequantised(arrays: dict[str, Rows], where: str) -> dict[str, Rows]:
    """The arrays, without those that say what bytes mean."""
    said = {name: arrays.pop(name) for name in SAYING if name in arrays}
    name = LONE if LONE in arrays else "embeddings"
    if said and name in arrays and is_quantised(arrays[name]) and 0 not in arrays[name].shape:
        arrays[name] = dequantised(arrays[name], said, where)
    return arrays


def _open_folder(path: Path, names: Sequence[str], where: str) -> dict[str, Rows]:
    files = [file for file in path.iterdir() if file.suffix.lower() in OPENERS and file.name[0] != "."]
    own = [file for file in files if file.suffix == ".npy" and file.stem in _with_meaning(names)]
    shards = sorted(set(files) - set(own), key=lambda file: natural_key(file.name))
    if path / f"{names[0]}.npy" in own or not shards:
        numbered = [file.name for file in shards if file.stem.startswith(names[0])]
        if numbered:
            raise UserError(f"{where}: {path} has both {names[0]}.npy and {numbered[0]}: number all shards, or none")
        found = {file.stem: open_arrays(file, names, where=where)[LONE] for file in own}
        return _dequantised(found, f"{where}: {path}")
    found = _joined({file: open_arrays(file, names, where=where) for file in shards}, where)
    for file in own:
        if file.stem in found:
            raise UserError(f"{where}: {file}: the shards beside it have {file.stem} of their own")
        found[file.stem] = open_arrays(file, names, where=where)[LONE]
    return _dequantised(found, f"{where}: {path}")


def natural_key(name: str) -> list[str | int]:
    """A key that sorts names by the numbers in them.

    >>> sorted(["part-10.parquet", "part-2.parquet"], key=natural_key)
    ['part-2.parquet', 'part-10.parquet']
    """
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]  # text, number, text, ...


def _joined(shards: dict[Path, dict[str, Rows]], where: str) -> dict[str, Rows]:
    """The rows of all shards, one after the other; those without any say nothing."""
    full = {file: arrays for file, arrays in shards.items() if any(rows.shape[:1] != (0,) for rows in arrays.values())}
    if not full:
        return next(iter(shards.values()))
    (first, expected), *others = full.items()
    for file, arrays in others:
        both = f"{where}: {file} and {first.name}"
        for name in arrays.keys() ^ expected.keys():
            raise UserError(f"{both}: one has {name or 'an array without a name'}, the other has none")
        for name, rows in arrays.items():
            here, there = ((one.shape[1:], one.dtype.kind.replace("u", "i")) for one in (rows, expected[name]))
            if here != there:
                kinds = [f"{one.shape} {one.dtype}" for one in (rows, expected[name])]
                raise UserError(f"{both}: {name or 'the arrays'} are {kinds[0]} and {kinds[1]}")
    found = {}
    for name in expected:
        parts = [arrays[name] for arrays in full.values()]
        if {rows.dtype.kind for rows in parts} == {"i", "u"}:  # which numpy would make floating point
            parts = [int64_or_texts(rows, f"{where}: {file}: {name}") for file, rows in zip(full, parts, strict=True)]
        found[name] = concatenated(parts)
    return found


def read_arrays(path: str | Path, names: Sequence[str], *, where: str) -> dict[str, Array]:
    """Those of the named arrays that a file has, as a whole; an `.npy` stays memory-mapped, copy-on-write.

    Raises:
        UserError: as `open_arrays`.
    """
    return {name: whole(rows) for name, rows in open_arrays(path, names, where=where).items()}


def read_matrix(path: str | Path, name: str, *, where: str, dim: int | None = None) -> torch.Tensor:
    """A vector of each class, (C, d) float32: the array of that name, or the only one of a `.npy` or of a tensor.

    Args:
        dim: the dimension d that it should have.

    Raises:
        UserError: as `open_arrays`, there is none, or it is something else.
    """
    arrays = read_arrays(path, [name], where=where)
    if not arrays:
        raise UserError(f"{where}: {path} has no array `{name}`")
    (matrix,) = arrays.values()
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or dim not in (None, matrix.shape[1]):
        shape = f"(classes, {'dimension' if dim is None else dim})"
        raise UserError(f"{where}: {path}: should be {shape} floating point, got {matrix.shape} {matrix.dtype}")
    if not np.isfinite(matrix).all():
        raise UserError(f"{where}: {path}: is not finite")
    return torch.from_numpy(matrix.astype(np.float32))


def check_writable(path: str, *, where: str) -> None:
    """Raise a UserError if the package is missing that writes the form which `path` has by its suffix."""
    if Path(path).suffix in WRITERS:
        load_extra(WRITERS[Path(path).suffix], where=f"{where}: {path}")


def write_named_arrays(path: str | Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays by name to `path` atomically: as .npz, .parquet or .safetensors, or else as a folder of `.npy`.

    Raises:
        UserError: there are texts, which .safetensors cannot hold, a package is missing, or the disk is full.
    """
    suffix = Path(path).suffix
    if suffix not in WRITERS:
        write_arrays(path, arrays)
        return
    with atomic_path(path) as temporary:
        if suffix == ".parquet":
            write_columns(temporary, arrays)
            return
        texts = [name for name, array in arrays.items() if array.dtype.kind == "U"]
        if texts:
            raise UserError(f"{path}: its {texts[0]} are texts, which .safetensors cannot hold; use .parquet or .npz")
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        load_extra("safetensors.torch", where=str(path)).save_file(tensors, temporary)
