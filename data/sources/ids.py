"""Ids of items, whole numbers or text, and keys by which text is looked up."""

import numpy as np

from data.items import Array, places
from data.sources.rows import Rows, converted, parts_of
from utils.errors import UserError


def checked_ids(ids: Array, where: str) -> Array:
    """Ids (n,) as int64, uint64 or texts.

    Raises:
        UserError: they are something else, or one occurs twice.
    """
    check_kind("ids", ids, where)
    if ids.dtype.kind in "iu" and ids.dtype != np.uint64:
        ids = ids.astype(np.int64)
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        twice = values[counts > 1]
        raise UserError(f"{where}: {len(twice)} ids occur more than once, the first is {twice[0]}")
    return ids


def checked_numbers(name: str, values: Array, where: str) -> Array:
    """Labels or cameras (n,) as int64.

    Raises:
        UserError: they are something else.
    """
    check_kind(name, values, where)
    return _as_int64(values, f"{where}: {name}")


def check_kind(name: str, values: Array | Rows, where: str) -> None:
    """Raise a UserError unless `ids` are (n,) whole numbers or texts, or `labels` and `cameras` (n,) whole numbers."""
    kinds, advice = ("iuU", " or texts (ids.astype(str))") if name == "ids" else ("iu", "")
    if len(values.shape) != 1 or values.dtype.kind not in kinds:
        raise UserError(f"{where}: {name} should be (n,) whole numbers{advice}, got {values.shape} {values.dtype}")


def int64_or_texts(rows: Rows, where: str) -> Rows:
    """Ids or labels (n,) of any type of whole numbers as int64, which is what FAISS and tables of upgrades have.

    Reading raises a UserError where one is 2^63 or more.
    """
    if rows.dtype.kind == "U" or rows.dtype == np.int64:
        return rows
    return converted(rows, lambda values: _as_int64(values, where), np.int64)


def _as_int64(values: Array, where: str) -> Array:
    beyond = values[values > np.uint64(2**63 - 1)] if values.dtype == np.uint64 else values[:0]
    if len(beyond):
        raise UserError(f"{where}: {beyond[0]} is beyond 2^63 - 1; ids may be text instead: ids.astype(str)")
    return values.astype(np.int64)


def matching_keys(ids: Rows | None, wanted: Rows | None) -> Array | None:
    """As `data.items.matching_rows`, by the keys of texts, which take less memory; None where these do not tell."""
    if ids is None or wanted is None or {ids.dtype.kind, wanted.dtype.kind} != {"U"} or ids.shape != wanted.shape:
        return None
    count = wanted.shape[0]
    keys, others = (np.concatenate([text_keys(one.read(*part)) for part in parts_of(count)]) for one in (ids, wanted))
    if len(np.unique(keys)) < count:
        return None
    rows = places(others, keys)  # in `wanted`'s order
    if (rows < 0).any():  # of other items: the texts tell, and are named
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
