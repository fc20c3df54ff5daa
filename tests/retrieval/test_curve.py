"""The backfilling curve against the naive evaluation of each mixed gallery."""

from statistics import fmean
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrieval import backfilling_curve, cutoffs, evaluate
from tests.retrieval.oracle import evaluate_slowly, mixed_gallery, rank_slowly
from utils.errors import UserError


def upgrade(n: int, d: int, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, h(old), new and labels of a gallery whose old embeddings are worse."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    new = torch.randn(classes, d, generator=generator)[labels] + 0.6 * torch.randn(n, d, generator=generator)
    transformed = new + torch.rand(n, 1, generator=generator) * torch.randn(n, d, generator=generator)
    return new, transformed, new, labels


def grid(n: int, values: int, d: int, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same on an integer grid: ties everywhere, between old and new too."""
    generator = torch.Generator().manual_seed(seed)
    new, transformed = torch.randint(values, (2, n, d), generator=generator).float()
    labels = torch.randint(classes, (n,), generator=generator)
    labels[1] = labels[0]
    return new, transformed, new, labels


def permutation(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def check(query: Tensor, transformed: Tensor, new: Tensor, labels: Tensor, points: list[int], **options: Any) -> None:
    orders = {"one": permutation(len(new), 1), "other": permutation(len(new), 2)}
    curves = backfilling_curve(query, transformed, new, labels, orders=orders, cutoffs=points, **options)
    for name, order in orders.items():
        for cutoff, point in zip(points, curves[name].points, strict=True):
            gallery = mixed_gallery(transformed, new, order, cutoff)
            expected = evaluate_slowly(query, gallery, labels, **options)
            assert point.to_json() == pytest.approx(expected, abs=1e-6), (name, cutoff)


CASES = {
    "clustered": upgrade(80, 8, 6, seed=0),
    "half precision": tuple(t.half() if t.is_floating_point() else t for t in upgrade(60, 8, 6, seed=1)),
    "single-item classes": (*upgrade(50, 8, 6, seed=2)[:3], torch.arange(50).clamp(min=20)),
    "negative labels": (*upgrade(50, 8, 6, seed=6)[:3], upgrade(50, 8, 6, seed=6)[3] - 2),
    "ties": grid(60, 3, 2, 5, seed=3),
    "duplicates": tuple(t.repeat(2, 1) if t.dim() == 2 else t.repeat(2) for t in upgrade(30, 4, 3, seed=4)),
    "nothing changes": (*[upgrade(50, 8, 6, seed=5)[0]] * 3, upgrade(50, 8, 6, seed=5)[3]),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_mixed_galleries(name: str) -> None:
    query, transformed, new, labels = CASES[name]
    check(query, transformed, new, labels, cutoffs(len(new), 4), recall_at=(2, 9), precision_at=(4,))


def test_agrees_under_cosine() -> None:
    query, transformed, new, labels = CASES["clustered"]
    check(query, transformed, new, labels, cutoffs(len(new), 3), distance="cosine")


def test_any_cutoffs() -> None:
    query, transformed, new, labels = CASES["clustered"]
    check(query, transformed, new, labels, [3, 3, 40])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n=st.integers(2, 16),
    values=st.integers(1, 4),
    d=st.integers(1, 3),
    classes=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    backfilling=st.integers(0, 6),
)
def test_agrees_on_any_small_grid(n: int, values: int, d: int, classes: int, seed: int, backfilling: int) -> None:
    check(*grid(n, values, d, classes, seed), cutoffs(n, backfilling))


def test_different_sets_with_shared_items() -> None:
    query, _, _, query_labels = upgrade(30, 8, 5, seed=6)
    _, transformed, new, gallery_labels = upgrade(70, 8, 5, seed=7)
    ids: dict[str, Any] = {"query_ids": torch.arange(30) * 2, "gallery_ids": permutation(70, 8)}
    order, points = permutation(70, 9), cutoffs(70, 3)
    curve = backfilling_curve(
        query, transformed, new, query_labels, gallery_labels, orders={"order": order}, cutoffs=points, **ids
    )["order"]
    for cutoff, point in zip(points, curve.points, strict=True):
        gallery = mixed_gallery(transformed, new, order, cutoff)
        expected = evaluate_slowly(query, gallery, query_labels, gallery_labels, **ids)
        assert point.to_json() == pytest.approx(expected, abs=1e-6)


def test_ends_are_plain_evaluations() -> None:
    query, transformed, new, labels = CASES["clustered"]
    order = permutation(len(new), 0)
    curve = backfilling_curve(query, transformed, new, labels, orders={"order": order}, cutoffs=cutoffs(len(new), 20))
    assert curve["order"].points[0].to_json() == pytest.approx(evaluate(query, transformed, labels).to_json())
    assert curve["order"].points[-1].to_json() == pytest.approx(evaluate(query, new, labels).to_json())


def test_figures_of_each_query_at_each_point() -> None:
    query, transformed, new, labels = CASES["single-item classes"]
    order = permutation(len(new), 3)
    curve = backfilling_curve(
        query, transformed, new, labels, orders={"order": order}, cutoffs=[0, 20, 50], per_query=True
    )["order"]
    assert curve.per_query is not None
    assert curve.per_query.average_precisions is not None
    assert curve.per_query.hit_ranks is not None
    for point, cutoff in enumerate(curve.cutoffs):
        expected = list(rank_slowly(query, mixed_gallery(transformed, new, order, cutoff), labels))
        assert curve.per_query.first_ranks[:, point].tolist() == [ranks[0] for _, _, ranks in expected]
        assert curve.per_query.average_precisions[:, point].tolist() == pytest.approx([ap for _, ap, _ in expected])
        if cutoff == 0:
            assert curve.per_query.hit_ranks.tolist() == [rank for _, _, ranks in expected for rank in ranks]


def test_json() -> None:
    query, transformed, new, labels = CASES["clustered"]
    orders = {"order": permutation(len(new), 0)}
    curve = backfilling_curve(query, transformed, new, labels, orders=orders, cutoffs=cutoffs(len(new), 1))["order"]
    json = curve.to_json()
    assert list(json) == ["cutoffs", "fractions", "cmc_top1", "cmc_top5", "map", "auc"]
    assert json["cutoffs"] == [0, 40, 80]
    assert json["fractions"] == [0.0, 0.5, 1.0]
    for name in ("cmc_top1", "cmc_top5", "map"):
        assert json[name] == [point.to_json()[name] for point in curve.points]
        assert json["auc"][name] == pytest.approx(fmean(json[name]))
    without = backfilling_curve(query, transformed, new, labels, orders=orders, cutoffs=[0, 80], compute_map=False)
    assert without["order"].to_json()["map"] is None
    assert without["order"].to_json()["auc"]["map"] is None
    assert without["order"].to_json()["cmc_top1"] == json["cmc_top1"][::2]


def test_cutoffs() -> None:
    assert cutoffs(100, 3) == [0, 25, 50, 75, 100]
    assert cutoffs(10_000, 20)[:3] == [0, 476, 952]
    assert len(cutoffs(10_000, 20)) == 22
    assert cutoffs(2, 4) == [0, 0, 0, 1, 1, 2]
    assert cutoffs(7, 0) == [0, 7]
    with pytest.raises(UserError, match="backfilling: should be 0 or more"):
        cutoffs(7, -1)
