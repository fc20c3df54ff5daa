"""ILSVRC2012 in the project's layout: class folders linked where they exist, made from the official files where not.

The source is a folder. Training images: `train/` or `training/` with class folders, or ILSVRC2012_img_train.tar.
Validation images: `val/` or `validation/` with class folders; or flat images there or in ILSVRC2012_img_val.tar, and
their labels beside: Kaggle's LOC_val_solution.csv; validation_labels.txt, lines `FILE WNID`; or the official devkit,
which scipy reads. torchvision checks and unpacks the tar files.
"""

import codecs
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from data.folders import class_folders, images_below, is_image, left_out_notes
from utils.errors import UserError

FOLDERS = {"training": ("train", "training"), "validation": ("val", "validation")}
TRAINING_TAR = "ILSVRC2012_img_train.tar"
VALIDATION_TAR = "ILSVRC2012_img_val.tar"
DEVKIT_TAR = "ILSVRC2012_devkit_t12.tar.gz"
LABEL_FILES = ("LOC_val_solution.csv", "validation_labels.txt")


def lay_out(folder: Path, source: Path | None) -> dict[str, int]:
    """Fill `folder` with `training/WNID/*` and `validation/WNID/*`, links into `source` where its layout allows.

    Returns:
        The images of each split.

    Raises:
        UserError: `source` lacks a split or the labels of flat validation images, or a file in it is damaged.
    """
    if source is None:
        raise UserError("--source: ImageNet has to be fetched by hand (image-net.org); name the folder that holds it")
    source = source.resolve()
    if not source.is_dir():
        raise UserError(f"--source: there is no folder {source}")
    origins = {
        "training": _find(source, "training", TRAINING_TAR),
        "validation": _find(source, "validation", VALIDATION_TAR),
    }
    labels = {} if _has_classes(origins["validation"]) else _read_labels(source, folder)
    for split, origin in origins.items():
        if _has_classes(origin):
            (folder / split).symlink_to(origin, target_is_directory=True)
        elif split == "training":
            with _official(origin) as official:
                official.parse_train_archive(folder, str(origin), "training")
        elif origin.is_dir():
            _link_images(origin, folder / split, labels)
        else:
            _unpack_validation(origin, folder, labels)
    counts = {split: _count_images(folder / split, origins[split]) for split in origins}
    _check_same_classes(folder, source)
    return counts


def _find(source: Path, split: str, tar: str) -> Path:
    """The folder or the tar file that holds a split."""
    candidates = [source / name for name in FOLDERS[split]]
    for folder in candidates:
        if folder.is_dir() and (_has_classes(folder) or (split == "validation" and _flat_images(folder))):
            return folder
    if (source / tar).is_file():
        return source / tar
    names = " or ".join(f"`{name}`" for name in FOLDERS[split])
    raise UserError(f"--source: {source} has neither a folder {names} with class folders nor {tar}")


def _has_classes(origin: Path) -> bool:
    return origin.is_dir() and bool(class_folders(origin))


def _flat_images(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if is_image(entry.name))


def _count_images(folder: Path, origin: Path) -> int:
    """The images below the class folders of a split, each of which must have one."""
    total, title = 0, f"{folder.name}: counting"
    folder = folder.resolve()  # a link is into the source, whose path says more
    left_out: list[os.DirEntry[str]] = []
    for name in tqdm(class_folders(folder, left_out), title, unit=" classes"):
        count = len(images_below(folder / name, left_out))
        if count == 0:
            raise UserError(f"--source: {origin}: the class `{name}` has no image")
        total += count
    for note in left_out_notes(folder, left_out):
        tqdm.write(note)
    return total


def _check_same_classes(folder: Path, source: Path) -> None:
    """Labels are places among the class folders, so that a class missing from one split would shift all after it."""
    training, validation = (set(class_folders(folder / split)) for split in FOLDERS)
    for name, ours, others in (("training", training, validation), ("validation", validation, training)):
        if ours - others:
            raise UserError(f"--source: {source}: the class `{min(ours - others)}` is in the {name} images only")


def _read_labels(source: Path, folder: Path) -> dict[str, str]:
    """The class of each validation image: stem of the file name -> WordNet id; `folder` is to unpack in."""
    for name in LABEL_FILES:
        if (source / name).is_file():
            return _read_label_file(source / name)
    if (source / DEVKIT_TAR).is_file():
        return _read_devkit(source / DEVKIT_TAR, folder)
    raise UserError(
        f"--source: the validation images of {source} are in one flat folder and their classes are not given;\n"
        f"add {DEVKIT_TAR}, {LABEL_FILES[0]} (Kaggle) or {LABEL_FILES[1]} (lines `FILE WNID`)"
    )


def _read_label_file(path: Path) -> dict[str, str]:
    """Lines `FILE WNID ...` or `FILE,WNID ...`; FILE may lack its suffix, and Kaggle's heading is skipped."""
    labels = {}
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path}: is UTF-16 text; save it as UTF-8")
    for number, line in enumerate(content.decode("utf-8-sig", errors="replace").splitlines(), start=1):
        words = line.replace(",", " ").split()
        if not words or words[0] == "ImageId":
            continue
        if len(words) < 2 or not _is_wnid(words[1]):
            raise UserError(f"{path}, line {number}: should be `FILE WNID`, got `{line[:80]}`")
        labels[PurePosixPath(words[0]).stem] = words[1]
    return labels


def _is_wnid(word: str) -> bool:
    return len(word) == 9 and word[0] == "n" and word[1:].isdecimal()


def _read_devkit(archive: Path, folder: Path) -> dict[str, str]:
    """The devkit numbers the classes (meta.mat) and lists the class number of validation image 1, 2, ..."""
    try:
        with _official(archive) as official:
            official.parse_devkit_archive(folder, str(archive))
            _, wnids = official.load_meta_file(folder)
    except ImportError:
        raise UserError(
            f"{archive}: its list of classes is a MATLAB file; pip install scipy, or give {LABEL_FILES[0]} (Kaggle)"
        ) from None
    (folder / official.META_FILE).unlink()
    return {_official_name(number): wnid for number, wnid in enumerate(wnids, start=1)}


def _unpack_validation(archive: Path, folder: Path, labels: dict[str, str]) -> None:
    """Unpack a flat tar file, and sort its images into class folders."""
    wnids = [_class_of(_official_name(number), labels) for number in range(1, len(labels) + 1)]
    with _official(archive) as official:
        official.parse_val_archive(folder, str(archive), wnids, "validation")
    _check_all(archive, len(labels) + len(_flat_images(folder / "validation")), labels)


def _official_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


@contextmanager
def _official(archive: Path) -> Iterator[Any]:
    """torchvision's module, which checks an official file by its checksum before it unpacks it."""
    from torchvision.datasets import imagenet  # here: its import takes seconds

    tqdm.write(f"{archive.name}: checking and unpacking (the training images take long)")
    try:
        yield imagenet
    except RuntimeError:
        raise UserError(
            f"{archive}: is damaged or not the official file: its checksum is another; fetch it again, "
            "or unpack it into class folders yourself"
        ) from None


def _link_images(origin: Path, folder: Path, labels: dict[str, str]) -> None:
    """Sort flat images into class folders, as links."""
    images = _flat_images(origin)
    for image in tqdm(images, "validation", unit=" images"):
        class_folder = folder / _class_of(image.name, labels)
        class_folder.mkdir(parents=True, exist_ok=True)
        (class_folder / image.name).symlink_to(image)
    _check_all(origin, len(images), labels)


def _class_of(image: str, labels: dict[str, str]) -> str:
    try:
        return labels[PurePosixPath(image).stem]
    except KeyError:
        raise UserError(f"--source: the labels of the validation images do not name {image}") from None


def _check_all(origin: Path, count: int, labels: dict[str, str]) -> None:
    if count != len(labels):
        raise UserError(f"--source: {origin} has {count:,} images, but labels for {len(labels):,} are given")
