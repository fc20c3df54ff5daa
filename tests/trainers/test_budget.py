"""Budgets: how they are written, what counts as spent, and when a training cannot win any more."""

import time

import pytest

from trainers.budget import Clock, Limit, seconds_of


@pytest.mark.parametrize(
    ("budget", "seconds"), [("90 s", 90), ("10 min", 600), ("1.5min", 90), ("2 minutes", 120), ("45 seconds", 45)]
)
def test_a_budget_is_a_number_with_a_unit(budget: str, seconds: float) -> None:
    assert seconds_of(budget) == seconds


@pytest.mark.parametrize(
    "budget", ["", "600", "10 hours", "-5 min", "0 s", "5 min 30 s", " 5 min", "1e3 s", "min", "nan s"]
)
def test_anything_else_is_refused(budget: str) -> None:
    with pytest.raises(ValueError, match=r"budget: should be a time above 0 with a unit, as `90 s` or `10 min`"):
        seconds_of(budget)


def test_what_was_spent_before_an_interruption_counts_and_no_time_comes_back() -> None:
    clock = Clock(1000)
    assert clock.spent() < 5
    clock.went_on(300)
    assert 300 <= clock.spent() < 305
    clock.went_on(20)
    assert 300 <= clock.spent() < 305
    assert clock.until(1) == pytest.approx(800)  # a fifth is kept for what follows
    assert clock.until(3) == pytest.approx(300 + 500 / 3, abs=5)
    assert Clock(None).until(2) == float("inf")


def test_time_is_up_when_the_clock_says_so() -> None:
    clock = Clock(1)
    limit = Limit("fct", clock, "mAP", start=0.1, until=0.05)
    assert not limit.is_over()
    time.sleep(0.06)
    assert limit.is_over()


def test_only_what_cannot_catch_up_at_its_pace_is_hopeless() -> None:
    """A score that rises by 0.01 an epoch reaches 0.5 in 40 epochs from 0.1, and not in 30."""
    limit = Limit("fct", Clock(None), "mAP", start=0.1, to_beat=0.5)
    rising = [0.1 + 0.01 * epoch for epoch in range(1, 9)]
    assert not limit.is_hopeless(rising, 42)
    assert limit.is_hopeless(rising, 35)
    assert not limit.is_hopeless(rising[:4], 8)  # too early to say
    assert not limit.is_hopeless([0.51, *[0.2] * 9], 12)  # it has won already
    assert not Limit("fct", Clock(None), "mAP", start=0.1).is_hopeless([0.1] * 20, 25)  # nobody to beat
