"""CIFAR-100 (Krizhevsky, 2009) as PNG files: torchvision's download, or a local copy of the original Python files.

Of a local copy nothing is known: it is read without running anything in it.
"""

import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm import tqdm

from data.preparation import encode_png, open_tar, write_files
from utils.errors import NO_SPACE, UserError

NUM_CLASSES = 100
SIZE = 32
FOLDER = "cifar-100-python"
FILES = {"train": "training", "test": "validation"}  # the original name of each split


@dataclass(frozen=True)
class LabelledImages:
    """Images as uint8 (n, 32, 32, 3) with their fine labels (n,)."""

    images: np.ndarray
    labels: np.ndarray


def lay_out(folder: Path, source: Path | None) -> dict[str, int]:
    """Write `training/LABEL/*.png` and `validation/LABEL/*.png`, labels 0..99, into `folder`.

    Args:
        source: a folder that holds `train` and `test` or `cifar-100-python/`, or a tar file of those; None downloads.

    Returns:
        The images written per split.

    Raises:
        UserError: the source is not there or is no CIFAR-100; the download failed.
    """
    contents = _download(folder) if source is None else read_source(source)
    splits = {split: parse(contents.pop(name), f"{source or FOLDER}: {name}") for name, split in FILES.items()}
    return {split: write_files(folder / split, _encode(images, split)) for split, images in splits.items()}


def read_source(source: Path) -> dict[str, bytes]:
    """The content of the files `train` and `test` of a folder or tar file.

    Raises:
        UserError: there is no such source, or it lacks one of them.
    """
    if source.is_dir():
        root = source / FOLDER if (source / FOLDER).is_dir() else source
        contents = {name: (root / name).read_bytes() for name in FILES if (root / name).is_file()}
    elif source.is_file():
        contents = _read_archive(source)
    else:
        raise UserError(f"--source: there is no {source}")
    for name in FILES:
        if name not in contents:
            raise UserError(f"--source: {source} has no file `{name}`; it should hold CIFAR-100's `train` and `test`")
    return contents


def _read_archive(source: Path) -> dict[str, bytes]:
    """Read from a tar file in memory; nothing of it is extracted, so that no name in it can lead anywhere."""
    contents = {}
    with open_tar(source) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None and path.name in FILES and path.parent.name in ("", FOLDER):
                contents[path.name] = file.read()
    return contents


def parse(content: bytes, name: str) -> LabelledImages:
    """Parse one of the original files, pickled by Python 2 or 3.

    Raises:
        UserError: naming the file as `name`; it is no such file, or it holds more than arrays and plain values.
    """
    try:
        batch = _DataUnpickler(io.BytesIO(content), name).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{name}: is not a CIFAR-100 file ({type(error).__name__}: {error})") from None
    if not isinstance(batch, dict):
        raise UserError(f"{name}: is not a CIFAR-100 file; it holds no dictionary")
    values = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    for key in ("data", "fine_labels"):
        if key not in values:
            raise UserError(f"{name}: is not a CIFAR-100 file; it has no `{key}`")
    return LabelledImages(_images(values["data"], name), _labels(values["fine_labels"], len(values["data"]), name))


def _images(data: Any, name: str) -> np.ndarray:
    width = 3 * SIZE * SIZE
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != width:
        got = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise UserError(f"{name}: `data` should be uint8 of shape (n, {width}), got {got}")
    if len(data) == 0:
        raise UserError(f"{name}: `data` holds no image")
    return data.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)  # (n, 3 * 32 * 32) -> (n, 32, 32, 3)


def _labels(values: Any, count: int, name: str) -> np.ndarray:
    try:
        labels = np.asarray(values)
    except ValueError:  # nested lists of different lengths
        labels = np.empty(0)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"{name}: `fine_labels` should be a list of whole numbers")
    if len(labels) != count:
        raise UserError(f"{name}: has {count} images but {len(labels)} `fine_labels`")
    if labels.min() < 0 or labels.max() >= NUM_CLASSES:
        raise UserError(
            f"{name}: `fine_labels` should be 0..{NUM_CLASSES - 1}, they span {labels.min()}..{labels.max()}"
        )
    return labels


def _encode_text(text: str, encoding: str) -> bytes:
    """What Python 3 calls to restore bytes from a protocol-2 pickle; only with the encoding that it uses there."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode("latin-1")


class _DataUnpickler(pickle.Unpickler):
    """Reads plain values and numpy arrays, and refuses every other name, such as a function to call."""

    # Which of numpy's modules has what restores an array depends on the version that wrote it, and on the protocol.
    MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
    NAMES = ("ndarray", "dtype", "_reconstruct", "_frombuffer")

    def __init__(self, file: io.BytesIO, name: str) -> None:
        super().__init__(file, encoding="latin-1")  # Python 2 wrote text and array bytes as one type
        self._name = name

    def find_class(self, module: str, name: str) -> Any:
        """The few names that arrays need."""
        if module in self.MODULES and name in self.NAMES:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return _encode_text
        raise UserError(f"{self._name}: refused; it asks for `{module}.{name}`, which data has no need of")


def _encode(split: LabelledImages, title: str) -> Iterator[tuple[str, bytes]]:
    """(LABEL/INDEX.png, content) of every image; INDEX is its place in the original file."""
    pairs = zip(split.images, split.labels.tolist(), strict=True)
    for index, (image, label) in enumerate(tqdm(pairs, title, total=len(split.labels), unit=" images")):
        yield f"{label}/{index:05d}.png", encode_png(image)


def _download(folder: Path) -> dict[str, bytes]:
    """Fetch the official archive by way of `folder`, and read it; torchvision checks it by its checksum."""
    from torchvision.datasets import CIFAR100  # here: only a download needs torchvision, and its import takes seconds
    from torchvision.datasets.utils import download_url

    try:
        with TemporaryDirectory(dir=folder) as temporary:
            download_url(CIFAR100.url, temporary, CIFAR100.filename, CIFAR100.tgz_md5)
            return read_source(Path(temporary, CIFAR100.filename))
    except (OSError, HTTPException, RuntimeError) as error:  # offline, refused, broken off; wrong checksum
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise
        raise UserError(
            f"cannot download {CIFAR100.url} ({error}).\n"
            "Without a network, pass --source DIR_OR_ARCHIVE: a local copy of cifar-100-python or its .tar.gz"
        ) from None
