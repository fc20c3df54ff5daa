"""The layout on disk: DATA_ROOT/training/CLASS/* and DATA_ROOT/validation/CLASS/*."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from utils.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class ImageList:
    """The images of one split, class by class."""

    paths: list[Path]
    labels: list[int]  # index into `classes`
    classes: list[str]  # folder names, sorted as strings

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, index: int) -> np.ndarray | None:
        """Image number `index` as uint8 (H, W, 3), or None where it is unreadable."""
        return read_pixels(self.paths[index])


def list_images(data_root: str | Path, split: str, num_classes: int | None = None) -> ImageList:
    """List the images of `split` ("training" or "validation").

    Args:
        num_classes: only the first so many class folders. Folder names sort as strings, so of CIFAR-100's folders
            0..99 the first 50 are 0-5 and 10-53 (the published old model's classes).

    Raises:
        UserError: the folder is missing, a class folder is empty, or there are fewer classes than asked for.
    """
    folder = Path(data_root) / split
    if not folder.is_dir():
        raise UserError(f"dataset_params.data_root: {data_root} has no folder `{split}`; prepare_dataset.py makes it")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        raise UserError(f"dataset_params.data_root: {folder} has no class folders")
    classes = first_classes(classes, num_classes, folder)
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in SUFFIXES)
        if not images:
            raise UserError(f"dataset_params.data_root: the class folder {folder / name} holds no image")
        paths += images
        labels += [label] * len(images)
    return ImageList(paths, labels, classes)


def first_classes(classes: list[str], num_classes: int | None, folder: Path) -> list[str]:
    """The first `num_classes` of the sorted classes in `folder`; all if None.

    Raises:
        UserError: there are fewer.
    """
    if num_classes is not None and num_classes > len(classes):
        raise UserError(f"dataset_params.num_classes: {num_classes} classes asked for, {folder} has {len(classes)}")
    return classes[:num_classes]


def read_image(file: Path | BinaryIO) -> Image.Image | None:
    """Decode an image file to RGB (grayscale and CMYK too), or None where it is truncated or no image."""
    try:
        with Image.open(file) as image:
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")  # which would copy
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def read_pixels(file: Path | BinaryIO) -> np.ndarray | None:
    """Decode an image file to uint8 (H, W, 3), or None where it is unreadable."""
    image = read_image(file)
    return None if image is None else np.asarray(image)
