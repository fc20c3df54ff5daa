"""Data sets onto disk, whole or not at all: written beside the final place, stamped, and renamed at the end."""

import gzip
import io
import json
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.data_roots import SPLITS, STAMP
from utils.errors import NO_SPACE, UserError
from utils.locks import hold


@dataclass(frozen=True)
class Recipe:
    """What a prepared folder was made from. Two folders of equal recipes hold the same images."""

    dataset: str
    source: str | None = None  # a path; None for the data set's own origin (its download, its renderer)
    parameters: dict[str, int] | None = None
    split: str | None = None  # what is known of the division into splits; two of one recipe may differ in it


def prepare(output: Path, recipe: Recipe, fill: Callable[[Path], dict[str, int]]) -> bool:
    """Make the folder `output` by `fill(folder)`, unless it is there already.

    Args:
        fill: writes `training/CLASS/*` and `validation/CLASS/*` into a folder; returns the images written per split.

    Returns:
        Whether there was anything to do.

    Raises:
        UserError: `output` holds something else, or another run is at work on it.
    """
    output = output.resolve()  # of a link, the folder that it points to is replaced
    if is_prepared(output, recipe):
        return False
    with _whole_folder(output) as folder:
        counts = fill(folder)
        (folder / STAMP).write_text(json.dumps(asdict(recipe) | {"images": counts}, indent=2) + "\n")
    return True


def is_prepared(output: Path, recipe: Recipe) -> bool:
    """Whether `output` holds what `recipe` makes; a recipe without a source accepts the data set from any.

    Raises:
        UserError: `output` is in use for something else.
    """
    if output.is_file():
        raise UserError(f"{output}: is a file, and stays as it is; choose another --output")
    if not output.exists() or not any(output.iterdir()):
        return False
    try:
        stamp = read_stamp(output)
    except UserError:
        raise UserError(
            f"{output}: holds files that prepare_dataset.py did not write, and stays as it is; "
            "move them away or choose another --output"
        ) from None
    wanted = {name: getattr(recipe, name) for name in ("dataset", "source", "parameters")}
    for name, value in wanted.items():
        if value is not None and stamp.get(name) != value:
            raise UserError(
                f"{output}: was prepared with {name} {stamp.get(name)}, not {value}; "
                "delete the folder or choose another --output"
            )
    for split in SPLITS:
        if not (output / split).is_dir():
            raise UserError(f"{output}: its folder `{split}` is gone; delete the rest and run the command again")
    return True


def read_stamp(folder: Path) -> dict[str, Any]:
    """The stamp of a prepared folder: its recipe and, under `images`, the count of each split.

    Its `split` is "official" where the download's checksum vouches for the division into training and validation
    images, and says what is known of it otherwise; stamps of earlier versions have none.

    Raises:
        UserError: the folder has none.
    """
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stamp = None
    if not isinstance(stamp, dict) or not {"dataset", "images"} <= stamp.keys():
        raise UserError(f"{folder}: is no folder that prepare_dataset.py finished")
    return stamp


def write_files(folder: Path, files: Iterable[tuple[str, bytes]]) -> int:
    """Write (path relative to `folder`, content) pairs, making their folders; returns how many."""
    count = 0
    for name, content in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        count += 1
    return count


@contextmanager
def open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar file, compressed or not, to read all of it in the block; any damage is the user's to mend.

    Raises:
        UserError: naming the file.
    """
    try:
        with tarfile.open(path) as archive:
            yield archive
            # A compressed file's checksum comes after the end of the archive, where reading stopped.
            while archive.fileobj and archive.fileobj.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise UserError(f"{path}: is damaged or no tar file ({reason})") from None
    except PermissionError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None


def encode_png(image: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as the content of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "png")
    return buffer.getvalue()


@contextmanager
def _whole_folder(output: Path) -> Iterator[Path]:
    """Yield an empty folder beside `output`, which takes that name when the block ends well and goes otherwise.

    A killed run leaves its folder, `.NAME.partial`; the next run empties it.
    """
    partial = output.with_name(f".{output.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be made ({error.strerror})") from None
    with _lock(partial, output):
        try:
            for entry in partial.iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            yield partial
            partial.replace(output)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise UserError(f"{output}: no space left on the disk; free some and run the command again") from error
            raise


@contextmanager
def _lock(partial: Path, output: Path) -> Iterator[None]:
    """Hold `partial` against other processes."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        hold(descriptor, output)
        # Another run may have renamed the folder between its opening and its locking here.
        if not (partial.exists() and os.path.samestat(os.fstat(descriptor), partial.stat())):
            raise BlockingIOError
        yield
    except BlockingIOError:
        raise UserError(f"{output}: another run is preparing it; wait until it is done") from None
    finally:
        os.close(descriptor)
