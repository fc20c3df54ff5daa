"""`evaluate` against scikit-learn's average precision and a naive CMC."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrieval import RetrievalMetrics, evaluate
from tests.retrieval.oracle import evaluate_slowly, rank_slowly
from utils.errors import UserError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(n: int, d: int, classes: int, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Embeddings (n, d) around a centre for each class, and their labels."""
    generator = seeded(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, d, generator=generator)
    return centres[labels] + spread * torch.randn(n, d, generator=generator), labels


CASES = {
    "random": (torch.randn(120, 8, generator=seeded(0)), torch.randint(6, (120,), generator=seeded(1))),
    "clustered": clusters(150, 16, 10, seed=2, spread=0.5),
    "integer grid, full of ties": (
        torch.randint(3, (120, 3), generator=seeded(3)).float(),
        torch.randint(8, (120,), generator=seeded(4)),
    ),
    "wide integer grid": (
        torch.randint(-50, 50, (120, 2), generator=seeded(5)).float(),
        torch.randint(8, (120,), generator=seeded(6)),
    ),
    "duplicates": (clusters(40, 8, 4, seed=7)[0].repeat(3, 1), torch.randint(5, (120,), generator=seeded(8))),
    "all at one point": (torch.ones(30, 4), torch.randint(3, (30,), generator=seeded(9))),
    "single-item classes": (
        torch.randn(60, 8, generator=seeded(10)),
        torch.cat([torch.arange(30), torch.full((30,), 10**6)]),
    ),
    "one big and many small classes": (
        torch.randn(200, 8, generator=seeded(11)),
        torch.cat([torch.zeros(120, dtype=torch.int64), torch.arange(80) // 2 + 10**12]),
    ),
    "a third of negative labels": (
        clusters(150, 8, 6, seed=13)[0],
        torch.where(torch.arange(150) % 3 == 0, -1 - torch.arange(150) % 2, clusters(150, 8, 6, seed=13)[1]),
    ),
    "two items": (torch.tensor([[0.0], [1.0]]), torch.tensor([3, 3])),
    "half precision": (clusters(120, 8, 6, seed=12)[0].half(), clusters(120, 8, 6, seed=12)[1]),
}


# Under cosine the oracle's own rounding would break the grids' ties between parallel vectors.
L2_AND_COSINE = [("l2", name) for name in CASES] + [("cosine", name) for name in CASES if "grid" not in name]


@pytest.mark.parametrize(("distance", "name"), L2_AND_COSINE)
def test_agrees_with_oracle(distance: str, name: str) -> None:
    embeddings, labels = CASES[name]
    if distance == "cosine" and name == "two items":
        embeddings = embeddings + 1  # the oracle knows no zero vector
    figures: dict[str, Any] = {"top_k": (1, 3, 5), "recall_at": (1, 2, 7, 1000), "precision_at": (3, 7)}
    metrics = evaluate(embeddings, embeddings, labels, distance=distance, **figures)
    expected = evaluate_slowly(embeddings, embeddings, labels, distance=distance, **figures)
    assert metrics.to_json() == pytest.approx(expected, abs=1e-6)


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
    figures: dict[str, Any] = {"recall_at": (1, 3), "precision_at": (2, 30)}
    metrics = evaluate(embeddings, embeddings, labels, **figures)
    assert metrics.to_json() == pytest.approx(evaluate_slowly(embeddings, embeddings, labels, **figures), abs=1e-6)


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
    figures: dict[str, Any] = {"distance": distance, "recall_at": (1, 4), "precision_at": (3,)}
    metrics = evaluate(embeddings, embeddings, labels, **figures)
    assert metrics.to_json() == pytest.approx(evaluate_slowly(embeddings, embeddings, labels, **figures), abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_figures_of_each_query(name: str) -> None:
    embeddings, labels = CASES[name]
    figures = evaluate(embeddings, embeddings, labels, per_query=True).per_query
    assert figures is not None
    assert figures.average_precisions is not None
    assert figures.hit_ranks is not None
    expected = list(rank_slowly(embeddings, embeddings, labels))
    ranks = [ranks for _, _, ranks in expected]
    assert figures.query_index.tolist() == [index for index, _, _ in expected]
    assert figures.average_precisions[:, 0].tolist() == pytest.approx([ap for _, ap, _ in expected], abs=1e-6)
    assert figures.first_ranks[:, 0].tolist() == [row[0] for row in ranks]
    assert figures.num_relevant.tolist() == [len(row) for row in ranks]
    assert figures.hit_ranks.tolist() == [rank for row in ranks for rank in row]


def test_figures_of_each_query_are_kept_only_when_asked_for() -> None:
    assert evaluate(*CASES["two items"][:1] * 2, CASES["two items"][1]).per_query is None


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_different_sets_with_shared_items(distance: str) -> None:
    query, query_labels = clusters(50, 8, 5, seed=20)
    gallery, gallery_labels = clusters(90, 8, 7, seed=21)
    query_ids = torch.arange(50) * 3
    gallery_ids = torch.randperm(150, generator=seeded(22))[:90]
    gallery_labels[0] = 99
    query_labels[:2] = torch.tensor([99, 98])  # one has a single relevant item, one has none
    arguments = (query, gallery, query_labels, gallery_labels)
    metrics = evaluate(*arguments, query_ids=query_ids, gallery_ids=gallery_ids, distance=distance)
    expected = evaluate_slowly(*arguments, query_ids=query_ids, gallery_ids=gallery_ids, distance=distance)
    assert metrics.to_json() == pytest.approx(expected, abs=1e-6)
    without_ids = evaluate_slowly(*arguments, query_ids=-query_ids - 1, gallery_ids=gallery_ids, distance=distance)
    assert expected != without_ids  # self-matches matter here


def test_item_never_retrieves_itself() -> None:
    embeddings = torch.tensor([[0.0], [0.1], [5.0], [5.2]])
    labels = torch.tensor([0, 1, 0, 1])
    assert evaluate(embeddings, embeddings, labels).cmc[1] == 0.0
    everything = evaluate(embeddings, embeddings, labels, query_ids=torch.arange(4), gallery_ids=torch.arange(4) + 4)
    assert everything.cmc[1] == 1.0
    shuffled = torch.tensor([2, 0, 3, 1])
    same = evaluate(
        embeddings, embeddings[shuffled], labels, labels[shuffled], query_ids=torch.arange(4), gallery_ids=shuffled
    )
    assert same.to_json() == evaluate(embeddings, embeddings, labels).to_json()


def test_queries_without_relevant_items_are_counted() -> None:
    embeddings = torch.randn(7, 3, generator=seeded(30))
    metrics = evaluate(embeddings, embeddings, torch.tensor([0, 0, 0, 1, 2, 3, 3]))
    assert metrics.num_queries == 5
    assert metrics.num_skipped == 2
    assert metrics.num_gallery == 7
    assert metrics.distance_metric == "l2"


def test_negative_labels_are_no_class_and_stay_in_the_gallery() -> None:
    """60 of 300 items of ten clear classes are labelled -1. As one more class they cost 30 points of mAP."""
    random = np.random.default_rng(3)
    true = random.integers(0, 10, 300)
    items = np.random.default_rng(99).normal(size=(10, 12))[true] + 0.3 * random.normal(size=(300, 12))
    embeddings = torch.from_numpy(items @ np.random.default_rng(8).normal(size=(12, 24))).float()
    labels = torch.where(torch.arange(300) < 60, -1, torch.from_numpy(true))
    metrics, expected = evaluate(embeddings, embeddings, labels), evaluate_slowly(embeddings, embeddings, labels)
    assert metrics.to_json() == pytest.approx(expected, abs=1e-6)
    assert (metrics.num_queries, metrics.num_skipped, metrics.num_gallery) == (240, 60, 300)
    as_class = evaluate(embeddings, embeddings, labels.where(labels >= 0, 99)).mean_average_precision
    known = labels >= 0
    without = evaluate(embeddings[known], embeddings[known], labels[known]).mean_average_precision
    assert metrics.mean_average_precision is not None
    assert as_class is not None
    assert without is not None
    assert as_class == pytest.approx(0.694, abs=0.002)
    assert without > 0.99
    assert as_class + 0.1 < metrics.mean_average_precision < without - 0.1  # they stand in the way of their own kind


def test_nothing_but_negative_labels_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"none of the 6 queries has an item of .* itself \(negative labels are no class\)"
    ):
        evaluate(torch.randn(6, 2), torch.randn(6, 2), torch.full((6,), -1))


def test_labels_beyond_int64_do_not_become_negative() -> None:
    labels = torch.tensor([2**64 - 1] * 4, dtype=torch.uint64)
    with pytest.raises(UserError, match=r"query_labels: should be below 2\^63"):
        evaluate(torch.randn(4, 2), torch.randn(4, 2), labels)


def test_ties_do_not_depend_on_the_order_of_the_gallery() -> None:
    embeddings, labels = torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])
    for order in ([0, 1, 2, 3], [0, 2, 3, 1]):
        metrics = evaluate(embeddings[order], embeddings[order], labels[order], top_k=(1, 2, 3))
        assert metrics.cmc == {1: 0.0, 2: 0.0, 3: 1.0}  # the two irrelevant items first
        assert metrics.mean_average_precision == pytest.approx(1 / 3)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_no_cancellation_far_from_the_origin(distance: str) -> None:
    """Near-duplicates: float32 norm expansion would see nothing of differences of 1e-3 at an offset of 1000."""
    generator = seeded(40)
    labels = torch.arange(150) % 5
    embeddings = 1e3 + 1e-3 * labels[:, None] * torch.ones(8) + 3e-4 * torch.randn(150, 8, generator=generator)
    metrics = evaluate(embeddings, embeddings, labels, distance=distance)
    assert metrics.to_json() == pytest.approx(evaluate_slowly(embeddings, embeddings, labels, distance=distance))


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_no_cancellation_within_tight_clusters(distance: str) -> None:
    """Far clusters, each of pairs 1e-6 apart: there even a centred float64 expansion keeps too few digits."""
    generator = seeded(41)
    centres = torch.randn(6, 8, generator=generator, dtype=torch.float64)[torch.arange(120) % 6]
    labels = torch.arange(120) // 6 % 4
    inner = torch.randn(4, 8, generator=generator, dtype=torch.float64)[labels]
    noise = torch.randn(120, 8, generator=generator, dtype=torch.float64)
    embeddings = 1e3 * centres + 1e-6 * (inner + 0.3 * noise)
    metrics = evaluate(embeddings, embeddings, labels, distance=distance)
    expected = evaluate_slowly(embeddings, embeddings, labels, distance=distance)
    assert metrics.to_json() == pytest.approx(expected, abs=1e-6)
    assert expected["cmc_top1"] > 0.5


def test_equal_directions_tie_under_cosine() -> None:
    direction = torch.tensor([[1.0, 2.0, -3.0, 5.0]])
    gallery = torch.tensor([[3.0], [2.0], [11.0], [7.0]]) * direction  # exact, so all are parallel
    labels, ids = (torch.tensor([0]), torch.tensor([0, 1, 1, 1])), (torch.tensor([9]), torch.arange(4))
    l2, cosine = (
        evaluate(direction, gallery, *labels, query_ids=ids[0], gallery_ids=ids[1], distance=distance)
        for distance in ("l2", "cosine")
    )
    assert (l2.cmc[1], l2.mean_average_precision) == (0.0, 0.5)
    assert (cosine.cmc[1], cosine.mean_average_precision) == (0.0, 0.25)


@pytest.mark.parametrize("exponent", [-100, 90])
def test_scale_of_the_embeddings_has_no_effect(exponent: int) -> None:
    """Their squares would leave the range of float32."""
    embeddings, labels = CASES["clustered"]
    scaled = embeddings * 2.0**exponent
    assert evaluate(scaled, scaled, labels) == evaluate(embeddings, embeddings, labels)


def test_zero_vector_has_cosine_zero() -> None:
    query = torch.tensor([[1.0, 0.0]])
    gallery = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 0.1]])  # cosines 0, 0.7, -1
    labels, ids = (torch.tensor([0]), torch.tensor([0, 1, 1])), (torch.tensor([9]), torch.arange(3))
    metrics = evaluate(query, gallery, *labels, query_ids=ids[0], gallery_ids=ids[1], distance="cosine", top_k=(1, 2))
    assert metrics.cmc == {1: 0.0, 2: 1.0}


def test_autocast_has_no_effect() -> None:
    embeddings, labels = CASES["clustered"]
    expected = evaluate(embeddings, embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert evaluate(embeddings, embeddings, labels) == expected


def test_without_map() -> None:
    embeddings, labels = CASES["clustered"]
    metrics = evaluate(embeddings, embeddings, labels, compute_map=False)
    assert metrics.to_json() == {**evaluate(embeddings, embeddings, labels).to_json(), "map": None}


def test_result_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = CASES["one big and many small classes"]
    expected = evaluate(embeddings, embeddings, labels)
    chunks: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)

    def evaluate_in_chunks() -> RetrievalMetrics:
        chunks.clear()
        return evaluate(embeddings, embeddings, labels, progress=chunks.append)

    assert evaluate_in_chunks() == expected
    assert chunks == [200]
    monkeypatch.setattr("retrieval.ranking.engine.CPU_CHUNK_ELEMENTS", 1)
    monkeypatch.setattr("retrieval.ranking.engine.MIN_QUERIES", 7)
    assert evaluate_in_chunks() == expected
    assert chunks == [*range(7, 200, 7), 200]
