"""Image lists: what the rows of a CSV or Parquet file say of images.

Classes are numbered over the whole file, whatever the split that is read, so that a label means the same in training
and in evaluation, and to queries and gallery. So are cameras, and whether ids are numbers or texts.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.folders import ImageList, no_common_class, unknown_split
from data.items import Array
from data.list_files import Columns, Value, check_filled, read_columns
from utils.errors import UserError

Label = Any  # int or str, the same kind for all of a list
WHOLE = re.compile(r"0|-?[1-9]\d{0,17}")  # a whole number below 10^18 as it is usually written: 007 is a text


class Classes(NamedTuple):
    """The classes of a list, in the order of their numbers."""

    trained: list[Label]  # those of the training split
    others: list[Label]


def list_from_file(
    path: str | Path,
    data_root: str | Path,
    split: str,
    *,
    training_split: str,
    num_classes: int | None = None,
    all_classes: bool = False,
) -> ImageList:
    """The images of a split of a list, in the order of its rows.

    Labels are whole numbers or texts. Those of the training split, sorted, are the classes 0 .. C - 1, and the other
    labels of the file follow, sorted. A negative whole number is no class: evaluation has such an image as a
    distractor, training leaves it out. Without a column `split` all rows are of the training split.

    Args:
        data_root: the folder that relative paths start from.
        num_classes: only the first so many classes of the training split.
        all_classes: every image of the split, whatever `num_classes` says, of any class or none.

    Raises:
        UserError: the list cannot be read, lacks a column, the split or the classes, or has an empty cell, or an image
            or an id twice in the split.
    """
    where = f"dataset_params.list_path: {path}"
    columns, notes = read_columns(Path(path), where)
    for name in ("path", "label", *(["split"] if "split" in columns else [])):
        check_filled(columns[name], name, where)
    rows, of_training = rows_of(columns, split, training_split, where)
    labels = as_labels(columns["label"])
    classes = classes_of(labels, of_training)
    if not classes.trained:
        notes.append(f"{path}: no class in a split `{training_split}`; classes are numbered over all splits")
    numbered = [*classes.trained, *(classes.others if split != training_split else [])]
    if not all_classes:
        if num_classes is not None and num_classes > len(classes.trained):
            raise UserError(
                f"dataset_params.num_classes: {num_classes} classes asked for, {path} has {len(classes.trained)} of "
                f"the split {training_split}"
            )
        numbered = classes.trained[:num_classes]
        rows, left_out = rows_of_classes(rows, labels, set(numbered))
        notes += [f"{path}: left out {left_out} of the split {split}"] if left_out else []
        if not rows:
            raise UserError(no_common_class(f"{where}: the split {split}"))
    number = {label: place for place, label in enumerate(numbered)}
    paths = [Path(data_root, str(columns["path"][row])) for row in rows]
    check_distinct(list(map(str, paths)), "path", f"{where}: the split {split}")
    return ImageList(
        paths,
        [number.get(labels[row], -1) for row in rows],
        [str(label) for label in numbered],
        notes=notes,
        ids=ids_of(columns, rows, f"{where}: the split {split}"),
        groups=groups_of(columns, rows, where),
        cameras=cameras_of(columns, rows, where),
    )


def rows_of(columns: Columns, split: str, training_split: str, where: str) -> tuple[list[int], list[int]]:
    """The rows of a split, and those of the training split.

    Raises:
        UserError: the list has no such split; it names those that it has.
    """
    if "split" not in columns:
        every = list(range(len(columns["path"])))
        if split == training_split:
            return every, every
        raise UserError(
            f"{where}: has no column `split`, so all of its images are of the split `{training_split}`; add the "
            f"column for `{split}`, or set dataset_params.held_out"
        )
    splits = list(map(str, columns["split"]))
    rows, of_training = (
        [row for row, name in enumerate(splits) if name == wanted] for wanted in (split, training_split)
    )
    if not rows:
        raise UserError(unknown_split(where, split, sorted(set(splits))))
    return rows, of_training


def as_labels(values: Sequence[Value]) -> list[Label]:
    """Whole numbers where all labels are, else texts."""
    return as_whole_numbers(values) or [str(value) for value in values]


def as_whole_numbers(values: Sequence[Value]) -> list[int | None] | None:
    """Cells as whole numbers, empty ones as they are; None where one is something else.

    >>> as_whole_numbers(["10", None, 7]), as_whole_numbers(["10", "007"])
    ([10, None, 7], None)
    """
    distinct = set(values)
    if not all(value is None or WHOLE.fullmatch(str(value)) for value in distinct):
        return None
    numbers = {value: None if value is None else int(value) for value in distinct}
    return [numbers[value] for value in values]


def is_no_class(label: Label) -> bool:
    """Whether a label is a negative whole number, which stands for no class, also among texts."""
    return label < 0 if isinstance(label, int) else bool(WHOLE.fullmatch(label)) and label.startswith("-")


def classes_of(labels: Sequence[Label], of_training: Sequence[int]) -> Classes:
    """The classes of all rows; `of_training` are those of the training split."""
    known = {label for label in set(labels) if not is_no_class(label)}
    trained = known & {labels[row] for row in of_training}
    return Classes(sorted(trained), sorted(known - trained))


def rows_of_classes(rows: Sequence[int], labels: Sequence[Label], wanted: set[Label]) -> tuple[list[int], str]:
    """Those of the rows that are of the classes `wanted`, and what is left out, in words; an empty text for nothing."""
    kept = [row for row in rows if labels[row] in wanted]
    of_none = sum(is_no_class(labels[row]) for row in rows)
    counts = {"of no class": of_none, "of other classes": len(rows) - len(kept) - of_none}
    return kept, " and ".join(f"{count:,} images {what}" for what, count in counts.items() if count)


def filled_cells(values: Sequence[Any] | None, name: str, rows: Sequence[int], where: str) -> list[Any] | None:
    """The cells of an optional column in some rows; None where there is no column, or it is empty in all of them.

    Raises:
        UserError: it is empty in some of them.
    """
    cells = [] if values is None else [values[row] for row in rows]
    if cells.count(None) == len(cells):
        return None
    check_filled(cells, name, where, rows)
    return cells


def ids_of(columns: Columns, rows: Sequence[int], where: str) -> Array:
    """The ids of some rows, int64 where all of the list's are whole numbers, else texts; without ids, their paths."""
    column = columns.get("id")
    numbers = None if column is None else as_whole_numbers(column)
    cells = filled_cells(numbers or column, "id", rows, where)
    if cells is None:
        return np.array([str(columns["path"][row]) for row in rows])
    check_distinct(cells, "id", where)
    return np.array(cells, dtype=str if numbers is None else np.int64)


def groups_of(columns: Columns, rows: Sequence[int], where: str) -> list[str] | None:
    """The groups of some rows; None where the list has none for them."""
    cells = filled_cells(columns.get("group"), "group", rows, where)
    return None if cells is None else [str(cell) for cell in cells]


def cameras_of(columns: Columns, rows: Sequence[int], where: str) -> list[int] | None:
    """The cameras of some rows: whole numbers as they are, texts by their place among all of the list's, sorted.

    None where the list has none for them.
    """
    cells = filled_cells(columns.get("camera"), "camera", rows, where)
    if cells is None:
        return None
    known = set(columns["camera"]) - {None}
    number = {name: place for place, name in enumerate(sorted(map(str, known)))}
    if all(map(WHOLE.fullmatch, number)):
        number = {name: int(name) for name in number}
    return [number[str(cell)] for cell in cells]


def check_distinct(values: Sequence[Any], name: str, where: str) -> None:
    """Raise a UserError that counts the values which occur more than once and names the first."""
    if len(set(values)) == len(values):
        return
    twice = {value: count for value, count in Counter(values).items() if count > 1}
    first = next(iter(twice))
    raise UserError(f"{where}: its column `{name}` has {len(twice):,} values more than once, the first is {first}")


def check_files(listed: ImageList, path: str | Path, data_root: str | Path) -> None:
    """Raise a UserError where files of a list are not there: how many, and the first."""
    missing = [name for name, size, _ in listed.files(data_root) if size < 0]
    if missing:
        raise UserError(
            f"dataset_params.list_path: {path}: {len(missing):,} of {len(listed):,} images are not there, the first is "
            f"{Path(data_root, missing[0])} (relative paths start from dataset_params.data_root)"
        )
