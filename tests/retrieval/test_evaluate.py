"""`evaluate` against scikit-learn's average precision and naive ranks."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrieval import evaluate
from tests.retrieval.oracle import check_parts, check_queries, mean_figures, rank_slowly, seeded

DEPTHS: dict[str, Any] = {"top_k": (1, 3, 5), "recall_at": (1, 2, 7, 1000), "precision_at": (3, 7)}


def clusters(n: int, d: int, classes: int, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Embeddings (n, d) around a centre for each class, and their labels."""
    generator = seeded(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, d, generator=generator)
    return centres[labels] + spread * torch.randn(n, d, generator=generator), labels


def far_from_the_origin() -> tuple[Tensor, Tensor]:
    """Near-duplicates: float32 norm expansion would see nothing of differences of 1e-3 at an offset of 1000."""
    labels = torch.arange(150) % 5
    noise = torch.randn(150, 8, generator=seeded(40))
    return 1e3 + 1e-3 * labels[:, None] * torch.ones(8) + 3e-4 * noise, labels


def tight_clusters() -> tuple[Tensor, Tensor]:
    """Far clusters, each of pairs 1e-6 apart: there even a centred float64 expansion keeps too few digits."""
    centres, inner, noise = torch.randn(3, 120, 8, generator=seeded(41), dtype=torch.float64)
    labels = torch.arange(120) // 6 % 4
    return 1e3 * centres[torch.arange(120) % 6] + 1e-6 * (inner[labels] + 0.3 * noise), labels


CLUSTERED = clusters(150, 16, 10, seed=2, spread=0.5)
CASES = {
    "clustered": CLUSTERED,
    "half precision": (CLUSTERED[0].half(), CLUSTERED[1]),
    "grid": (torch.randint(-50, 50, (120, 2), generator=seeded(5)).float(), torch.arange(120) % 8),
    "one big and many small classes": (
        torch.randn(200, 8, generator=seeded(11)),
        torch.cat([torch.zeros(120, dtype=torch.int64), torch.arange(80) // 2 + 10**12]),
    ),
    "far from the origin": far_from_the_origin(),
    "tight clusters": tight_clusters(),
}


def check(query: Tensor, gallery: Tensor, labels: Tensor, **options: Any) -> dict[str, float]:
    """Compare the figures of all queries, of each class and of each query with the oracle's -> those of all queries."""
    ranked = list(rank_slowly(query, gallery, labels, **options))
    expected = mean_figures(ranked, **DEPTHS)
    metrics = evaluate(query, gallery, labels, **DEPTHS, per_query=True, per_class=True, **options)
    assert metrics.to_json() == pytest.approx(expected, abs=1e-6)
    counts = (metrics.num_queries, metrics.num_skipped, metrics.num_gallery)
    assert counts == (len(ranked), len(query) - len(ranked), len(gallery))
    check_parts(metrics.per_class, ranked, labels, DEPTHS)
    check_queries(metrics.per_query, 0, ranked)
    return expected


# Under cosine the oracle's own rounding would break the grid's ties between parallel vectors.
@pytest.mark.parametrize(
    ("distance", "name"), [("l2", name) for name in CASES] + [("cosine", name) for name in CASES if name != "grid"]
)
def test_agrees_with_oracle(distance: str, name: str) -> None:
    embeddings, labels = CASES[name]
    check(embeddings, embeddings, labels, distance=distance)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(2, 25),
    classes=st.integers(1, 6),
    values=st.integers(1, 4),
    d=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
def test_agrees_with_oracle_on_any_small_grid(n: int, classes: int, values: int, d: int, seed: int) -> None:
    generator = seeded(seed)
    embeddings = torch.randint(values, (n, d), generator=generator).float()
    labels = torch.randint(-1, classes, (n,), generator=generator)  # -1: of no class
    labels[:2] = 0
    check(embeddings, embeddings, labels)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n=st.integers(2, 40),
    classes=st.integers(1, 12),
    d=st.integers(1, 9),
    spread=st.sampled_from([1e-3, 0.5, 20.0]),
    offset=st.sampled_from([0.0, 300.0]),
    copies=st.integers(0, 20),
    alone=st.integers(0, 5),
    distance=st.sampled_from(["l2", "cosine"]),
    seed=st.integers(0, 10**6),
)
def test_agrees_with_oracle_on_any_clusters(
    n: int, classes: int, d: int, spread: float, offset: float, copies: int, alone: int, distance: str, seed: int
) -> None:
    """Also with duplicates, across classes too, and with items that are alone in their class."""
    embeddings, labels = clusters(n, d, classes, seed, spread)
    embeddings = offset + embeddings
    embeddings[: min(copies, n)] = embeddings[-1]
    labels[: min(alone, n - 2)] = torch.arange(min(alone, n - 2)) + classes
    labels[-1] = labels[-2]
    check(embeddings, embeddings, labels, distance=distance)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_different_sets_with_shared_items(distance: str) -> None:
    query, labels = clusters(50, 8, 5, seed=20)
    gallery, gallery_labels = clusters(90, 8, 7, seed=21)
    gallery_labels[0] = 99
    labels[:2] = torch.tensor([99, 98])  # one has a single relevant item, one has none
    options = {"gallery_labels": gallery_labels, "distance": distance}
    ids = {"query_ids": torch.arange(50) * 3, "gallery_ids": torch.randperm(150, generator=seeded(22))[:90]}
    shared = check(query, gallery, labels, **options, **ids)
    ids["query_ids"] += 1000
    assert shared != check(query, gallery, labels, **options, **ids)  # self-matches matter here


def test_item_never_retrieves_itself() -> None:
    embeddings = torch.tensor([[0.0], [0.1], [5.0], [5.2]])
    labels = torch.tensor([0, 1, 0, 1])
    same = evaluate(embeddings, embeddings, labels)
    assert same.cmc[1] == 0.0
    ids = torch.arange(4)
    assert evaluate(embeddings, embeddings, labels, query_ids=ids, gallery_ids=ids + 4).cmc[1] == 1.0
    shuffled = torch.tensor([2, 0, 3, 1])
    gallery, gallery_labels = embeddings[shuffled], labels[shuffled]
    assert evaluate(embeddings, gallery, labels, gallery_labels, query_ids=ids, gallery_ids=shuffled) == same


def test_negative_labels_are_no_class_and_stay_in_the_gallery() -> None:
    """A fifth of the items is labelled -1: they stand in the way of their own kind, and as a class would do worse."""
    embeddings, labels = clusters(300, 12, 10, seed=3, spread=0.3)
    labels[:60] = -1
    known = labels >= 0
    as_class = check(embeddings, embeddings, labels.where(known, 99))["map"]
    without = check(embeddings[known], embeddings[known], labels[known])["map"]
    assert as_class + 0.1 < check(embeddings, embeddings, labels)["map"] < without - 0.1


PARALLEL = torch.tensor([[3.0], [2.0], [11.0], [7.0]]) * torch.tensor([1.0, 2.0, -3.0, 5.0])  # exact
WITH_ZERO = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 0.1]])  # to the query (1, 0) cosines of 0, 0.7, -1


@pytest.mark.parametrize(
    ("query", "gallery", "distance", "rank"),
    [
        (PARALLEL[:1] / 3, PARALLEL, "l2", 2),
        (PARALLEL[:1] / 3, PARALLEL, "cosine", 4),  # equal directions tie
        (torch.tensor([[1.0, 0.0]]), WITH_ZERO, "cosine", 2),  # a zero vector has the cosine 0
    ],
)
def test_rank_of_the_first_item(query: Tensor, gallery: Tensor, distance: str, rank: int) -> None:
    labels, ids = (torch.arange(len(gallery)) > 0).long(), torch.arange(len(gallery))
    metrics = evaluate(
        query, gallery, torch.tensor([0]), labels, query_ids=torch.tensor([9]), gallery_ids=ids, distance=distance
    )
    assert metrics.mean_average_precision == 1 / rank


@pytest.mark.parametrize("exponent", [-100, 90])
def test_scale_of_the_embeddings_has_no_effect(exponent: int) -> None:
    """Their squares would leave the range of float32."""
    embeddings, labels = CLUSTERED
    scaled = embeddings * 2.0**exponent
    assert evaluate(scaled, scaled, labels) == evaluate(embeddings, embeddings, labels)


def test_neither_autocast_nor_map_change_the_other_figures() -> None:
    embeddings, labels = CLUSTERED
    expected = evaluate(embeddings, embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert evaluate(embeddings, embeddings, labels) == expected
    without = evaluate(embeddings, embeddings, labels, compute_map=False, per_class=True)
    assert without.to_json() == {**expected.to_json(), "map": None}
    assert all(of_class.mean_average_precision is None for of_class in without.per_class.values())
