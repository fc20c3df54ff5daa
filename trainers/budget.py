"""How long trainings may take, and whether one can still win."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

UNITS = {"s": 1, "sec": 1, "seconds": 1, "min": 60, "minutes": 60}
RESERVE = 0.2  # share of a budget that is kept for what follows the trainings: orders are judged, a calibration chosen
FEWEST_EPOCHS = 6  # that are looked at before a training is given up: the warm-up and one more
LOOK_BACK = 3  # epochs by which its pace is judged


def seconds_of(budget: str) -> float:
    """The seconds of a budget such as `90 s` or `10 min`.

    Raises:
        ValueError: it is something else.

    >>> seconds_of("1.5 min")
    90.0
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]+)", budget)
    if match is None or match[2] not in UNITS or not float(match[1]):
        raise ValueError(f"budget: should be a time above 0 with a unit, as `90 s` or `10 min`, got {budget!r}")
    return float(match[1]) * UNITS[match[2]]


class Clock:
    """The time that a run has taken, what it took before an interruption included, and how much is left.

    Args:
        budget: seconds; None: there is no end.
    """

    def __init__(self, budget: float | None) -> None:
        self.budget = budget
        self._started = time.monotonic()

    def spent(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    def went_on(self, spent: float) -> None:
        """A part of the run is found to have ended after so many seconds."""
        self._started = min(self._started, time.monotonic() - spent)

    def until(self, parts: int) -> float:
        """When the first of so many parts to come should end, in seconds since the run began."""
        if self.budget is None:
            return float("inf")
        return self.spent() + (self.budget * (1 - RESERVE) - self.spent()) / parts


@dataclass(frozen=True)
class Limit:
    """When a training ends before its last epoch, and by which score its epochs are compared."""

    title: str  # of the training, for its lines of progress
    clock: Clock
    measure: str  # in a log record: the score, of which more is better
    start: float  # the score of the weights that it begins with
    until: float = float("inf")  # seconds on the clock
    to_beat: float = float("-inf")  # a score that others have reached already

    def is_over(self) -> bool:
        """Whether the time is up."""
        return self.clock.spent() >= self.until

    def is_hopeless(self, scores: Sequence[float], epochs: int) -> bool:
        """Whether even the pace of the last epochs, kept to the last one, would not beat what others have reached.

        Learning curves flatten, so that pace is more than can be expected.

        Args:
            scores: after each epoch so far.
            epochs: in all.

        >>> limit = Limit("fct", Clock(None), "mAP", start=0.1, to_beat=0.9)
        >>> limit.is_hopeless([0.1, 0.2, 0.3, 0.4, 0.45, 0.5], 8), limit.is_hopeless([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 12)
        (True, False)
        """
        if len(scores) < FEWEST_EPOCHS:
            return False
        now, before = fmean(scores[-LOOK_BACK:]), fmean(scores[-2 * LOOK_BACK : -LOOK_BACK])
        pace = max(0.0, now - before) / LOOK_BACK
        return max(scores) + pace * (epochs - len(scores)) < self.to_beat


def in_words(seconds: float) -> str:
    """A time for people.

    >>> in_words(8.4), in_words(135)
    ('8 s', '2 min 15 s')
    """
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"
