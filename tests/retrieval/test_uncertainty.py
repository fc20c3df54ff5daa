"""How good sigma is: against scipy, plain loops, and what must hold of any score."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from retrieval import uncertainty_quality
from retrieval.uncertainty import alignment_errors, risk_coverage, selective_risks, spearman
from tests.retrieval.oracle import rank_slowly
from utils.errors import UserError

GENERATOR = torch.Generator().manual_seed(0)
NEW, TRANSFORMED = torch.randn(2, 60, 5, generator=GENERATOR)
LABELS = torch.randint(6, (60,), generator=GENERATOR)
LOG_VARIANCE = torch.randn(60, generator=GENERATOR)
FEW_VALUES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=12)  # with ties


@given(FEW_VALUES)
def test_spearman_is_scipys(pairs: list[tuple[int, int]]) -> None:
    first, second = torch.tensor(pairs, dtype=torch.float32).T
    found = spearman(first, second)
    if len(set(first.tolist())) == 1 or len(set(second.tolist())) == 1:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(first.numpy(), second.numpy()).statistic, abs=1e-12)


@given(FEW_VALUES)
def test_selective_risk_is_the_mean_over_every_order_of_ties(pairs: list[tuple[int, int]]) -> None:
    score, risk = torch.tensor(pairs, dtype=torch.float64).T
    expected = []
    for k in range(1, len(score) + 1):
        # An item counts with the chance that it is among the first k where equal scores are shuffled.
        last = sorted(score.tolist())[k - 1]
        below, equal = int((score < last).sum()), int((score == last).sum())
        chance = [1.0 if s < last else (k - below) / equal if s == last else 0.0 for s in score.tolist()]
        expected.append(float(np.dot(chance, risk.numpy())) / k)
    assert selective_risks(score, risk).tolist() == pytest.approx(expected)


@given(FEW_VALUES)
def test_no_order_is_better_than_the_oracle_and_all_end_at_the_mean(pairs: list[tuple[int, int]]) -> None:
    score, risk = torch.tensor(pairs, dtype=torch.float64).T
    curve = risk_coverage(score, risk)
    mean = float(risk.mean())
    assert curve.coverages[-1] == 1
    assert curve.sigma[-1] == pytest.approx(mean)
    assert curve.oracle[-1] == pytest.approx(mean)
    assert all(best <= own + 1e-12 for best, own in zip(curve.oracle, curve.sigma, strict=True))
    assert curve.aurc["oracle"] <= curve.aurc["sigma"] + 1e-12
    assert curve.aurc["oracle"] <= curve.aurc["random"] + 1e-12
    assert risk_coverage(risk, risk).aurc["sigma"] == pytest.approx(curve.aurc["oracle"])


def test_points_of_the_curve() -> None:
    score, risk = LOG_VARIANCE, torch.rand(60, generator=torch.Generator().manual_seed(1))
    curve = risk_coverage(score, risk)
    ordered = risk.numpy()[np.argsort(score.numpy())].astype(float)
    assert curve.coverages == pytest.approx([i / 20 for i in range(1, 21)])
    assert curve.sigma == pytest.approx([ordered[: 3 * i].mean() for i in range(1, 21)])
    assert curve.aurc["sigma"] == pytest.approx(np.mean([ordered[:k].mean() for k in range(1, 61)]))
    assert len(risk_coverage(score[:3], risk[:3]).coverages) == 3  # fewer items than points


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_each_risk_by_a_naive_loop(distance: str) -> None:
    labels = LABELS.clone()
    labels[7] = 1000  # no other item of its class
    found = uncertainty_quality(TRANSFORMED, NEW, labels, LOG_VARIANCE, distance=distance)
    errors = naive_errors(distance)
    assert alignment_errors(TRANSFORMED, NEW, distance).tolist() == pytest.approx(errors)
    assert same(found["alignment_error"], LOG_VARIANCE, torch.tensor(errors))
    ranked = list(rank_slowly(TRANSFORMED, NEW, labels, None, None, None, distance))
    kept = torch.tensor([item for item in range(60) if item != 7])
    missed = torch.tensor([float(min(ranks) > 1) for _, _, ranks in ranked])
    precision = torch.tensor([average_precision for _, average_precision, _ in ranked])
    assert same(found["cmc_top1"], LOG_VARIANCE[kept], missed)
    assert same(found["average_precision"], LOG_VARIANCE[kept], 1 - precision)


def naive_errors(distance: str) -> list[float]:
    pairs = zip(NEW.double().numpy(), TRANSFORMED.double().numpy(), strict=True)
    if distance == "l2":
        return [float(np.sqrt(((a - b) ** 2).sum())) for a, b in pairs]
    return [float(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs]


def same(curve: Any, score: Tensor, risk: Tensor) -> bool:
    expected = risk_coverage(score, risk)
    return bool(
        curve.aurc == pytest.approx(expected.aurc)
        and curve.sigma == pytest.approx(expected.sigma)
        and curve.spearman == pytest.approx(expected.spearman)
    )


def test_a_perfect_sigma_and_a_useless_one() -> None:
    errors = alignment_errors(TRANSFORMED, NEW)
    perfect = uncertainty_quality(TRANSFORMED, NEW, LABELS, errors.log()[:, None].expand(60, 3))["alignment_error"]
    assert perfect.spearman == pytest.approx(1)
    assert perfect.sigma == pytest.approx(perfect.oracle)
    useless = uncertainty_quality(TRANSFORMED, NEW, LABELS, torch.zeros(60))["alignment_error"]
    assert useless.spearman is None
    assert useless.sigma == pytest.approx([useless.random] * 20)


def test_plain_values() -> None:
    found = uncertainty_quality(TRANSFORMED, NEW, LABELS, LOG_VARIANCE, compute_map=False)
    assert list(found) == ["alignment_error", "cmc_top1"]
    json.dumps(found["cmc_top1"].to_json())


@pytest.mark.parametrize("log_variance", [LOG_VARIANCE[:-1], LOG_VARIANCE * torch.inf])
def test_sigma_of_other_items_or_not_finite_is_refused(log_variance: Tensor) -> None:
    with pytest.raises(UserError, match=r"^sigma: "):
        uncertainty_quality(TRANSFORMED, NEW, LABELS, log_variance)
