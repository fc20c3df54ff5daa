"""How good an order is: against scipy, plain loops, and what must hold of any order."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from retrieval import RiskCoverage, order_quality
from retrieval.risk_coverage import alignment_errors, risk_coverage
from tests.retrieval.oracle import rank_slowly, seeded
from utils.errors import UserError

GENERATOR = seeded(0)
NEW, TRANSFORMED = torch.randn(2, 60, 5, generator=GENERATOR)
LABELS = torch.randint(6, (60,), generator=GENERATOR)
ORDERS = {name: torch.randperm(60, generator=GENERATOR) for name in ("sigma", "confidence")}


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))  # of the items, the last of the order first
def test_no_order_is_better_than_the_oracle_and_all_end_at_the_mean(risks: list[int]) -> None:
    score, risk = torch.arange(len(risks)), torch.tensor(risks, dtype=torch.float64)
    curve = risk_coverage(score, risk)
    assert curve.coverages[-1] == 1
    assert [curve.kept[-1], curve.oracle[-1]] == pytest.approx([sum(risks) / len(risks)] * 2)
    assert all(best <= own + 1e-12 for best, own in zip(curve.oracle, curve.kept, strict=True))
    assert curve.aurc["oracle"] <= min(curve.aurc["kept"], curve.aurc["random"]) + 1e-12
    sorted_by_risk = risk_coverage(score, risk.sort().values)
    assert sorted_by_risk.aurc["kept"] == pytest.approx(curve.aurc["oracle"])


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_each_order_by_each_risk_by_a_naive_loop(distance: str) -> None:
    labels = LABELS.clone()
    labels[7] = 1000  # no other item of its class
    labels[20:30] = -1  # of no class
    found = order_quality(TRANSFORMED, NEW, labels, ORDERS, distance=distance)
    errors = dict(enumerate(naive_errors(distance)))
    assert alignment_errors(TRANSFORMED, NEW, distance).tolist() == pytest.approx(list(errors.values()))
    ranked = list(rank_slowly(TRANSFORMED, NEW, labels, distance=distance))
    missed = {item: float(min(ranks) > 1) for item, _, ranks in ranked}
    imprecision = {item: 1 - average_precision for item, average_precision, _ in ranked}
    assert missed.keys().isdisjoint({7, *range(20, 30)})
    assert list(found) == list(ORDERS)
    for name, order in ORDERS.items():
        assert list(found[name]) == ["alignment_error", "cmc_top1", "average_precision"]
        for curve, risk in zip(found[name].values(), (errors, missed, imprecision), strict=True):
            check(curve, order, risk)


def naive_errors(distance: str) -> list[float]:
    pairs = zip(NEW.double().numpy(), TRANSFORMED.double().numpy(), strict=True)
    if distance == "l2":
        return [float(np.sqrt(((a - b) ** 2).sum())) for a, b in pairs]
    return [float(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs]


def check(curve: RiskCoverage, order: Tensor, risk_of: dict[int, float]) -> None:
    """Compare with the mean risk of the last items of the order, one coverage at a time."""
    risks = [risk_of[item] for item in order.tolist() if item in risk_of]
    n = len(risks)
    means = [np.mean(risks[n - k :]) for k in range(1, n + 1)]
    assert curve.coverages == pytest.approx([i * n // 20 / n for i in range(1, 21)])
    assert curve.kept == pytest.approx([means[i * n // 20 - 1] for i in range(1, 21)])
    assert curve.random == pytest.approx(np.mean(risks))
    assert curve.aurc["kept"] == pytest.approx(np.mean(means))
    assert curve.spearman == pytest.approx(stats.spearmanr(range(n, 0, -1), risks).statistic)


def test_an_order_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"^order `sigma`: is no permutation of the 60"):
        order_quality(TRANSFORMED, NEW, LABELS, {"sigma": torch.arange(59)})


def test_without_any_match_the_error_is_the_only_risk() -> None:
    """As in a gallery of one image of each person, or of several by one camera."""
    alone, one_camera = torch.arange(60), torch.zeros(60, dtype=torch.int64)
    for labels, cameras in ((alone, None), (-alone - 1, None), (LABELS, one_camera)):
        found = order_quality(TRANSFORMED, NEW, labels, ORDERS, cameras=cameras)
        for name, order in ORDERS.items():
            assert list(found[name]) == ["alignment_error"]
            check(found[name]["alignment_error"], order, dict(enumerate(naive_errors("l2"))))
