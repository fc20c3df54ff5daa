"""Ids of items, whole numbers or text: which rows of two files are one item's, and keys by which text is looked up."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from upgrade.rows import Array, Rows, parts_of
from utils.errors import UserError


@dataclass(frozen=True)
class WholeNumbers:
    """Ids or labels (n,) of any integer type as int64, which is what FAISS and the gallery's files have."""

    rows: Rows
    where: str  # names them in error messages

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int64)

    def read(self, start: int, stop: int) -> Array:
        """The rows [start, stop).

        Raises:
            UserError: one of them is 2^63 or more.
        """
        return self._checked(self.rows.read(start, stop))

    def take(self, index: Array) -> Array:
        """The rows `index` (m,); raises as `read`."""
        return self._checked(self.rows.take(index))

    def _checked(self, values: Array) -> Array:
        beyond = values[values > np.uint64(2**63 - 1)] if values.dtype == np.uint64 else values[:0]
        if len(beyond):
            raise UserError(f"{self.where}: {beyond[0]} is beyond 2^63 - 1; ids may be text instead: ids.astype(str)")
        return values.astype(np.int64)


def matching_rows(
    ids: Array | None, wanted: Array | None, counts: tuple[int, int], where: str, files: tuple[object, object]
) -> Array:
    """Where one file has the items of another: by id where both have ids, by place where neither has.

    Args:
        ids: (m,) int64 or text, of the file to read rows of.
        wanted: (n,) of the file whose order is asked for.
        counts: m and n.
        where: the key that names the first file, for error messages.
        files: the names of both.

    Returns:
        Rows (n,) int64 of the first file.

    Raises:
        UserError: one has ids and the other has none, or they are not of the same items, each of them once.
    """
    path, other = files
    if (ids is None) != (wanted is None):
        lacks, has = (path, other) if ids is None else (other, path)
        raise UserError(
            f"{where}: {lacks} has no ids, {has} has; rows are paired by place only where neither file has ids: "
            "give both their ids, in any order (.npz with `ids`), or neither"
        )
    if ids is None or wanted is None:
        if counts[0] != counts[1]:
            raise UserError(f"{where}: {path} has {counts[0]} rows, {other} {counts[1]}")
        return np.arange(counts[1])
    differ = f"{where}: {path} and {other} hold different items"
    if (ids.dtype.kind == "U") != (wanted.dtype.kind == "U"):
        raise UserError(f"{differ}: the ids of one are whole numbers, those of the other text")
    order = ids.argsort(kind="stable")
    ordered = ids[order]
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise UserError(f"{where}: {path}: the id {twice[0]} occurs more than once")
    place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    absent = wanted[ordered[place] != wanted]
    if len(absent):
        raise UserError(f"{differ}: {len(absent)} ids are in {other} alone, the first is {absent[0]}")
    rows = order[place]
    seen = np.zeros(len(ids), bool)
    seen[rows] = True
    if not seen.all():
        left = ids[~seen]
        raise UserError(f"{differ}: {len(left)} ids are in {path} alone, the first is {left[0]}")
    if len(wanted) > len(ids):
        raise UserError(f"{where}: {other}: an id occurs more than once")
    return rows


def matching_texts(ids: Rows | None, wanted: Rows | None) -> Array | None:
    """As `matching_rows`, by the keys of texts, which take less memory; None where these do not tell."""
    if ids is None or wanted is None or {ids.dtype.kind, wanted.dtype.kind} != {"U"}:
        return None
    count = wanted.shape[0]
    keys, others = (
        np.concatenate([text_keys(one.read(*part)) for part in parts_of(one.shape[0])]) for one in (ids, wanted)
    )
    try:
        rows = matching_rows(keys, others, (len(keys), count), "keys", ("", ""))
    except UserError:  # of other items, or two of one key: the texts tell, and are named
        return None
    same = (np.array_equal(ids.take(rows[start:stop]), wanted.read(start, stop)) for start, stop in parts_of(count))
    return rows if all(same) else None


def text_keys(texts: Array) -> Array:
    """Texts (m,) -> (m,) uint64: the same for one text in arrays of any width; two texts may have one key."""
    native = texts.astype(texts.dtype.newbyteorder("="), copy=False)
    codes = np.ascontiguousarray(native).view(np.uint32).reshape(len(texts), texts.dtype.itemsize // 4)
    keys = np.zeros(len(texts), np.uint64)
    for column in codes.T:
        keys = np.where(column > 0, scrambled(keys ^ column), keys)  # 0: the text has ended
    return keys


def scrambled(values: Array) -> Array:
    """(m,) uint64 -> (m,) uint64, one to one and without visible order (SplitMix64)."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
