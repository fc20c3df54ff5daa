"""What an evaluation returns, and its JSON. Figures are fractions in [0, 1]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, NamedTuple

from torch import Tensor

Interval = tuple[float, float]


@dataclass(frozen=True)
class Wanted:
    """Which figures to compute."""

    top_k: Sequence[int] = (1, 5)
    recall_at: Sequence[int] = ()
    precision_at: Sequence[int] = ()
    compute_map: bool = True
    per_query: bool = False
    per_class: bool = False

    @property
    def depths(self) -> tuple[int, ...]:
        """The k at which relevant items are counted."""
        return tuple(sorted({*self.recall_at, *self.precision_at}))


class PerQuery(NamedTuple):
    """The figures of each of the q evaluated queries, in the order of the queries, at each of P points."""

    query_index: Tensor  # (q,) its place among the queries
    num_relevant: Tensor  # (q,)
    first_ranks: Tensor  # (q, P) int32: rank of the nearest relevant item, from 1
    average_precisions: Tensor | None  # (q, P) float64; None if mAP was not computed
    hits: Tensor  # (q, P, K) int32: relevant items among the k nearest, for each of `Wanted.depths`
    hit_ranks: Tensor | None  # (num_relevant.sum(),) int32: ranks of all relevant items at the first point, by query


@dataclass(frozen=True)
class Counts:
    """What the figures were computed on."""

    num_queries: int
    """Queries evaluated: those with a relevant item."""
    num_skipped: int
    """Queries without a relevant item: those with a negative label, and those that only their own camera has seen."""
    num_gallery: int
    distance_metric: str


@dataclass(frozen=True)
class RetrievalMetrics(Counts):
    """The metrics of one query set against one gallery."""

    cmc: Mapping[int, float]
    """k -> CMC top-k."""
    mean_average_precision: float | None
    """None if it was not computed."""
    recall: Mapping[int, float] = field(default_factory=dict)
    """k -> recall@k."""
    precision: Mapping[int, float] = field(default_factory=dict)
    """k -> precision@k."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """Name of a figure, as in `to_json` -> its confidence interval; empty if none was asked for."""
    per_query: PerQuery | None = field(default=None, compare=False, repr=False)
    """None if it was not asked for, and at the single points of a curve."""
    per_class: Mapping[int, "RetrievalMetrics"] = field(default_factory=dict, repr=False)
    """Label -> those of the class's queries alone; empty if not asked for, and past a curve's first point."""
    per_group: Mapping[int, "RetrievalMetrics"] = field(default_factory=dict, repr=False)
    """Group -> those of its queries alone; empty without groups."""

    def to_json(self) -> dict[str, float | None]:
        """`{"cmc_top1": x, "cmc_top5": x, "map": x}`, "map" null if not computed; `recall_at_K`, `precision_at_K`."""
        return {
            **{f"cmc_top{k}": value for k, value in self.cmc.items()},
            "map": self.mean_average_precision,
            **{f"recall_at_{k}": value for k, value in self.recall.items()},
            **{f"precision_at_{k}": value for k, value in self.precision.items()},
        }


class Regret(NamedTuple):
    """By how much a curve falls, at most, where backfilling should have helped; 0 where it does not fall."""

    below_end: float
    """Below the lower one of its ends: a part of the backfilling made retrieval worse than none or all of it."""
    below_chord: float
    """Below the straight line between its ends: an item brought less than the average item."""


def regret(fractions: Sequence[float], values: Sequence[float]) -> Regret:
    """The regret of a curve with these values at rising fractions from 0 to 1.

    >>> regret([0, 0.5, 1], [0.25, 0.125, 0.5])
    Regret(below_end=0.125, below_chord=0.25)
    """
    first, last = values[0], values[-1]
    chord = [(1 - fraction) * first + fraction * last for fraction in fractions]
    return Regret(
        max(0.0, min(first, last) - min(values)),
        max(0.0, *(line - value for line, value in zip(chord, values, strict=True))),
    )


@dataclass(frozen=True)
class BackfillingCurve(Counts):
    """The metrics while a gallery is backfilled in one order: a point for each cut-off."""

    cutoffs: tuple[int, ...]
    """Items that hold their new embedding."""
    points: tuple[RetrievalMetrics, ...]
    auc_intervals: Mapping[str, Interval] = field(default_factory=dict)
    """Of the areas under the curve, as `RetrievalMetrics.intervals`."""
    per_query: PerQuery | None = field(default=None, compare=False, repr=False)
    """None if it was not asked for."""

    @property
    def fractions(self) -> tuple[float, ...]:
        """The share of the gallery that is backfilled at each point."""
        return tuple(cutoff / self.num_gallery for cutoff in self.cutoffs)

    @property
    def auc(self) -> RetrievalMetrics:
        """The area under the curve of each metric: the plain mean over the points (FastFill)."""
        precisions = [point.mean_average_precision for point in self.points]
        computed = [precision for precision in precisions if precision is not None]
        first = self.points[0]
        return RetrievalMetrics(
            self.num_queries,
            self.num_skipped,
            self.num_gallery,
            self.distance_metric,
            cmc={k: fmean(point.cmc[k] for point in self.points) for k in first.cmc},
            mean_average_precision=fmean(computed) if computed else None,
            recall={k: fmean(point.recall[k] for point in self.points) for k in first.recall},
            precision={k: fmean(point.precision[k] for point in self.points) for k in first.precision},
            intervals=self.auc_intervals,
        )

    def of_group(self, group: int) -> "BackfillingCurve":
        """The curve of the queries of one group, without intervals."""
        points = tuple(point.per_group[group] for point in self.points)
        queries, skipped = points[0].num_queries, points[0].num_skipped
        return replace(self, num_queries=queries, num_skipped=skipped, points=points, auc_intervals={}, per_query=None)

    def to_json(self) -> dict[str, Any]:
        """`cutoffs`, `fractions`, a list over the points for each metric, and `auc`; "map" null if not computed.

        With confidence intervals also `intervals`: a list over the points of [low, high] for each metric, and `auc`.
        """
        points = [point.to_json() for point in self.points]
        auc = self.auc.to_json()
        columns = {name: None if area is None else [point[name] for point in points] for name, area in auc.items()}
        json: dict[str, Any] = {"cutoffs": list(self.cutoffs), "fractions": list(self.fractions), **columns, "auc": auc}
        if self.auc_intervals:
            json["intervals"] = {
                **{name: [list(point.intervals[name]) for point in self.points] for name in self.auc_intervals},
                "auc": {name: list(interval) for name, interval in self.auc_intervals.items()},
            }
        return json
