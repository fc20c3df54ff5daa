"""Whether two files hold the same items: the one place that decides, on plain arrays."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.errors import UserError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Items:
    """What tells the items of a file."""

    name: str  # for error messages: the config key and the file
    count: int
    ids: Array | None = None  # (n,) distinct whole numbers or texts
    labels: Array | None = None  # (n,) whole numbers; looked at where neither file has ids


def places(ids: Array, among: Array) -> Array:
    """Where each of the ids (m,) stands in `among` (n,), which are distinct -> (m,) int64, -1 where it does not.

    >>> places(np.array([7, 3, -1]), np.array([3, 5, 7], np.uint64))
    array([ 2,  0, -1])
    """
    if _kind(ids) != _kind(among):
        return np.full(len(ids), -1)
    if ids.dtype.kind == among.dtype.kind and np.array_equal(ids, among):
        return np.arange(len(ids))
    both = np.concatenate([part.astype(np.uint64) if part.dtype.kind in "iu" else part for part in (among, ids)])
    order = both.argsort(kind="stable")
    ordered = both[order]
    (again,) = np.nonzero(ordered[1:] == ordered[:-1])
    place = np.full(len(both), -1)
    place[order[again + 1]] = order[again]
    place = place[len(among) :]
    if ids.dtype != among.dtype and ids.dtype.kind in "iu":  # a negative number is no large one that it wraps to
        place[(ids < 0) != (among < 0)[place]] = -1
    return place


def matching_rows(reference: Items, other: Items, advice: str = "") -> Array | None:
    """The rows (n,) of `other` that hold the items of `reference`, in its order; None where they are so already.

    Where both have ids, rows are told by these, and both have to hold the same ones. Where neither has, row i of both
    is the same item if there are equally many, of the same labels if both have labels.

    Args:
        advice: ends a refusal.

    Raises:
        UserError: the files do not hold the same items, or nothing tells; it names both.
    """
    both = f"{other.name} and {reference.name} hold different items"
    if comparable(reference, other, advice):
        rows = _places_of_all(reference, other, both, advice)
        if other.count > reference.count:
            _places_of_all(other, reference, both, advice)
        return None if np.array_equal(rows, np.arange(len(rows))) else rows
    if other.count != reference.count:
        raise UserError(f"{both}: {other.count:,} and {reference.count:,} of them{advice}")
    if other.labels is not None and reference.labels is not None:
        different = np.flatnonzero(other.labels != reference.labels)
        if len(different):
            row = different[0]
            raise UserError(
                f"{both}, or in another order: they have no ids, and row {row} has the labels {other.labels[row]} and "
                f"{reference.labels[row]}{advice}"
            )
    return None


def _places_of_all(items: Items, among: Items, refusal: str, advice: str) -> Array:
    """Where in one file each item of another stands, of which both have ids."""
    assert items.ids is not None
    assert among.ids is not None
    place = places(items.ids, among.ids)
    missing = np.flatnonzero(place < 0)
    if len(missing):
        raise UserError(
            f"{refusal}: {len(missing):,} ids of {items.name} are not in {among.name}, the first is "
            f"{items.ids[missing[0]]}{advice}"
        )
    return place


def comparable(first: Items, second: Items, advice: str = "") -> bool:
    """Whether the ids of two files tell which items are the same; false where neither has any.

    Raises:
        UserError: one has ids and the other has none, or one has numbers and the other texts.
    """
    if (first.ids is None) != (second.ids is None):
        having, lacking = (first, second) if second.ids is None else (second, first)
        raise UserError(
            f"{having.name} has `ids` and {lacking.name} has none, so that nothing tells which rows are the same item; "
            f"give both ids, or neither{advice}"
        )
    if first.ids is None or second.ids is None:
        return False
    if _kind(first.ids) != _kind(second.ids):
        raise UserError(
            f"the ids of {first.name} are {_kind(first.ids)} and those of {second.name} {_kind(second.ids)}, "
            f"so that none is the same{advice}"
        )
    return True


def numbers_of_gallery(query: Items, gallery: Items, same_items: bool | None) -> Array:
    """Numbers (n_g,) that tell the gallery's items from each other and from the queries, which are 0, 1, ..., n_q - 1.

    An item that is a query has its number.

    Args:
        same_items: `eval_params.same_items`: row i of both is the same item, or the ids say which; no query is an item
            of the gallery; or, where it is None, what `matching_rows` finds, and of ids those that agree.

    Raises:
        UserError: nothing tells which items are the same, or `same_items` contradicts the files.
    """
    others = query.count + np.arange(gallery.count)
    if same_items is None:
        advice = (
            "; set eval_params.same_items=false if no query is an item of the gallery, or true if row i of both files "
            "is the same item"
        )
        if not comparable(query, gallery, advice):
            matching_rows(query, gallery, advice)
            return np.arange(gallery.count)
        assert query.ids is not None
        assert gallery.ids is not None
        place = places(gallery.ids, query.ids)
        return np.where(place < 0, others, place)
    if query.ids is None or gallery.ids is None:
        if same_items and query.count != gallery.count:
            matching_rows(Items(query.name, query.count), Items(gallery.name, gallery.count), _contradiction(True))
        return np.arange(gallery.count) if same_items else others
    if same_items:
        rows = matching_rows(query, gallery, _contradiction(True))
        return np.arange(gallery.count) if rows is None else rows.argsort()
    shared = places(gallery.ids, query.ids)
    if (shared >= 0).any():
        first = gallery.ids[shared >= 0][0]
        raise UserError(
            f"{query.name} and {gallery.name} share {int((shared >= 0).sum()):,} ids, the first is "
            f"{first}{_contradiction(False)}"
        )
    return others


def _contradiction(same_items: bool) -> str:
    return f"; eval_params.same_items={str(same_items).lower()} contradicts that"


def _kind(ids: Array) -> str:
    return "numbers" if ids.dtype.kind in "iu" else "texts"
