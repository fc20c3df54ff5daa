"""Files that are whole or absent: write to a temporary name, then rename."""

import errno
import glob
import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.errors import NO_SPACE, UNUSABLE, UserError

# What file systems say that sync no folder: they keep its names safe themselves, or know no way to.
NO_FOLDER_SYNC = (errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP)
# Folders that other programs leave beside the user's, and that do not have hidden names.
TOOL_FOLDERS = frozenset({"$RECYCLE.BIN", "@eaDir", "__MACOSX", "__pycache__", "lost+found"})


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
        with suppress(OSError):  # a name that is too long, say, of which the user has been told
            if temporary.is_dir():
                shutil.rmtree(temporary)
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
                np.save(temporary / f"{name}.npy", value)


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
    except OSError as error:
        if error.errno != errno.EINVAL:  # which a small archive that is cut short gives
            raise
        raise ValueError(f"{path}: cannot be read by torch.load ({error})") from error
    except Exception as error:  # foreign bytes are read as operations of a pickle, and fail in any way that these can
        raise ValueError(f"{path}: cannot be read by torch.load ({error})") from error


def visible_entries(folder: str | Path, left_out: list[os.DirEntry[str]] | None = None) -> list[os.DirEntry[str]]:
    """What lies in `folder`, sorted by name.

    Not hidden entries, nor folders of other programs (`TOOL_FOLDERS`), nor links to a folder that they lie in, which
    would never end; these are added to `left_out`.
    """
    with os.scandir(folder) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    visible, around = [], None
    for entry in entries:
        out = entry.name.startswith(".")
        if not out and is_folder(entry):
            out = entry.name in TOOL_FOLDERS
            if not out and entry.is_symlink():
                around = around or _folders_around(folder)
                status = entry.stat()
                out = (status.st_dev, status.st_ino) in around
        if not out:
            visible.append(entry)
        elif left_out is not None:
            left_out.append(entry)
    return visible


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link that cannot be followed (to itself, say) is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _folders_around(folder: str | Path) -> set[tuple[int, int]]:
    """(device, inode) of `folder` and of all that it lies in, by its name and by where links lead."""
    names = Path(folder).absolute(), Path(folder).resolve()
    statuses = [around.stat() for name in names for around in (name, *name.parents)]
    return {(status.st_dev, status.st_ino) for status in statuses}


def entries_below(
    folder: str | Path, name: str = "", left_out: list[os.DirEntry[str]] | None = None
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(relative name, entry) of all but folders below `folder`, through links, sorted by name.

    Left out is what `visible_entries` leaves out. No file's status is looked up.
    """
    for entry in visible_entries(folder, left_out):
        if is_folder(entry):
            yield from entries_below(entry.path, f"{name}/{entry.name}", left_out)
        else:
            yield f"{name}/{entry.name}", entry


def files_below(folder: str | Path, name: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """(relative name, status) of the files among `entries_below`; a link that cannot be followed is none."""
    for relative, entry in entries_below(folder, name):
        try:
            status = entry.stat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            yield relative, status


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's content, or of the names and contents of a folder's files, in hexadecimal."""
    if Path(path).is_dir():
        contents = [f"{name}\0{sha256_of(f'{path}{name}')}\0" for name, _ in files_below(path)]
        return hashlib.sha256("".join(contents).encode(errors="surrogateescape")).hexdigest()
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
