"""An evaluation as others read it: the result's JSON, a table in percent, plain arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrieval.results import BackfillingCurve, PerQuery, RetrievalMetrics
from retrieval.risk_coverage import RiskCoverage

Curves = Mapping[str, BackfillingCurve]
Quality = Mapping[str, Mapping[str, RiskCoverage]]  # order -> risk -> how good the order is
SHOWN_CLASSES = 3  # of the best, and of the worst


def result_json(
    metrics: RetrievalMetrics,
    curves: Curves,
    confidence: float | None,
    quality: Quality | None = None,
    class_names: Sequence[str] = (),
) -> dict[str, Any]:
    """The result of an evaluation: the metrics before any backfilling and, if there are curves, `backfilling`.

    `risk_coverage`, where orders were judged, has for each of them the risk-coverage curve of each risk
    (`RiskCoverage.to_json`). With a `confidence` level there are also `intervals` with the level and [low, high] of
    each of the metrics; a curve has its own (`BackfillingCurve.to_json`). `per_class`, where it was asked for, has for
    each label the number of queries, the metrics, and the name, where `class_names` has one for every label.
    """
    result: dict[str, Any] = {
        "num_queries": metrics.num_queries,
        "num_skipped": metrics.num_skipped,
        "num_gallery": metrics.num_gallery,
        "distance_metric": metrics.distance_metric,
        "metrics": metrics.to_json(),
    }
    if confidence is not None:
        intervals = {name: list(interval) for name, interval in metrics.intervals.items()}
        result["intervals"] = {"confidence": confidence, "metrics": intervals}
    if metrics.per_class:
        result["per_class"] = {
            str(label): {
                **({"name": class_names[label]} if class_names else {}),
                "num_queries": of_class.num_queries,
                **of_class.to_json(),
            }
            for label, of_class in metrics.per_class.items()
        }
    if curves:
        result["backfilling"] = {name: curve.to_json() for name, curve in curves.items()}
    if quality:
        result["risk_coverage"] = {
            order: {risk: curve.to_json() for risk, curve in of_order.items()} for order, of_order in quality.items()
        }
    return result


def table(metrics: RetrievalMetrics, curves: Curves, confidence: float | None) -> str:
    """The figures in percent, a row for the unfilled gallery and one for the area under each curve.

    With a `confidence` level each is followed by a row of intervals.
    """
    rows = {"no backfilling": metrics, **{f"AUC, {name} order": curve.auc for name, curve in curves.items()}}
    width = 8 if confidence is None else 13
    lines = [_head("", metrics, width)]
    for title, row in rows.items():
        lines.append(_row(title, row, width))
        if confidence is not None:
            ends = [row.intervals.get(name) for name in row.to_json()]
            values = ["-" if end is None else f"{100 * end[0]:.2f}-{100 * end[1]:.2f}" for end in ends]
            level = f"  {100 * confidence:g} % interval"
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


def correlations(quality: Quality) -> str:
    """A line for each judged order: its rank correlation with 1 - AP, or with 1 - CMC-1 where mAP was not computed."""
    lines = []
    for order, of_order in quality.items():
        risk, title = ("average_precision", "1 - AP") if "average_precision" in of_order else ("cmc_top1", "1 - CMC-1")
        found = of_order[risk].spearman
        value = "none, as all items have the same" if found is None else f"{found:.2f}"
        lines.append(f"rank correlation of the {order} order with {title}: {value}")
    return "\n".join(lines)


def _head(title: str, metrics: RetrievalMetrics, width: int) -> str:
    return f"{title:24}" + "".join(f"{_title(name):>{width}}" for name in metrics.to_json())


def _row(title: str, metrics: RetrievalMetrics, width: int) -> str:
    values = ["-" if value is None else f"{100 * value:.2f}" for value in metrics.to_json().values()]
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


def curve_array(curves: Curves) -> Tensor:
    """(orders, points, 3) float64 of CMC-1, CMC-5, mAP; NaN for mAP that was not computed."""
    points = [[point.to_json() for point in curve.points] for curve in curves.values()]
    columns = ("cmc_top1", "cmc_top5", "map")
    values = [[[point[name] for name in columns] for point in curve] for curve in points]
    return torch.tensor(
        [[[torch.nan if value is None else value for value in point] for point in curve] for curve in values],
        dtype=torch.float64,
    )


def per_query_arrays(
    metrics: RetrievalMetrics, curves: Curves, query_ids: np.ndarray
) -> dict[str, Tensor | np.ndarray]:
    """The figures of each query by name, from an evaluation with `per_query`; q queries have a relevant item.

    Before any backfilling: `ids` (q,), `num_relevant` (q,), `first_rank` (q,), `average_precision` (q,), and
    `hit_ranks` with `hit_offsets` (q + 1,): hit_ranks[hit_offsets[i] : hit_offsets[i + 1]] are the ranks of all
    relevant items of query i, the nearest first. With curves: `cutoffs` (P,) and for each order NAME
    `NAME_first_rank` (q, P) and `NAME_average_precision` (q, P). Ranks are from 1. Average precisions are left out
    where mAP was not computed.
    """
    of_curves = {name: _present(curve.per_query) for name, curve in curves.items()}
    first = next(iter(of_curves.values())) if of_curves else _present(metrics.per_query)
    assert first.hit_ranks is not None
    arrays: dict[str, Tensor | np.ndarray] = {
        "ids": query_ids[first.query_index.cpu().numpy()],
        "num_relevant": first.num_relevant,
        "first_rank": first.first_ranks[:, 0],
        "hit_ranks": first.hit_ranks,
        "hit_offsets": torch.cat([first.num_relevant.new_zeros(1), first.num_relevant.cumsum(0)]),
    }
    if first.average_precisions is not None:
        arrays["average_precision"] = first.average_precisions[:, 0]
    for name, figures in of_curves.items():
        arrays["cutoffs"] = torch.tensor(curves[name].cutoffs)
        arrays[f"{name}_first_rank"] = figures.first_ranks
        if figures.average_precisions is not None:
            arrays[f"{name}_average_precision"] = figures.average_precisions
    return arrays


def _present(per_query: PerQuery | None) -> PerQuery:
    assert per_query is not None
    return per_query
