"""The layout on disk: DATA_ROOT/training/CLASS/* and DATA_ROOT/validation/CLASS/*."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from utils.errors import UserError
from utils.seeds import Stream, generator

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

    def take(self, positions: Sequence[int]) -> Self:
        """The images at these positions; the classes stay."""
        return replace(self, paths=[self.paths[i] for i in positions], labels=[self.labels[i] for i in positions])


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


def hold_out(training: ImageList, share: float) -> tuple[ImageList, ImageList]:
    """Divide the training images of each class -> those to train on, and a share of them that is held out.

    What is drawn is a function of the share and the images' places in their class alone: models that are trained on
    different classes, from folders or from a packed copy, hold out the same images of the classes that they share.

    Raises:
        UserError: a class has too few images to divide.
    """
    kept: list[int] = []
    held: list[int] = []
    labels = torch.tensor(training.labels)
    for label, name in enumerate(training.classes):
        (of_class,) = (labels == label).nonzero(as_tuple=True)
        count = max(1, round(share * len(of_class)))
        if count >= len(of_class):
            raise UserError(f"dataset_params.held_out: class {name} has {len(of_class)} training images, too few")
        # No seed of a run: in its place stands the number of images, which is what the draw may depend on.
        order = torch.randperm(len(of_class), generator=generator(len(of_class), Stream.SHUFFLE))
        held += of_class[order[:count].sort().values].tolist()
        kept += of_class[order[count:].sort().values].tolist()
    return training.take(kept), training.take(held)


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
