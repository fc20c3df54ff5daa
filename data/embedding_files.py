"""Files of named arrays, as embeddings with ids and labels, in every form that they come in."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.items import Array
from data.lance_tables import is_table, read_table
from data.parquet_files import read_columns, shards_of, write_columns
from utils.errors import UserError
from utils.extras import load_extra
from utils.files import atomic_path, read_torch, write_arrays

FORMS = ".npz, a folder of .npy, .parquet or a folder of it, .safetensors, .pt or a Lance table"
LONE = ""  # the name of an array that is all that a file holds: a `.npy`, or a tensor of torch.save
EXTRAS = {".parquet": "pyarrow.parquet", ".safetensors": "safetensors.torch"}


def read_arrays(path: str | Path, names: Sequence[str], *, where: str, lone: bool = False) -> dict[str, Array]:
    """Those of the named arrays that a file has; of a folder of `.npy` memory-mapped, copy-on-write.

    The rows of a folder of Parquet files follow each other in the order of the numbers in their names. bfloat16, which
    numpy does not know, comes as float32.

    Args:
        where: the config key that names it, for error messages.
        lone: whether a file of one array without a name will do, which is then called LONE.

    Raises:
        UserError: no such file, not one of FORMS, arrays of something else than numbers and texts, or the package that
            reads the form is not installed.
    """
    path = Path(path)
    kind = f"file with `{names[0]}`" if lone else "embedding file"
    if not path.exists():
        raise UserError(f"{where}: there is no {kind} {path}")
    try:
        arrays = _read(path, names, f"{where}: {path}")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{where}: {path} is no {kind} ({FORMS}): {reason}") from None
    if LONE in arrays and not lone:
        raise UserError(f"{where}: {path} is no {kind} ({FORMS}): it is a single array without a name")
    return arrays


def _read(path: Path, names: Sequence[str], where: str) -> dict[str, Array]:
    if is_table(path):
        return read_table(path, names, where=where)
    if path.is_dir():
        files = {name: path / f"{name}.npy" for name in names}
        arrays = {name: _load(file, name, mmap_mode="c") for name, file in files.items() if file.exists()}
        shards = [] if arrays else shards_of(path)
        return read_columns(shards, names, where=where) if shards else arrays
    if path.suffix == ".parquet":
        return read_columns([path], names, where=where)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, names, where)
    if path.suffix in (".pt", ".pth"):
        return _read_torch(path, names)
    content = _load(path, "the array")
    if not isinstance(content, np.lib.npyio.NpzFile):
        return {LONE: content}
    arrays = {}
    with content:
        for name in names:
            if name in content:
                with _plain_values(name):
                    arrays[name] = content[name]
    return arrays


def _load(file: Path, name: str, mmap_mode: Any = None) -> Any:
    with _plain_values(name):
        return np.load(file, mmap_mode=mmap_mode, allow_pickle=False)


@contextmanager
def _plain_values(name: str) -> Iterator[None]:
    """Show a way out where numpy finds an array of Python objects, as texts become by way of pandas."""
    try:
        yield
    except ValueError as error:
        if not any(words in str(error) for words in ("Object arrays", "Python objects")):
            raise
        raise ValueError(f"{name}: an array of Python objects; save it as {name}.astype(str), or as numbers") from None


def _read_torch(path: Path, names: Sequence[str]) -> dict[str, Array]:
    content = read_torch(path)
    if isinstance(content, torch.Tensor):
        return {LONE: _plain(content)}
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, not a dictionary of tensors")
    return {name: _plain(content[name]) for name in names if name in content}


def _read_safetensors(path: Path, names: Sequence[str], where: str) -> dict[str, Array]:
    safetensors = load_extra("safetensors", where=where)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            present = set(file.keys())
            return {name: _plain(file.get_tensor(name)) for name in names if name in present}
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from None


def _plain(value: Any) -> Array:
    if not isinstance(value, torch.Tensor):  # a list of texts, which tensors cannot hold
        return np.array(value)
    return (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()


def read_matrix(path: str | Path, name: str, *, where: str, dim: int | None = None) -> torch.Tensor:
    """A vector of each class, (C, d) float32: the array of that name, or the only one of a `.npy` or of a tensor.

    Args:
        dim: the dimension d that it should have.

    Raises:
        UserError: as `read_arrays`, there is none, or it is something else.
    """
    arrays = read_arrays(path, [name], where=where, lone=True)
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
    if Path(path).suffix in EXTRAS:
        load_extra(EXTRAS[Path(path).suffix], where=f"{where}: {path}")


def write_named_arrays(path: str | Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays by name to `path` atomically: as .npz, .parquet or .safetensors, or else as a folder of `.npy`.

    Raises:
        UserError: there are texts, which .safetensors cannot hold, a package is missing, or the disk is full.
    """
    suffix = Path(path).suffix
    if suffix not in EXTRAS:
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
