"""Parts of an evaluation's items: the classes that were asked for, and sizes that fall as they should."""

import numpy as np
import pytest
import torch

from data.embeddings import EmbeddingSet
from evaluation.config import Subset
from evaluation.subsets import choose_items, take_subset
from utils.errors import UserError

LABELS = torch.arange(600) % 6  # 100 items of each
TAIL = Subset(imbalance=32)


def sizes(items: torch.Tensor, labels: torch.Tensor = LABELS) -> list[int]:
    """How many items there are of each class."""
    return torch.bincount(labels[items][labels[items] >= 0], minlength=6).tolist()


def test_classes_are_all_that_is_left() -> None:
    items = choose_items(LABELS, Subset(classes=[2, 4]), seed=0)
    assert items.tolist() == [item for item, label in enumerate(LABELS.tolist()) if label in (2, 3)]
    assert sorted(sizes(choose_items(LABELS, Subset(classes=[1, 5], imbalance=1e6), seed=0))) == [0, 0, 2, 2, 2, 100]


def test_a_long_tail_falls_exponentially_from_all_items_to_the_smallest_class() -> None:
    first, again, other = (choose_items(LABELS, TAIL, seed) for seed in (0, 0, 1))
    for items in (first, other):
        assert items.tolist() == sorted(set(items.tolist()))
        assert sorted(sizes(items), reverse=True) == [100, 50, 25, 12, 6, 3]  # 100 / 2^r, to the nearest
    assert torch.equal(first, again)
    assert sizes(first) != sizes(other)


def test_items_of_no_class_stay_unless_classes_are_asked_for() -> None:
    labels = LABELS.where(torch.arange(600) % 5 > 0, -1 - LABELS)
    unknown = set((labels < 0).nonzero()[:, 0].tolist())
    assert set(choose_items(labels, Subset(classes=[0, 6]), seed=0).tolist()) == set(range(600)) - unknown
    assert choose_items(labels, Subset(), seed=0).tolist() == list(range(600))
    items = choose_items(labels, TAIL, seed=0)
    assert unknown < set(items.tolist())
    assert items.tolist() == sorted(items.tolist())
    assert sorted(sizes(items, labels), reverse=True) == [80, 40, 20, 10, 5, 2]  # they are no class of the tail


def test_queries_and_gallery_are_the_same_items_where_they_were() -> None:
    rows, numbers = torch.randn(600, 3), torch.arange(600)
    ids = np.array([f"item {i}" for i in range(600)])
    query = EmbeddingSet(rows, ids, LABELS, numbers=numbers)
    gallery = EmbeddingSet(rows + 1, ids, LABELS, log_variance=rows[:, 0], numbers=numbers)
    chosen, backfilled = take_subset(query, gallery, Subset(imbalance=8), seed=3)
    assert chosen.same_items(backfilled)
    for items in (chosen, backfilled):
        assert items.labels is not None
        assert torch.equal(items.labels, LABELS[items.numbers])
        assert items.ids is not None
        assert items.ids.tolist() == ids[chosen.numbers].tolist()
    assert torch.equal(backfilled.embeddings, rows[chosen.numbers] + 1)
    assert backfilled.log_variance is not None
    assert torch.equal(backfilled.log_variance, rows[chosen.numbers, 0])
    others = EmbeddingSet(rows[:60], None, LABELS[:60], numbers=torch.arange(1000, 1060))
    found, part = take_subset(others, gallery, Subset(classes=[0, 3]), seed=3)
    assert (len(found), len(part)) == (30, 300)


def test_what_no_item_is_of() -> None:
    with pytest.raises(UserError, match=r"eval_params.subset.classes: no item has a label from 6 to 7"):
        choose_items(LABELS, Subset(classes=[6, 8]), seed=0)
    for classes in ([3], [3, 3], [-1, 2], [1, 2, 3]):
        with pytest.raises(ValueError, match="classes: should be two rising labels"):
            Subset(classes=classes)
