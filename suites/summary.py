"""Figures over seeds: their mean and standard deviation, for the report and the plots."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from suites.results import GAIN_METRICS, METRICS, Results
from utils.errors import UserError


@dataclass(frozen=True)
class Figure:
    """A figure's mean over the seeds and, of two and more, its standard deviation (n - 1)."""

    mean: float
    deviation: float | None = None


Figures = dict[str, Figure | None]  # by metric; None where it was not computed


@dataclass(frozen=True)
class Row:
    """A row of a table, over the seeds."""

    case: str
    side_info: bool | None
    order: str | None
    published: dict[str, float] | None  # percent
    measured: Figures | None = None  # None: not run
    gain_recovered: Figures | None = None
    fractions: list[float] = field(default_factory=list)  # of the gallery backfilled, at each point of the curves
    curves: dict[str, list[Figure]] = field(default_factory=dict)  # metric -> its points


@dataclass(frozen=True)
class Summary:
    """The results of a suite over its seeds."""

    seeds: list[int]
    old_old: Figures
    new_new: Figures
    no_backfilling: list[Row]
    backfilling: list[Row]


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
    stage_of = results[0]["baseline_stages"]
    baselines = {
        name: _figures([result["baselines"][name] for result in _that_ran(stage, results)], METRICS)
        for name, stage in stage_of.items()
    }
    tables = {
        name: [_row(name, index, results) for index in range(len(results[0][name]))]
        for name in ("no_backfilling", "backfilling")
    }
    return Summary(seeds=[result["seed"] for result in results], **baselines, **tables)


def _that_ran(stage: str, results: list[Results]) -> list[Results]:
    """The results of the seeds for which a stage ran: the first alone where it ran once."""
    return results[:1] if results[0]["stages"][stage]["once"] else results


def _row(table: str, index: int, results: list[Results]) -> Row:
    row = results[0][table][index]
    stage, order = row["stage"], row["order"]
    named = {name: row[name] for name in ("case", "side_info", "order", "published")}
    if stage is None:
        return Row(**named)
    results = _that_ran(stage, results)
    rows = [result[table][index] for result in results]
    measured = _figures([row["measured"] for row in rows], METRICS)
    if order is None:
        return Row(**named, measured=measured)
    curves = [result["evaluations"][stage]["backfilling"][order] for result in results]
    fractions = curves[0]["fractions"]
    if any(curve["fractions"] != fractions for curve in curves):
        raise UserError(f"stage {stage}: its curves have different points with different seeds; run it anew for all")
    return Row(
        **named,
        measured=measured,
        gain_recovered=_figures([row["gain_recovered"] for row in rows], GAIN_METRICS),
        fractions=fractions,
        curves={
            name: [_figure(values) for values in zip(*(curve[name] for curve in curves), strict=True)]
            for name in GAIN_METRICS
            if all(curve[name] is not None for curve in curves)
        },
    )


def _figures(values: list[dict[str, float | None]], names: Iterable[str]) -> Figures:
    return {name: over_seeds([of_seed[name] for of_seed in values]) for name in names}
