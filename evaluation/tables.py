"""An evaluation on screen: tables in percent."""

from collections.abc import Sequence
from statistics import fmean

from evaluation.run import Curves, Evaluation, Quality
from retrieval import EVEN_SPREAD, RetrievalMetrics, gap, gaps_along

SHOWN_CLASSES = 3  # of the best, and of the worst


def tables(evaluation: Evaluation, interval_level: float | None) -> str:
    """All that eval.py prints of an evaluation."""
    parts, placing = [], evaluation.placing
    if placing is not None and not placing.placed:
        parts.append(
            f"no representatives: the gallery spreads over {placing.class_spread:.0%} of the known classes, less than "
            f"{EVEN_SPREAD:.0%}"
        )
    if (calibration := evaluation.calibration) is not None:
        what = "squared distances grow by" if calibration.distance == "l2" else "cosines are multiplied by"
        parts.append(f"calibrated: transformed items' {what} {calibration.value:.4g}")
    parts.append(table(evaluation.metrics, evaluation.curves, interval_level))
    if evaluation.metrics.per_class:
        parts.append(class_table(evaluation.metrics, evaluation.class_names))
    if evaluation.group_names:
        parts.append(group_table(evaluation.metrics, evaluation.curves, evaluation.group_names))
    if evaluation.quality:
        parts.append(correlations(evaluation.quality))
    return "\n".join(parts)


def table(metrics: RetrievalMetrics, curves: Curves, interval_level: float | None) -> str:
    """The figures in percent, a row for the unfilled gallery and one for the area under each curve.

    With an `interval_level` each is followed by a row of intervals.
    """
    rows = {"no backfilling": metrics, **{f"AUC, {name} order": curve.auc for name, curve in curves.items()}}
    width = 8 if interval_level is None else 13
    lines = [_head("", metrics, width)]
    for title, row in rows.items():
        lines.append(_row(title, row, width))
        if interval_level is not None:
            ends = [row.intervals.get(name) for name in row.to_json()]
            values = ["-" if end is None else f"{100 * end[0]:.2f}-{100 * end[1]:.2f}" for end in ends]
            level = f"  {100 * interval_level:g} % interval"
            lines.append(f"{level:24}" + "".join(f"{value:>{width}}" for value in values))
    return "\n".join(lines)


def class_table(metrics: RetrievalMetrics, class_names: Sequence[str] = ()) -> str:
    """The figures in percent of the classes that do best and worst in mAP, or in CMC where it was not computed."""

    def rank(label: int) -> tuple[float, ...]:
        of_class = metrics.per_class[label]
        return (of_class.mean_average_precision or 0.0, *of_class.cmc.values())

    ordered = sorted(metrics.per_class, key=rank, reverse=True)
    shown = ordered if len(ordered) <= 2 * SHOWN_CLASSES else [*ordered[:SHOWN_CLASSES], *ordered[-SHOWN_CLASSES:]]
    lines = [_head("best and worst classes", metrics, 8)]
    for label in shown:
        title = f"class {label}" + (f" ({class_names[label]})" if class_names else "")
        lines.append(_row(title, metrics.per_class[label], 8))
    return "\n".join(lines)


def group_table(metrics: RetrievalMetrics, curves: Curves, group_names: Sequence[str]) -> str:
    """The figures in percent of each group of queries and the gap between the best and the worst.

    Before any backfilling; then of each order the gap's mean along the curve, and the gap when all is backfilled.
    """
    lines = [_head("groups of queries", metrics, 8)]
    for number, name in enumerate(group_names):
        of_group = metrics.per_group[number]
        lines.append(_row(f"{name} ({of_group.num_queries:,})", of_group, 8))
    gaps = [("gap", gap(metrics.per_group.values()))]
    for order, curve in curves.items():
        means = {name: fmean(values) for name, values in gaps_along(curve).items()}
        gaps.append((f"gap, AUC, {order} order", means))
    if curves:  # in every order the same
        gaps.append(("gap, all backfilled", gap(curve.points[-1].per_group.values())))
    lines += [_line(title, [found.get(name) for name in metrics.to_json()], 8) for title, found in gaps]
    return "\n".join(lines)


def correlations(quality: Quality) -> str:
    """A line for each judged order: its rank correlation with 1 - AP, or with what stands in for it.

    That is 1 - CMC-1 where mAP was not computed, and the error of the transformation where no item has a match.
    """
    titles = {"average_precision": "1 - AP", "cmc_top1": "1 - CMC-1", "alignment_error": "the alignment error"}
    lines = []
    for order, of_order in quality.items():
        risk, title = next((risk, title) for risk, title in titles.items() if risk in of_order)
        found = of_order[risk].spearman
        value = "none, as all items have the same" if found is None else f"{found:.2f}"
        lines.append(f"rank correlation of the {order} order with {title}: {value}")
    return "\n".join(lines)


def _head(title: str, metrics: RetrievalMetrics, width: int) -> str:
    return f"{title:24}" + "".join(f"{_title(name):>{width}}" for name in metrics.to_json())


def _row(title: str, metrics: RetrievalMetrics, width: int) -> str:
    return _line(title, list(metrics.to_json().values()), width)


def _line(title: str, figures: Sequence[float | None], width: int) -> str:
    values = ["-" if value is None else f"{100 * value:.2f}" for value in figures]
    return f"{title:24}" + "".join(f"{value:>{width}}" for value in values)


def _title(name: str) -> str:
    """The heading of a figure of `RetrievalMetrics.to_json`.

    >>> [_title(name) for name in ("cmc_top1", "map", "recall_at_10")]
    ['CMC-1', 'mAP', 'R@10']
    """
    for start, short in (("cmc_top", "CMC-"), ("recall_at_", "R@"), ("precision_at_", "P@")):
        if name.startswith(start):
            return short + name.removeprefix(start)
    return {"map": "mAP"}[name]
