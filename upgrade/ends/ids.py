"""Ids of items, whole numbers or text, and keys by which text is looked up."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.items import places
from upgrade.ends.rows import Array, Rows, parts_of
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
