"""Which rows of two files are the same item: by id against a dictionary, and what nothing tells."""

from typing import Any

import numpy as np
import pytest

from data.items import Items, matching_rows, numbers_of_gallery, places
from utils.errors import UserError

RNG = np.random.default_rng(0)
BIG = np.uint64(2**63) + np.arange(40, dtype=np.uint64)
POOLS: dict[str, np.ndarray] = {
    "numbers": np.arange(-20, 20) * 2**55,
    "uint64": np.concatenate([BIG[:20], np.arange(20, dtype=np.uint64)]),
    "texts": np.array([f"{'x' * (i % 5)}{i}" for i in range(40)]),
}


@pytest.mark.parametrize(
    ("first", "second"),
    [(one, other) for one in POOLS for other in POOLS if (one == "texts") == (other == "texts")],
)
def test_places_are_those_of_a_dictionary(first: str, second: str) -> None:
    """Numbers of both signs and beyond 2^63, which floating point numbers and wrapped ones would mix up."""
    for _ in range(20):
        ids, among = (RNG.permutation(POOLS[name])[: RNG.integers(1, 40)] for name in (first, second))
        known = {item: place for place, item in enumerate(among.tolist())}
        assert places(ids, among).tolist() == [known.get(item, -1) for item in ids.tolist()]


def test_a_wrapped_number_is_no_id() -> None:
    assert places(np.array([-1, 3]), np.array([2**64 - 1, 3], np.uint64)).tolist() == [-1, 1]
    assert places(np.array([7]), np.array(["7"])).tolist() == [-1]


def items(name: str, **arrays: Any) -> Items:
    return Items(name, len(next(iter(arrays.values()))), **arrays)


@pytest.mark.parametrize("pool", list(POOLS))
def test_rows_of_the_same_ids_in_any_order(pool: str) -> None:
    ids, order = POOLS[pool], RNG.permutation(40)
    rows = matching_rows(items("a", ids=ids), items("b", ids=ids[order]))
    assert rows is not None
    assert np.array_equal(ids[order][rows], ids)
    assert matching_rows(items("a", ids=ids), items("b", ids=ids.copy())) is None


LABELS, IDS = np.array([0, 0, 1, 2]), np.array([5, 6, 7, 8])


@pytest.mark.parametrize(
    ("reference", "other", "message"),
    [
        ({"ids": IDS}, {"ids": np.array([5, 6, 7])}, "b and a hold different items: 1 ids of a are not in b, .* is 8"),
        ({"ids": IDS[:3]}, {"ids": IDS}, "b and a hold different items: 1 ids of b are not in a, the first is 8"),
        ({"ids": IDS}, {"ids": IDS.astype(str)}, "the ids of a are numbers and those of b texts"),
        ({"ids": IDS}, {"labels": LABELS}, "a has `ids` and b has none"),
        ({"labels": LABELS}, {"ids": IDS}, "b has `ids` and a has none"),
        ({"labels": LABELS}, {"labels": LABELS[:3]}, "b and a hold different items: 3 and 4 of them"),
        ({"labels": LABELS}, {"labels": LABELS[::-1]}, "have no ids, and row 0 has the labels 2 and 0"),
    ],
)
def test_what_does_not_hold_the_same_items(reference: Any, other: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"{message}.*; what to do$"):
        matching_rows(items("a", **reference), items("b", **other), "; what to do")


def test_without_ids_rows_are_the_same_items_by_place() -> None:
    assert matching_rows(items("a", labels=LABELS), items("b", labels=LABELS)) is None
    assert matching_rows(items("a", labels=LABELS), Items("b", 4)) is None


BARE, NAMED = {"labels": LABELS}, {"labels": LABELS, "ids": IDS}


@pytest.mark.parametrize(
    ("query", "gallery", "same_items", "expected"),
    [
        (BARE, BARE, None, [0, 1, 2, 3]),
        (BARE, BARE, False, [4, 5, 6, 7]),
        (NAMED, {"ids": np.array([8, 1, 5])}, None, [3, 5, 0]),
        (NAMED, {"ids": IDS[::-1]}, True, [3, 2, 1, 0]),
        (NAMED, {"ids": np.array([8, 5, 6, 7])}, True, [3, 0, 1, 2]),
        (NAMED, {"ids": IDS + 4}, False, [4, 5, 6, 7]),
        (NAMED, {"ids": IDS.astype(str)}, False, [4, 5, 6, 7]),
        (NAMED, BARE, True, [0, 1, 2, 3]),
        (BARE, {"labels": LABELS[::-1]}, True, [0, 1, 2, 3]),
        (BARE, NAMED, False, [4, 5, 6, 7]),
    ],
)
def test_gallery_items_have_the_numbers_of_the_queries_that_they_are(
    query: Any, gallery: Any, same_items: bool | None, expected: list[int]
) -> None:
    assert numbers_of_gallery(items("q", **query), items("g", **gallery), same_items).tolist() == expected


@pytest.mark.parametrize(
    ("query", "gallery", "same_items", "message"),
    [
        (BARE, {"labels": LABELS + 1}, None, r"g and q hold different items.*; set eval_params\.same_items=false if"),
        (BARE, NAMED, None, r"g has `ids` and q has none.*; set eval_params\.same_items=false"),
        (NAMED, {"ids": IDS.astype(str)}, None, r"ids of q are numbers and those of g texts.*; set eval_params\.same"),
        (NAMED, {"ids": IDS + 1}, True, r"1 ids of q are not in g, .* 5; eval_params\.same_items=true contradicts"),
        (BARE, {"labels": LABELS[:3]}, True, r"3 and 4 of them; eval_params\.same_items=true contradicts that"),
        (NAMED, {"ids": IDS + 3}, False, r"q and g share 1 ids, the first is 8; eval_params\.same_items=false contra"),
    ],
)
def test_what_queries_and_gallery_contradict(query: Any, gallery: Any, same_items: bool | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        numbers_of_gallery(items("q", **query), items("g", **gallery), same_items)
