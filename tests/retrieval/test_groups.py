"""Groups of queries along a backfilling curve: each against an evaluation of its queries alone, and the gap between."""

from statistics import fmean

import pytest
import torch

from retrieval import backfilling_curve, evaluate, gap, gaps_along, gaps_to_json
from tests.retrieval.oracle import mixed_gallery, seeded
from utils.errors import UserError

N, POINTS = 60, [0, 20, 60]
LABELS = torch.arange(N) % 6
NEW = torch.randn(6, 8, generator=seeded(0))[LABELS] + 0.5 * torch.randn(N, 8, generator=seeded(1))
FEW = LABELS < 2  # of whose classes the old model knows little
OLD = NEW + 2 * FEW[:, None] * torch.randn(N, 8, generator=seeded(2))
ORDER = torch.randperm(N, generator=seeded(3))
GROUPS = torch.where(FEW, 0, 1 + LABELS % 2)
CURVE = backfilling_curve(
    NEW, OLD, NEW, LABELS, orders={"random": ORDER}, cutoffs=POINTS, query_groups=GROUPS, recall_at=[3]
)["random"]


def alone(group: int, cutoff: int) -> dict[str, float | None]:
    """The figures of a group's queries, evaluated without the others."""
    (rows,) = torch.where(torch.eq(GROUPS, group))
    gallery, ids = mixed_gallery(OLD, NEW, ORDER, cutoff), torch.arange(N)
    found = evaluate(NEW[rows], gallery, LABELS[rows], LABELS, query_ids=rows, gallery_ids=ids, recall_at=[3])
    return found.to_json()


def test_the_gap_is_that_of_groups_evaluated_alone() -> None:
    gaps = gaps_along(CURVE)
    assert list(gaps) == ["cmc_top1", "cmc_top5", "map", "recall_at_3"]
    for place, cutoff in enumerate(POINTS):
        figures = [alone(group, cutoff) for group in range(3)]
        for group in range(3):
            assert CURVE.of_group(group).points[place].to_json() == pytest.approx(figures[group])
        for name, along in gaps.items():
            values = [value for of_group in figures if (value := of_group[name]) is not None]
            assert along[place] == pytest.approx(max(values) - min(values))
    assert gaps["map"][0] > 2 * gaps["map"][-1]  # or there is nothing to close


def test_a_group_has_a_curve_of_its_own() -> None:
    curve = CURVE.of_group(0)
    assert (curve.num_queries, curve.num_gallery, curve.cutoffs) == (20, N, tuple(POINTS))
    assert curve.auc.cmc[1] == pytest.approx(fmean(point.per_group[0].cmc[1] for point in CURVE.points))


def test_the_share_of_the_gap_that_is_closed() -> None:
    gaps, json = gaps_along(CURVE)["map"], gaps_to_json(CURVE)
    assert json["gap"]["map"] == gaps
    assert json["gap"]["auc"]["map"] == pytest.approx(fmean(gaps))
    assert json["gap_closed"]["map"] == pytest.approx([0, (gaps[0] - gaps[1]) / gaps[0], (gaps[0] - gaps[2]) / gaps[0]])
    assert json["gap_closed"]["auc"]["map"] == pytest.approx(1 - fmean(gaps) / gaps[0])


def test_without_a_gap_at_first_no_share_of_it_is_closed() -> None:
    far = 100 * torch.eye(6)[LABELS]  # each class at a point of its own: nothing is ever missed
    orders = {"any": torch.arange(N)}
    curve = backfilling_curve(
        far, far, far, LABELS, orders=orders, cutoffs=[0, N], query_groups=GROUPS, compute_map=False
    )["any"]
    expected = {"cmc_top1": None, "cmc_top5": None}
    assert gaps_to_json(curve)["gap_closed"] == {**expected, "auc": expected}
    assert gap(curve.points[0].per_group.values()) == {"cmc_top1": 0, "cmc_top5": 0}


def test_groups_are_whole_numbers_one_a_query() -> None:
    with pytest.raises(UserError, match=r"query_groups: should be \(60,\), one an embedding, got \(59,\)"):
        evaluate(NEW, NEW, LABELS, query_groups=GROUPS[1:])
    with pytest.raises(UserError, match="query_groups: should be whole numbers"):
        evaluate(NEW, NEW, LABELS, query_groups=GROUPS.float())
