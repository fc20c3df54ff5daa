"""The layout of a data set's folder, which of its files the images are read from, and what has changed in them."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from utils.files import files_below

SPLITS = ("training", "validation")
STAMP = "prepared.json"
# Of each split that a run reads and each class in it: the number of images, and the `digest` of their names and sizes.
Contents = dict[str, dict[str, tuple[int, str]]]


def image_files(data_root: str | Path) -> Iterator[tuple[str, os.stat_result]]:
    """(relative name, status) of the files of all splits, those of other names too; of a folder without splits, all."""
    root = Path(data_root)
    found = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    visible = [name for name in found if not name.startswith(".")]
    for folder in visible if set(SPLITS) & set(visible) else [""]:
        yield from files_below(root / folder, folder)


def digest(files: Iterable[tuple[str | int, ...]]) -> str:
    """A hash of files by what is said of each, in hexadecimal: its name and size, say."""
    sha = hashlib.sha256()
    for facts in files:
        sha.update("".join(f"{fact}\0" for fact in facts).encode(errors="surrogateescape"))
    return sha.hexdigest()


def difference(before: Contents, now: Contents) -> str | None:
    """What is different about the images now, in words; None where nothing is."""
    for split in sorted(before.keys() | now.keys()):
        old, new = before.get(split, {}), now.get(split, {})
        changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        if changed:
            had, has = (sum(count for count, _ in classes.values()) for classes in (old, new))
            what = f"{had:,} then and {has:,} now" if had != has else "of other names or sizes"
            others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            return f"{split} images {what} (class {changed[0]}{others})"
    return None
