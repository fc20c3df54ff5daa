"""How far apart groups of queries are, and how much of that backfilling closes."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from retrieval.results import BackfillingCurve, RetrievalMetrics


def gap(groups: Iterable[RetrievalMetrics]) -> dict[str, float]:
    """The best group's figure less the worst's, of each figure that was computed, by the names of the JSON.

    Which group is the best may differ from figure to figure.
    """
    figures = [metrics.to_json() for metrics in groups]
    columns = {name: [of_group[name] for of_group in figures] for name in figures[0]}
    computed = {name: [value for value in column if value is not None] for name, column in columns.items()}
    return {name: max(values) - min(values) for name, values in computed.items() if values}


def gap_closed(gaps: Sequence[float]) -> list[float] | None:
    """The share of the first gap that is closed at each point, 1 - gap / first; None where the first is 0.

    It is negative where the groups are farther apart than at first. The last point is that of the new model alone: what
    it lacks of 1 is the new model's own gap.

    >>> gap_closed([0.5, 0.25, 0.625])
    [0.0, 0.5, -0.25]
    >>> gap_closed([0.0, 0.25])
    """
    return None if gaps[0] == 0 else [1 - value / gaps[0] for value in gaps]


def gaps_along(curve: BackfillingCurve) -> dict[str, list[float]]:
    """The gap at each point of a curve that was computed with `query_groups`, of each figure that was computed."""
    points = [gap(point.per_group.values()) for point in curve.points]
    return {name: [point[name] for point in points] for name in points[0]}


def gaps_to_json(curve: BackfillingCurve) -> dict[str, dict[str, Any]]:
    """`gap` and `gap_closed`: of each figure a list over the points, and in `auc` its mean over them."""
    gaps = gaps_along(curve)
    closed = {name: gap_closed(values) for name, values in gaps.items()}
    return {
        name: {**columns, "auc": {figure: values and fmean(values) for figure, values in columns.items()}}
        for name, columns in (("gap", gaps), ("gap_closed", closed))
    }
