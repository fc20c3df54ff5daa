"""The layout of a data set's folder, and which of its files the images are read from."""

import os
from collections.abc import Iterator
from pathlib import Path

from utils.files import files_below

SPLITS = ("training", "validation")
PACKED = "packed"  # the folder of the packed copy
STAMP = "prepared.json"  # in the folder itself, and in its packed copy


def has_packed_copy(data_root: str | Path) -> bool:
    """Whether there is a finished packed copy below `data_root`."""
    return (Path(data_root) / PACKED / STAMP).is_file()


def image_files(data_root: str | Path, packed: str) -> Iterator[tuple[str, os.stat_result]]:
    """(relative name, status) of the files that images are read from.

    These are the packed copy's where `dataset_params.packed` is auto and there is one, else those of the two splits;
    of a folder without splits, all. A packed copy counts as another source than the folders, for its larger images
    have been resized.
    """
    if packed == "auto" and has_packed_copy(data_root):
        folders = [PACKED]
    else:
        folders = [split for split in SPLITS if Path(data_root, split).is_dir()] or [""]
    for folder in folders:
        yield from files_below(Path(data_root, folder), folder)
