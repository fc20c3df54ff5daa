"""Files that are whole or absent: write to a temporary name, then rename."""

import errno
import glob
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.errors import NO_SPACE, UNUSABLE, UserError

# What file systems say that sync no folder: they keep its names safe themselves, or know no way to.
NO_FOLDER_SYNC = (errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name `path` when the block ends well, and goes otherwise.

    The block makes a file of it, or a folder.

    Raises:
        UserError: the disk is full, the folder cannot be written, or `path` is a folder.
    """
    path = Path(path)
    temporary = _temporary(path, os.getpid())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise UserError(f"{path}: no space left on the disk; free some and run the command again") from error
        if error.errno in UNUSABLE:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        with suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


def _temporary(path: Path, process: int | str) -> Path:
    return path.with_name(f".{path.name}.{process}.tmp")


def remove_leftovers(path: str | Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote `path`."""
    path = Path(path)
    own = _temporary(path, os.getpid())
    for temporary in path.parent.glob(_temporary(Path(glob.escape(path.name)), "*").name):
        if temporary != own:
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make the content of a file durable, or the names in a folder as far as its file system does that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` atomically and durably."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8; what has no place there (of a file name) is escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_array(path: str | Path, array: torch.Tensor) -> None:
    """Write one array to `path` atomically, as .npy."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array.cpu().numpy())


def write_arrays(path: str | Path, arrays: Mapping[str, torch.Tensor | np.ndarray]) -> None:
    """Write arrays by name to `path` atomically: as an `.npz`, or under any other name as a folder of `.npy` files."""
    values: dict[str, Any] = {
        name: array.cpu().numpy() if isinstance(array, torch.Tensor) else array for name, array in arrays.items()
    }
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez(file, **values)
        else:
            temporary.mkdir()
            for name, value in values.items():
                with (temporary / f"{name}.npy").open("wb") as file:
                    np.save(file, value)


def write_torch(path: str | Path, value: Any) -> None:
    """`torch.save` to `path` atomically; serialised in memory first, so that a full disk is a plain OSError."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_bytes(path, buffer.getvalue())


def read_torch(path: str | Path, *, mmap: bool = False) -> Any:
    """`torch.load` of plain values and tensors, onto the CPU, memory-mapped if asked; no code in the file is run.

    Raises:
        ValueError: the file is not of torch.save, holds more than plain values, or is cut short.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # foreign bytes are read as operations of a pickle, and fail in any way that these can
        raise ValueError(f"{path}: cannot be read by torch.load ({error})") from error


def files_below(folder: str | Path, name: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """(relative name, status) of the files below `folder`, through links, sorted by name; hidden ones are left out."""
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        if entry.is_dir():
            yield from files_below(entry.path, f"{name}/{entry.name}")
        elif entry.is_file():  # false for a link to nothing
            yield f"{name}/{entry.name}", entry.stat()


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's content, or of the names and contents of a folder's files, in hexadecimal."""
    if Path(path).is_dir():
        contents = [f"{name}\0{sha256_of(f'{path}{name}')}\0" for name, _ in files_below(path)]
        return hashlib.sha256("".join(contents).encode(errors="surrogateescape")).hexdigest()
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
