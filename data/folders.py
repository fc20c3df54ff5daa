"""The layout on disk: DATA_ROOT/training/CLASS/* and DATA_ROOT/validation/CLASS/*, or splits of other names.

The classes are the folders of the training split, and the images of others are numbered by them, whatever folders there
are in those. Images lie in a class folder or at any depth below it. Hidden files and folders, and the folders that
other programs leave, are no part of the data set.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from data.items import Array
from utils.config import unknown_choice
from utils.data_roots import SPLITS, digest
from utils.errors import UserError
from utils.files import entries_below, is_folder, visible_entries
from utils.seeds import Stream, generator

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp", ".tif", ".tiff")
UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)
SIXTEEN_BITS, UNBOUNDED = {"I;16", "I;16B", "I;16L", "I;16N"}, {"I", "F"}  # PIL's modes of more than 8 bits
BITS_PER_SAMPLE = 258  # a tag of TIFF
THREADS, FILES_AT_A_TIME = 32, 1024  # that look up files' sizes: on a network each takes its time


@dataclass(frozen=True)
class ImageList:
    """The images of one split: of folders class by class, of a list in the order of its rows."""

    paths: list[Path]
    labels: list[int]  # index into `classes`, negative for an image of no class
    classes: list[str]  # names: the training split's sorted, of folders as strings, then what others there are
    notes: list[str] = field(default_factory=list, kw_only=True)  # what the user should know of the folders
    ids: Array | None = field(default=None, kw_only=True)  # (n,) int64 or texts; None: their places tell them apart
    groups: list[str] | None = field(default=None, kw_only=True)  # what the images are of, beside their class
    cameras: list[int] | None = field(default=None, kw_only=True)  # what took them

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, index: int) -> np.ndarray | None:
        """Image number `index` as uint8 (H, W, 3), or None where it is unreadable."""
        return read_pixels(self.paths[index])

    def files(self, data_root: str | Path) -> Iterator[tuple[str, int, int]]:
        """(name below `data_root`, bytes, time of its last change in ns) of each image; -1 where there is no file."""
        folder = str(Path(data_root, "_"))[:-1]
        parts = [self.paths[first : first + FILES_AT_A_TIME] for first in range(0, len(self), FILES_AT_A_TIME)]
        with ThreadPoolExecutor(THREADS) as pool:
            for part, found in zip(parts, pool.map(_sizes_and_times, parts), strict=True):
                for path, (size, time) in zip(part, found, strict=True):
                    yield str(path).removeprefix(folder), size, time

    def contents(self, data_root: str | Path) -> dict[str, tuple[int, str]]:
        """Of each class the number of its images, and a digest of their names below `data_root` and their sizes."""
        of_classes: dict[int, list[tuple[str, int]]] = defaultdict(list)
        for label, (name, size, _) in zip(self.labels, self.files(data_root), strict=True):
            of_classes[label].append((name, size))
        return {self.classes[label]: (len(facts), digest(facts)) for label, facts in of_classes.items()}

    def take(self, positions: Sequence[int]) -> "ImageList":
        """The images at these positions; the classes stay."""
        return replace(
            self,
            paths=[self.paths[i] for i in positions],
            labels=[self.labels[i] for i in positions],
            ids=None if self.ids is None else self.ids[list(positions)],
            groups=None if self.groups is None else [self.groups[i] for i in positions],
            cameras=None if self.cameras is None else [self.cameras[i] for i in positions],
        )


def list_images(
    data_root: str | Path,
    split: str,
    num_classes: int | None = None,
    *,
    all_classes: bool = False,
    training_split: str = SPLITS[0],
    other_splits: Sequence[str] = (),
) -> ImageList:
    """List the images of the folder `split`, numbered by the classes of the training split.

    Where there is no training folder, the classes are those of the split itself.

    Args:
        num_classes: only the first so many classes. Folder names sort as strings, so of CIFAR-100's folders 0..99 the
            first 50 are 0-5 and 10-53 (the published old model's classes).
        all_classes: every class, whatever `num_classes` says, and after them those that the training split lacks.
        training_split: the folder that says which classes there are.
        other_splits: folders whose classes are numbered too with `all_classes`, so that all of them have one numbering.

    Raises:
        UserError: the folder is missing, a class folder of the training split is empty, there are fewer classes than
            asked for, or no image of them.
    """
    folder, training = Path(data_root, split), Path(data_root, training_split)
    if not folder.is_dir():
        raise UserError(f"dataset_params.data_root: {data_root} has no folder `{split}`; prepare_dataset.py makes it")
    left_out: list[os.DirEntry[str]] = []
    names = class_folders(folder, left_out)
    if not names:
        raise UserError(f"dataset_params.data_root: {folder} has no class folders")
    is_training = split == training_split
    training, trained = (folder, names) if is_training or not training.is_dir() else (training, class_folders(training))
    if all_classes:
        num_classes = None
    if num_classes is not None and num_classes > len(trained):
        raise UserError(f"dataset_params.num_classes: {num_classes} classes asked for, {training} has {len(trained)}")
    wanted = trained[:num_classes]
    not_wanted = set(trained).difference(wanted)
    found = {name: images_below(folder / name, left_out) for name in names if name not in not_wanted}
    if is_training and (empty := [name for name in names if found.get(name) == []]):
        raise UserError(f"dataset_params.data_root: the class folder {folder / empty[0]} holds no image")
    classes, notes = _number_classes(wanted, [name for name in names if found.get(name)], folder, all_classes)
    if all_classes and not is_training and other_splits:
        elsewhere = {name for other in other_splits for name in class_folders(Path(data_root, other))}
        classes = wanted + sorted(elsewhere.union(classes).difference(wanted))
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = found.get(name, [])
        paths += images
        labels += [label] * len(images)
    return ImageList(paths, labels, classes, notes=left_out_notes(folder, left_out) + notes)


def class_folders(folder: Path, left_out: list[os.DirEntry[str]] | None = None) -> list[str]:
    """The names of the class folders in a split's folder, sorted; see `visible_entries` for `left_out`."""
    return [entry.name for entry in visible_entries(folder, left_out) if is_folder(entry)]


def images_below(folder: Path, left_out: list[os.DirEntry[str]] | None = None) -> list[Path]:
    """The image files in `folder` and below it, sorted by their paths; see `visible_entries` for `left_out`."""
    return [Path(entry.path) for _, entry in entries_below(folder, left_out=left_out) if is_image(entry.name)]


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image: hidden ones do not."""
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def left_out_notes(folder: Path, left_out: Iterable[os.DirEntry[str]]) -> list[str]:
    """Which images and folders `visible_entries` left out below a split's folder, in a line; none where it was none."""
    folders, images = [], []
    for entry in left_out:
        if is_folder(entry):
            folders.append(entry.path)
        elif is_image(entry.name.lstrip(".")):
            images.append(entry.path)
    kinds = (("hidden images", images), ("hidden, tool or circular folders", folders))
    found = [f"{kind}: {_counted(paths, folder)}" for kind, paths in kinds if paths]
    return [f"{folder}: left out {'; '.join(found)}"] if found else []


def _number_classes(
    wanted: list[str], present: list[str], folder: Path, all_classes: bool
) -> tuple[list[str], list[str]]:
    """The classes of a split in the order of their numbers, and lines for the user where they are not those `wanted`.

    `wanted` are of the training split; of those `present` the split's `folder` holds images.
    """
    missing = sorted(set(wanted).difference(present))
    others = sorted(set(present).difference(wanted))
    if len(missing) == len(wanted) and not (all_classes and others):
        raise UserError(no_common_class(f"dataset_params.data_root: {folder}"))
    notes = []
    if missing:
        notes.append(f"{folder}: no image of some of the {len(wanted):,} classes: {_counted(missing)}")
    if others:
        done = "numbered after its classes" if all_classes else "left out"
        notes.append(f"{folder}: class folders that the training split lacks, {done}: {_counted(others)}")
    return wanted + (others if all_classes else []), notes


def unknown_split(where: str, split: str, splits: Iterable[str]) -> str:
    """The text of an error about the name of a split that is not one of `splits`."""
    named_by = "dataset_params.training_split and validation_split, and eval_params.query_split and gallery_split"
    return f"{where}: {unknown_choice('split', split, splits)};\nthe splits to use are named by {named_by}"


def no_common_class(where: str) -> str:
    """The text of an error about a split whose classes are all unknown to training."""
    return (
        f"{where} holds no image of the classes of the training split; to train without validation accuracies, set "
        "validate_every=0"
    )


def _counted(names: list[str], folder: Path | None = None) -> str:
    """How many names there are, and the first few (relative to `folder`)."""
    first = [name if folder is None else os.path.relpath(name, folder) for name in names[:3]]
    return f"{len(names):,} ({', '.join(first)}{', ...' if len(names) > 3 else ''})"


def _sizes_and_times(paths: list[Path]) -> list[tuple[int, int]]:
    found = []
    for path in paths:
        try:
            status = path.stat()
            found.append((status.st_size, status.st_mtime_ns))
        except OSError:
            found.append((-1, -1))
    return found


def hold_out(training: ImageList, share: float) -> tuple[ImageList, ImageList]:
    """Divide the training images of each class -> those to train on, and a share of them that is held out.

    What is drawn is a function of the share and the images' places in their class alone: models that are trained on
    different classes hold out the same images of the classes that they share.

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
        order = _drawn_order(len(of_class), Stream.SHUFFLE)
        held += of_class[order[:count].sort().values].tolist()
        kept += of_class[order[count:].sort().values].tolist()
    return training.take(kept), training.take(held)


def thin_out(training: ImageList, thinned: range, share: float) -> ImageList:
    """The training images, of the classes `thinned` a share alone, one image a class at least.

    What is drawn is a function of the share and the images' places in their class alone, as in `hold_out`.

    Raises:
        UserError: there are fewer classes.
    """
    if thinned.stop > len(training.classes):
        raise UserError(
            f"dataset_params.thinned.classes: [{thinned.start}, {thinned.stop}] asked for, "
            f"{len(training.classes)} classes are trained on"
        )
    kept: list[int] = []
    labels = torch.tensor(training.labels)
    for label in range(len(training.classes)):
        (of_class,) = (labels == label).nonzero(as_tuple=True)
        if label in thinned:
            order = _drawn_order(len(of_class), Stream.THINNED)
            of_class = of_class[order[: max(1, round(share * len(of_class)))].sort().values]
        kept += of_class.tolist()
    return training.take(kept)


def _drawn_order(count: int, stream: Stream) -> torch.Tensor:
    """A random order (count,) of the images of a class: by their number, in the place of a run's seed."""
    return torch.randperm(count, generator=generator(count, stream))


def read_image(file: Path) -> Image.Image | None:
    """Decode an image file to RGB (grayscale and CMYK too), or None where it is unreadable.

    That is: it is truncated, no image, or of levels whose range is not known (see `refusal`). Of 16-bit levels the
    upper eight bits are taken, as PIL takes them of 16-bit colours. An orientation in the EXIF data is not applied:
    pixels are as they are stored, as in torchvision's loaders.
    """
    try:
        with Image.open(file) as image:
            image.load()
            return image if image.mode == "RGB" else _rgb(image)
    except UNREADABLE:
        return None


def refusal(file: Path) -> str | None:
    """Why `read_image` refuses an image that is not damaged, and what to do; None of any other."""
    try:
        with Image.open(file) as image:
            if image.mode in UNBOUNDED and _bits(image) is None:
                return f"levels of mode {image.mode} have no known range: save it with 8 or 16 bits"
            return None
    except UNREADABLE:
        return None


def _rgb(image: Image.Image) -> Image.Image | None:
    if (bits := _bits(image)) is not None:
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
    return None if image.mode in UNBOUNDED else image.convert("RGB")


def _bits(image: Image.Image) -> int | None:
    """The bits of a level where they are more than 8 and known; None otherwise."""
    if image.mode in SIXTEEN_BITS:
        return getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0]  # of a TIFF they may be 12
    # What PIL has made of 16 bits: Pillow 10 of a PNG, each version of a PPM, which it brings to the full range.
    return 16 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def read_pixels(file: Path) -> np.ndarray | None:
    """Decode an image file to uint8 (H, W, 3), or None where it is unreadable."""
    image = read_image(file)
    return None if image is None else np.asarray(image)
