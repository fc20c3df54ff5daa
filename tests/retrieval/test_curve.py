"""The backfilling curve against the naive evaluation of each mixed gallery."""

from statistics import fmean
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrieval import backfilling_curve, cutoffs
from tests.retrieval.oracle import check_parts, check_queries, mean_figures, mixed_gallery, rank_slowly, seeded
from utils.errors import UserError

DEPTHS: dict[str, Any] = {"recall_at": (2, 9), "precision_at": (4,)}
Gallery = tuple[Tensor, Tensor, Tensor]  # h(old), new, labels


def upgrade(n: int, d: int, classes: int, seed: int) -> Gallery:
    """A gallery whose old embeddings are worse."""
    generator = seeded(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    new = torch.randn(classes, d, generator=generator)[labels] + 0.6 * torch.randn(n, d, generator=generator)
    return new + torch.rand(n, 1, generator=generator) * torch.randn(n, d, generator=generator), new, labels


def grid(n: int, values: int, d: int, classes: int, seed: int) -> Gallery:
    """One on an integer grid: ties everywhere, between old and new too."""
    generator = seeded(seed)
    new, transformed = torch.randint(values, (2, n, d), generator=generator).float()
    labels = torch.randint(-1, classes, (n,), generator=generator)  # -1: of no class
    labels[:2] = 0
    return transformed, new, labels


def check(gallery: Gallery, points: list[int], query: Tensor | None = None, **options: Any) -> None:
    """Compare the figures of all queries, of each query and group, and at first of each class, in two orders."""
    transformed, new, labels = gallery
    query = new if query is None else query
    options = {"query_labels": labels, **options}
    orders = {str(seed): torch.randperm(len(new), generator=seeded(seed)) for seed in (1, 2)}
    groups = torch.randint(-1, 3, (len(query),), generator=seeded(3))
    wanted: dict[str, Any] = {**options, **DEPTHS, "per_query": True, "per_class": True, "query_groups": groups}
    curves = backfilling_curve(query, transformed, new, orders=orders, cutoffs=points, **wanted)
    for name, order in orders.items():
        for place, (cutoff, point) in enumerate(zip(points, curves[name].points, strict=True)):
            ranked = list(rank_slowly(query, mixed_gallery(transformed, new, order, cutoff), **options))
            assert point.to_json() == pytest.approx(mean_figures(ranked, **DEPTHS), abs=1e-6), (name, cutoff)
            check_queries(curves[name].per_query, place, ranked)
            check_parts(point.per_group, ranked, groups, DEPTHS)
            if place == 0:
                check_parts(point.per_class, ranked, options["query_labels"], DEPTHS)
            else:
                assert not point.per_class


TRANSFORMED, NEW, LABELS = upgrade(50, 8, 6, seed=0)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_agrees_with_mixed_galleries(distance: str) -> None:
    check((TRANSFORMED, NEW, LABELS), cutoffs(50, 4), distance=distance)
    check((TRANSFORMED.half(), NEW.half(), LABELS), [3, 3, 40], distance=distance)


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
    check(grid(n, values, d, classes, seed), cutoffs(n, backfilling))


def test_different_sets_with_shared_items() -> None:
    _, query, labels = upgrade(30, 8, 5, seed=6)
    gallery = upgrade(70, 8, 5, seed=7)
    options = {"query_ids": torch.arange(30) * 2, "gallery_ids": torch.randperm(70, generator=seeded(8))}
    check(gallery, cutoffs(70, 3), query, query_labels=labels, gallery_labels=gallery[2], **options)


def test_json() -> None:
    orders, points = {"order": torch.arange(50)}, cutoffs(50, 1)
    curve, without = (
        backfilling_curve(NEW, TRANSFORMED, NEW, LABELS, orders=orders, cutoffs=points, compute_map=computed)["order"]
        for computed in (True, False)
    )
    json = curve.to_json()
    assert list(json) == ["cutoffs", "fractions", "cmc_top1", "cmc_top5", "map", "auc"]
    assert (json["cutoffs"], json["fractions"]) == ([0, 25, 50], [0.0, 0.5, 1.0])
    for name in ("cmc_top1", "cmc_top5", "map"):
        assert json[name] == [point.to_json()[name] for point in curve.points]
        assert json["auc"][name] == pytest.approx(fmean(json[name]))
    assert without.to_json() == {**json, "map": None, "auc": {**json["auc"], "map": None}}


def test_cutoffs() -> None:
    assert cutoffs(10_000, 20)[:3] == [0, 476, 952]
    assert len(cutoffs(10_000, 20)) == 22
    assert cutoffs(2, 4) == [0, 0, 0, 1, 1, 2]
    assert cutoffs(7, 0) == [0, 7]
    with pytest.raises(UserError, match="backfilling: should be 0 or more"):
        cutoffs(7, -1)
