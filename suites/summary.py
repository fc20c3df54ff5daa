"""Figures over seeds: their mean and standard deviation, for the report and the plots."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from retrieval import regret
from suites.results import GAIN_METRICS, METRICS, Results
from utils.errors import UserError

SELECTED = ("kept", "oracle")  # whose risk depends on the coverage


@dataclass(frozen=True)
class Figure:
    """A figure's mean over the seeds and, of two and more, its standard deviation (n - 1)."""

    mean: float
    deviation: float | None = None


Figures = dict[str, Figure | None]  # by metric; None where it was not computed


@dataclass(frozen=True)
class Risk:
    """How well an order keeps the items of low risk for the end: see `risk_coverage` in docs/evaluation.md."""

    spearman: Figure | None
    coverages: list[float]
    curves: dict[str, list[Figure]]  # kept, oracle, random -> mean risk at each coverage
    aurc: Figures  # kept, oracle, random


@dataclass(frozen=True)
class Groups:
    """A row's figures of each group of queries, and the gap between the best and the worst (docs/groups.md)."""

    figures: dict[str, Figures]  # group -> before any backfilling; with an order, the areas
    gap: Figures  # likewise
    curves: dict[str, dict[str, list[Figure]]] = field(default_factory=dict)  # group -> metric -> its points
    gaps: dict[str, list[Figure]] = field(default_factory=dict)  # metric -> its points
    closed: dict[str, list[Figure]] = field(default_factory=dict)  # metric -> share of the first gap, at its points
    closed_area: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A row of a table, over the seeds."""

    case: str
    side_info: bool | None
    order: str | None
    published: dict[str, float] | None  # percent
    curve: bool = True  # whether the plots of curves show it
    measured: Figures | None = None  # None: not run
    new_new: Figures | None = None  # after full backfilling
    gain_recovered: Figures | None = None
    fractions: list[float] = field(default_factory=list)  # of the gallery backfilled, at each point of the curves
    curves: dict[str, list[Figure]] = field(default_factory=dict)  # metric -> its points
    regrets: dict[str, tuple[Figure, Figure]] = field(default_factory=dict)  # metric -> below its lower end, its chord
    risks: dict[str, Risk] = field(default_factory=dict)  # kind of risk -> how the order does by it; empty: not judged
    groups: Groups | None = None  # None: the evaluation has none


@dataclass(frozen=True)
class Summary:
    """The results of a suite over its seeds."""

    seeds: list[int]
    old_old: Figures
    new_new: Figures
    no_backfilling: list[Row]
    backfilling: list[Row]
    old_old_groups: Groups | None = None  # None: the evaluation has none


def over_seeds(values: Sequence[float | None]) -> Figure | None:
    """Mean and standard deviation of a figure; None where a seed has none.

    >>> over_seeds([0.25, 0.5, 0.75])
    Figure(mean=0.5, deviation=0.25)
    >>> over_seeds([0.5])
    Figure(mean=0.5, deviation=None)
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return _figure(known)


def _figure(values: Sequence[float]) -> Figure:
    return Figure(fmean(values), stdev(values) if len(values) > 1 else None)


def summarise(results: list[Results]) -> Summary:
    """Gather the results of one suite, as `collect_results` gives them for each seed.

    What a stage that ran once for all seeds has found is one figure, without a deviation.

    Raises:
        UserError: the curves of different seeds have different points, so that there is no mean curve.
    """
    return Summary(
        seeds=[result["seed"] for result in results],
        old_old=_metrics_of(results[0]["baseline_stages"]["old_old"], results),
        new_new=_metrics_of(results[0]["baseline_stages"]["new_new"], results),
        no_backfilling=_rows("no_backfilling", results),
        backfilling=_rows("backfilling", results),
        old_old_groups=_groups(_evaluations(results[0]["baseline_stages"]["old_old"], results), None),
    )


def _metrics_of(stage: str, results: list[Results]) -> Figures:
    """What an evaluation has found before any backfilling."""
    return _figures([found["metrics"] for found in _evaluations(stage, results)], METRICS)


def _evaluations(stage: str, results: list[Results]) -> list[dict[str, Any]]:
    """What an evaluation has found with each seed for which it ran."""
    return [result["evaluations"][stage] for result in _that_ran(stage, results)]


def _rows(table: str, results: list[Results]) -> list[Row]:
    return [_row(table, index, results) for index in range(len(results[0][table]))]


def _that_ran(stage: str, results: list[Results]) -> list[Results]:
    """The results of the seeds for which a stage ran: the first alone where it ran once."""
    return results[:1] if results[0]["stages"][stage]["once"] else results


def _row(table: str, index: int, results: list[Results]) -> Row:
    row = results[0][table][index]
    stage, order = row["stage"], row["order"]
    named = {name: row[name] for name in ("case", "side_info", "order", "published", "curve")}
    if stage is None:
        return Row(**named)
    new_new = _metrics_of(row["new_new"] or results[0]["baseline_stages"]["new_new"], results)
    results = _that_ran(stage, results)
    rows = [result[table][index] for result in results]
    measured = _figures([row["measured"] for row in rows], METRICS)
    groups = _groups(_evaluations(stage, results), order)
    if order is None:
        return Row(**named, measured=measured, groups=groups)
    curves = [result["evaluations"][stage]["backfilling"][order] for result in results]
    judged = [result["evaluations"][stage].get("risk_coverage", {}).get(order, {}) for result in results]
    fractions = _common([curve["fractions"] for curve in curves], stage)
    return Row(
        **named,
        measured=measured,
        new_new=new_new,
        gain_recovered=_figures([row["gain_recovered"] for row in rows], GAIN_METRICS),
        fractions=fractions,
        curves={name: points for name, points in _points(curves).items() if name in GAIN_METRICS},
        regrets={
            name: _regret(fractions, [curve[name] for curve in curves])
            for name in METRICS
            if all(curve[name] is not None for curve in curves)
        },
        risks={name: _risk([of_seed[name] for of_seed in judged], stage) for name in _shared_keys(judged)},
        groups=groups,
    )


def _groups(evaluations: list[dict[str, Any]], order: str | None) -> Groups | None:
    """The groups of an evaluation, before any backfilling or along the curves of an order; None where it has none."""
    if not all("groups" in evaluation for evaluation in evaluations):
        return None
    names = list(evaluations[0]["groups"])
    if order is None:
        return Groups(
            figures={name: _figures([found["groups"][name] for found in evaluations], METRICS) for name in names},
            gap=_known_figures([found["gap"] for found in evaluations]),
        )
    curves = [found["backfilling"][order] for found in evaluations]
    return Groups(
        figures={name: _figures([curve["groups"][name]["auc"] for curve in curves], METRICS) for name in names},
        gap=_known_figures([curve["gap"]["auc"] for curve in curves]),
        curves={name: _points([curve["groups"][name] for curve in curves]) for name in names},
        gaps=_points([curve["gap"] for curve in curves]),
        closed=_points([curve["gap_closed"] for curve in curves]),
        closed_area=_known_figures([curve["gap_closed"]["auc"] for curve in curves]),
    )


def _points(curves: list[dict[str, Any]]) -> dict[str, list[Figure]]:
    """The points of each metric that every seed has."""
    known = [name for name in METRICS if all(curve.get(name) is not None for curve in curves)]
    return {
        name: [_figure(values) for values in zip(*(curve[name] for curve in curves), strict=True)] for name in known
    }


def _known_figures(values: list[dict[str, float | None]]) -> Figures:
    """As `_figures`, of values that leave out what was not computed."""
    return {name: over_seeds([of_seed.get(name) for of_seed in values]) for name in METRICS}


def _regret(fractions: list[float], curves: list[list[float]]) -> tuple[Figure, Figure]:
    below_end, below_chord = zip(*(regret(fractions, values) for values in curves), strict=True)
    return _figure(below_end), _figure(below_chord)


def _risk(curves: list[dict[str, Any]], stage: str) -> Risk:
    coverages = _common([curve["coverages"] for curve in curves], stage)
    points = {name: [_figure(risks) for risks in zip(*(c[name] for c in curves), strict=True)] for name in SELECTED}
    aurc = _figures([curve["aurc"] for curve in curves], (*SELECTED, "random"))
    random = _figure([curve["random"] for curve in curves])
    return Risk(
        spearman=over_seeds([curve["spearman"] for curve in curves]),
        coverages=coverages,
        curves=points | {"random": [random] * len(coverages)},
        aurc=aurc,
    )


def _shared_keys(values: list[dict[str, Any]]) -> list[str]:
    """The keys that all have, in their order."""
    return [name for name in values[0] if all(name in others for others in values)]


def _common(places: list[list[float]], stage: str) -> list[float]:
    """The points at which the curves of every seed are known."""
    if any(of_seed != places[0] for of_seed in places):
        raise UserError(f"stage {stage}: its curves have different points with different seeds; run it anew for all")
    return places[0]


def _figures(values: list[dict[str, float | None]], names: Iterable[str]) -> Figures:
    return {name: over_seeds([of_seed[name] for of_seed in values]) for name in names}
