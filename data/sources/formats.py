"""Files that hold arrays by name, or one without a name, opened as rows: `.npz`, safetensors, `.pt`, FAISS indexes.

What opens a form raises `UNREADABLE` where a file is of another or cut short, and UserErrors where more is to be said.
"""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy

from data.items import Array
from data.sources.parquet_files import open_parquet
from data.sources.rows import Rows, by_numbers, converted, in_file, in_memory
from utils.errors import UserError
from utils.extras import load_extra
from utils.files import read_torch

LONE = ""  # the name of an array that is all that a file holds: an `.npy`, or a tensor of torch.save
SAFETENSORS_TYPES = {
    **{"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2", "I8": "<i1", "U8": "<u1"},
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (2, 4, 8)},
}


def open_npy(path: Path, names: Sequence[str], where: str) -> dict[str, Rows]:
    """The array of an `.npy` file."""
    with path.open("rb") as file:
        shape, in_columns, dtype = _read_header(file)
        if in_columns and len(shape) > 1:
            return {LONE: in_memory(np.load(path, mmap_mode="c", allow_pickle=False))}
        return {LONE: in_file(path, shape, dtype, file.tell())}


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, column order and type of an `.npy` array, whose numbers follow in the file."""
    headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, in_columns, dtype = headers[npy.read_magic(file)](file)
    if dtype.hasobject:
        raise ValueError("its array holds Python objects; save texts with .astype(str)")
    return shape, in_columns, dtype


def open_npz(path: Path, names: Sequence[str], where: str) -> dict[str, Rows]:
    """The arrays of an `.npz` archive, where they lie in the file; those that are compressed are read."""
    with zipfile.ZipFile(path) as archive:
        members = set(archive.namelist())
        return {name: _member(archive, path, name) for name in names if f"{name}.npy" in members}


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> Rows:
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        shape, in_columns, dtype = _read_header(member)
        data = member.tell()
    if info.compress_type != zipfile.ZIP_STORED or (in_columns and len(shape) > 1):
        with np.load(path, allow_pickle=False) as content:
            return in_memory(content[name])
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)  # the lengths of the local header's name and extra field
        lengths = np.frombuffer(file.read(4), "<u2")
    return in_file(path, shape, dtype, info.header_offset + 30 + int(lengths.sum()) + data)


def open_safetensors(path: Path, names: Sequence[str], where: str) -> dict[str, Rows]:
    """The tensors of a safetensors file, where they lie in it."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(size, path.stat().st_size)))
    found: dict[str, Rows] = {}
    for name in [name for name in names if name in header]:
        kind, shape, (start, _) = (header[name][key] for key in ("dtype", "shape", "data_offsets"))
        if kind not in SAFETENSORS_TYPES:
            raise ValueError(f"`{name}` is {kind}, not one of {', '.join(SAFETENSORS_TYPES)}")
        rows = in_file(path, tuple(shape), SAFETENSORS_TYPES[kind], 8 + size + start)
        found[name] = _from_bfloat16(rows) if kind == "BF16" else rows
    return found


def open_torch(path: Path, names: Sequence[str], where: str) -> dict[str, Rows]:
    """The arrays of a file of torch.save, a tensor or a dict; tensors are memory-mapped."""
    content = read_torch(path, mmap=zipfile.is_zipfile(path))
    if isinstance(content, torch.Tensor):
        return {LONE: _held(content)}
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, neither a tensor nor a dict of tensors")
    return {name: _held(content[name]) for name in names if content.get(name) is not None}


def _held(value: Any) -> Rows:
    if not isinstance(value, torch.Tensor):  # a list of texts, which tensors cannot hold
        return in_memory(np.asarray(value))
    try:
        if value.dtype == torch.bfloat16:
            return _from_bfloat16(in_memory(value.detach().view(torch.int16).numpy().view(np.uint16)))
        return in_memory(value.detach().numpy())
    except (TypeError, RuntimeError) as error:  # a type or a layout that numpy does not have
        raise ValueError(error) from None


def _from_bfloat16(rows: Rows) -> Rows:
    """float32, of whose bits those of bfloat16 are the upper half."""
    return converted(rows, lambda halves: (halves.astype(np.uint32) << 16).view(np.float32), np.float32)


def open_index(path: Path, names: Sequence[str], where: str) -> dict[str, Rows]:
    """The `embeddings` of a FAISS index, as far as it has kept them, and the `ids` that they were given."""
    faiss = load_extra("faiss", where=where)
    try:
        index = faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", 0))  # faiss-cpu 1.9 has no such flag
    except RuntimeError as error:
        raise UserError(f"{where} cannot be read as a FAISS index; it may be cut short") from error
    outer_ids = None
    inner = index
    if isinstance(index, faiss.IndexIDMap):
        outer_ids = faiss.vector_to_array(index.id_map)
        inner = faiss.downcast_index(index.index)
    keys = np.arange(inner.ntotal)
    refusal = UserError(f"{where}: an index of type {type(inner).__name__} cannot give its vectors back")
    if isinstance(inner, faiss.IndexIVFFastScan):  # it would crash
        raise refusal
    if isinstance(inner, faiss.IndexIVF):
        lists = inner.invlists
        held = [faiss.rev_swig_ptr(lists.get_ids(i), lists.list_size(i)) for i in range(lists.nlist)]
        keys = np.sort(np.concatenate(held))
        inner.set_direct_map_type(faiss.DirectMap.Hashtable)
    try:
        inner.reconstruct_batch(keys[:1])
    except RuntimeError:
        raise refusal from None

    def take(rows: Array, owner: Any = index) -> Any:  # of the memory of `inner`
        return inner.reconstruct_batch(keys[rows])

    found: dict[str, Rows] = {"embeddings": by_numbers((len(keys), inner.d), np.float32, take)}
    if outer_ids is not None or not np.array_equal(keys, np.arange(len(keys))):  # not numbered by the index itself
        found["ids"] = in_memory(keys if outer_ids is None else outer_ids[keys])
    return found


UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)
OPENERS = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".parquet": open_parquet,
    ".safetensors": open_safetensors,
    ".pt": open_torch,
    ".pth": open_torch,
    ".faiss": open_index,
    ".index": open_index,
}
