"""Bootstrap intervals: against the normal approximation, and properties that follow from resampling queries."""

import pytest
import torch

from retrieval import backfilling_curve, cutoffs, evaluate
from retrieval.intervals import bootstrap_means, percentile_interval
from tests.retrieval.oracle import seeded


def test_intervals_agree_with_the_normal_approximation() -> None:
    values = torch.rand(2000, 3, generator=seeded(0), dtype=torch.float64) ** torch.tensor([1.0, 3.0, 0.2])
    ends = percentile_interval(bootstrap_means(values, seed=0), 0.95)  # (2, 3)
    error = values.std(0) / 2000**0.5
    expected = values.mean(0) + torch.tensor([[-1.96], [1.96]]) * error
    assert ((ends - expected) / error).abs().max() < 0.25  # of 1000 resamples, their 2.5 % quantile is off by 0.1


def test_columns_share_their_resamples() -> None:
    """So the mean of two figures that cancel has no spread, whatever theirs."""
    values = torch.rand(50, 1, generator=seeded(1))
    means = bootstrap_means(torch.cat([values, 1 - values], dim=1), seed=3)
    assert means[:, 0].std() > 0.01
    assert means.mean(1).tolist() == pytest.approx([0.5] * len(means))
    assert torch.equal(bootstrap_means(values, seed=3), bootstrap_means(values, seed=3))
    assert not torch.equal(bootstrap_means(values, seed=3), bootstrap_means(values, seed=4))


@pytest.mark.parametrize("elements", [1, 700])
def test_resamples_do_not_depend_on_how_many_are_drawn_at_a_time(
    monkeypatch: pytest.MonkeyPatch, elements: int
) -> None:
    values = torch.rand(64, 2, generator=seeded(2))
    expected = bootstrap_means(values, seed=0)
    monkeypatch.setattr("retrieval.intervals.DRAWN_ELEMENTS", elements)
    assert torch.allclose(bootstrap_means(values, seed=0), expected, rtol=1e-12)


def test_every_figure_has_its_interval() -> None:
    labels, generator = torch.arange(90) % 6, seeded(3)
    new = torch.randn(6, 8, generator=generator)[labels] + torch.randn(90, 8, generator=generator)
    transformed, orders = new + torch.randn(90, 8, generator=generator), {"mine": torch.arange(90)}
    curves = backfilling_curve(
        new, transformed, new, labels, orders=orders, cutoffs=cutoffs(90, 2), recall_at=(10,), interval_level=0.95
    )
    points, auc = curves["mine"].points, curves["mine"].auc
    for figures in (*points, auc):
        assert list(figures.intervals) == ["cmc_top1", "cmc_top5", "map", "recall_at_10"]
        for name, (low, high) in figures.intervals.items():
            value = figures.to_json()[name]
            assert value is not None
            assert low <= value <= high < low + 0.3
    narrow = evaluate(new, transformed, labels, recall_at=(10,), interval_level=0.5)
    for name, (low, high) in narrow.intervals.items():
        wide_low, wide_high = points[0].intervals[name]
        assert wide_low < low < high < wide_high
    assert evaluate(new, transformed, labels).intervals == {}
