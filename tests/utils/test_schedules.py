"""Schedules against the published formulas."""

import math
from itertools import pairwise

import pytest

from utils.schedules import SCHEDULES, constant, warmup_cosine


@pytest.mark.parametrize(("epochs", "warmup"), [(100, 5), (80, 5), (7, 0), (3, 3), (3, 5), (1, 1)])
def test_warm_up_then_half_a_cosine(epochs: int, warmup: int) -> None:
    lr = 1.024
    for e in range(epochs):
        if e < warmup:
            expected = lr * (e + 1) / warmup
        else:
            expected = 0.5 * (1 + math.cos(math.pi * (e - warmup) / (epochs - warmup))) * lr
        assert warmup_cosine(e, lr=lr, epochs=epochs, warmup_length=warmup) == pytest.approx(expected, rel=1e-12)


def test_boundaries_of_the_published_schedule() -> None:
    rates = [warmup_cosine(e, lr=1.024, epochs=100, warmup_length=5) for e in range(100)]
    assert rates[0] == pytest.approx(1.024 / 5)
    assert rates[4] == rates[5] == 1.024  # the peak ends the warm-up and starts the cosine
    assert all(a > b for a, b in pairwise(rates[5:]))
    assert 0 < rates[99] < 1e-3


def test_constant_stays_at_the_peak_after_the_warm_up() -> None:
    rates = [constant(e, lr=2.0, epochs=6, warmup_length=4) for e in range(6)]
    assert rates == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert constant(0, lr=2.0, epochs=6, warmup_length=0) == 2.0


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_starts_at_the_peak_without_warm_up(name: str) -> None:
    assert SCHEDULES[name](0, lr=0.3, epochs=10, warmup_length=0) == 0.3
