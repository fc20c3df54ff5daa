"""Groups of queries: by their classes, or as a file or the list of their images says."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.embeddings import EmbeddingSet
from data.items import Array, Items, comparable, places
from data.sources.arrays import read_arrays
from data.sources.formats import LONE
from data.sources.ids import checked_ids
from evaluation.config import Groups
from utils.errors import UserError

NONE = -1  # the number of a query that no group has


@dataclass(frozen=True)
class Grouping:
    """Which group each query is of."""

    names: Sequence[str]
    of_query: torch.Tensor  # (n,) int64 places in `names`; NONE


def group_queries(query: EmbeddingSet, groups: Groups) -> Grouping:
    """The groups of the queries, as the config says them; whether they cover all queries is not asked yet.

    Raises:
        UserError: a class that no query is of, a file that cannot be read, or is of other queries, or a list without
            groups.
    """
    if groups.column:
        if query.groups is None:
            raise UserError("eval_params.groups.column: the queries are of no image list with a column `group`")
        return named_groups(query.groups)
    if groups.file is not None:
        return groups_of_file(query, groups.file, where=f"eval_params.groups.file: {groups.file}")
    assert groups.classes is not None
    assert query.labels is not None
    labels = query.labels.cpu()
    largest, of_query = int(labels.max()), torch.full_like(labels, NONE)
    for place, name in enumerate(groups.classes):
        for first, end in groups.ranges(name):
            inside = (labels >= first) & (labels < end)
            if not inside.any() or end > largest + 1:
                unknown = max(first, largest + 1) if end > largest + 1 else first
                raise UserError(
                    f"eval_params.groups.classes.{name}: no query has a label from {unknown} to {end - 1}; "
                    f"the largest is {largest}"
                )
            of_query[inside] = place
    return Grouping(list(groups.classes), of_query)


def groups_of_file(query: EmbeddingSet, path: str, *, where: str) -> Grouping:
    """The groups that a file has for the queries, by their ids where it has `ids`, else row by row.

    Raises:
        UserError: naming `where`: the file cannot be read, has no groups, or other ids or another length.
    """
    arrays = read_group_arrays(path)
    groups = arrays.get("groups", arrays.get(LONE))
    if groups is None:
        raise UserError(f"{where}: has no `groups`")
    if groups.ndim != 1 or groups.dtype.kind not in "iuU":
        raise UserError(f"{where}: groups should be (n,) texts or whole numbers, got {groups.shape} {groups.dtype}")
    ids = arrays.get("ids")
    if ids is None:
        if len(groups) != len(query):
            raise UserError(f"{where}: has {len(groups):,} rows and no `ids`, there are {len(query):,} queries")
        return named_groups(groups)
    if ids.shape != groups.shape:
        raise UserError(f"{where}: ids are {ids.shape}, groups {groups.shape}")
    if query.ids is not None and query.ids.dtype.kind in "iu" and ids.dtype.kind == "U":
        ids = as_numbers(ids)
    ids = checked_ids(ids, where)
    comparable(query.named("the query set"), Items(where, len(ids), ids))  # or refused
    assert query.ids is not None
    rows = places(query.ids, ids)
    return named_groups(np.where(rows < 0, "", groups.astype(str)[rows]))


def as_numbers(ids: Array) -> Array:
    """Ids that are texts, as in a .csv, as the whole numbers that they are; as they are if one is none."""
    try:
        return ids.astype(np.int64)
    except ValueError:
        return ids


def named_groups(groups: Sequence[str] | Array) -> Grouping:
    """The groups (n,) of the queries as they are called, in the order of their names; an empty text is no group."""
    names, of_query = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    without = int(len(names) > 0 and names[0] == "")
    return Grouping(names[without:].tolist(), torch.from_numpy(of_query.astype(np.int64)) - without)


def read_group_arrays(path: str) -> dict[str, Array]:
    """`groups` and `ids` of a .csv with a line of these names first, of a .json, or of what `read_arrays` reads."""
    suffix, where = Path(path).suffix.lower(), "eval_params.groups.file"
    if suffix not in (".csv", ".json"):
        return read_arrays(path, ["groups", "ids"], where=where)
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            content: Any = list(csv.DictReader(file)) if suffix == ".csv" else json.load(file)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{where}: {path} cannot be read: {str(error).splitlines()[0]}") from None
    if suffix == ".csv":
        content = {name: [row[name] or "" for row in content] for name in (content[0] if content else ())}
    if isinstance(content, list):
        content = {LONE: content}
    if not isinstance(content, dict):
        raise UserError(f"{where}: {path} should hold a list of groups, or `groups` and `ids`")
    columns = {name: content[name] for name in ("groups", "ids", LONE) if isinstance(content.get(name), list)}
    try:
        return {name: np.array(column) for name, column in columns.items()}
    except ValueError:
        raise UserError(f"{where}: {path}: groups and ids should be plain lists") from None


def check_groups(query: EmbeddingSet, names: Sequence[str], groups: Groups) -> None:
    """Check that every query that can be evaluated is in a group, that there are two and more, and none is empty.

    Raises:
        UserError: naming the key, how many queries are in none and the first of them.
    """
    assert query.labels is not None
    assert query.group_numbers is not None
    key = "column" if groups.column else "classes" if groups.file is None else f"file: {groups.file}"
    where = f"eval_params.groups.{key}"
    if len(names) < 2:
        raise UserError(f"{where}: a gap needs two groups, there is {', '.join(names) or 'none'} alone")
    (outside,) = ((query.group_numbers == NONE) & (query.labels >= 0)).nonzero(as_tuple=True)
    if len(outside):
        first = int(outside[0])
        name = f"row {first}" if query.ids is None else f"id {query.ids[first]}"
        raise UserError(
            f"{where}: {len(outside):,} of {len(query):,} queries are in no group, the first is {name} "
            f"(label {int(query.labels[first])})"
        )
    for place, name in enumerate(names):
        if not (query.group_numbers == place).any():
            raise UserError(f"{where}: the group {name} is empty: no query is of it")
