"""The files of an evaluation: its result as JSON, and plain arrays."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.embeddings import EmbeddingSet, write_embeddings
from evaluation.config import EvalConfig
from evaluation.run import Curves, Evaluation
from retrieval import BackfillingCurve, PerQuery, RetrievalMetrics, gap, gaps_to_json
from utils.files import write_array, write_arrays, write_json


def write_outputs(evaluation: Evaluation, config: EvalConfig) -> None:
    """Write what the config asks for: the embeddings, the curves as an array, the figures of each query, the result."""
    params, query = config.eval_params, evaluation.query
    if params.embeddings_output_dir is not None:
        folder, gallery = Path(params.embeddings_output_dir), evaluation.gallery
        write_embeddings(folder / "query.npz", query)
        write_embeddings(folder / "gallery.npz", gallery)
        if gallery.new is not None:
            write_embeddings(folder / "new_gallery.npz", EmbeddingSet(gallery.new, gallery.ids))
    if params.backfilling_result_path is not None and evaluation.curves:
        write_array(params.backfilling_result_path, curve_array(evaluation.curves))
    if params.per_query is not None:
        assert query.numbers is not None
        ids = query.numbers.cpu().numpy() if query.ids is None else query.ids  # the number of a query is its row's
        write_arrays(params.per_query, per_query_arrays(evaluation.metrics, evaluation.curves, ids))
    if config.output is not None:
        write_json(config.output, result_json(evaluation, params.interval_level))


def result_json(evaluation: Evaluation, interval_level: float | None) -> dict[str, Any]:
    """The result of an evaluation: the metrics before any backfilling and, if there are curves, `backfilling`.

    With an `interval_level` there are also `intervals` with that level and [low, high] of each of the metrics; a curve
    has its own (`BackfillingCurve.to_json`). `per_class`, where it was asked for, has for each label the number of
    queries, the metrics, and the name, where it has one. `groups`, where there are groups of queries, has for each the
    number of its queries and the metrics, `gap` the best of these less the worst; each curve has its own
    (`curve_json`). `risk_coverage`, where orders were judged, has for each of
    them the risk-coverage curve of each risk (`RiskCoverage.to_json`). `representatives`, where they were asked for,
    says whether they were placed; `calibration`, where the curves have one, which.
    """
    metrics, names = evaluation.metrics, evaluation.class_names
    result: dict[str, Any] = {
        "num_queries": metrics.num_queries,
        "num_skipped": metrics.num_skipped,
        "num_gallery": metrics.num_gallery,
        "distance_metric": metrics.distance_metric,
        "metrics": metrics.to_json(),
    }
    if interval_level is not None:
        intervals = {name: list(interval) for name, interval in metrics.intervals.items()}
        result["intervals"] = {"confidence": interval_level, "metrics": intervals}
    if metrics.per_class:
        result["per_class"] = {
            str(label): {
                **({"name": names[label]} if names else {}),
                "num_queries": of_class.num_queries,
                **of_class.to_json(),
            }
            for label, of_class in metrics.per_class.items()
        }
    if evaluation.group_names:
        result["groups"] = {
            name: {"num_queries": of_group.num_queries, **of_group.to_json()}
            for number, name in enumerate(evaluation.group_names)
            for of_group in (metrics.per_group[number],)
        }
        result["gap"] = gap(metrics.per_group.values())
    if evaluation.curves:
        result["backfilling"] = {
            name: curve_json(curve, evaluation.group_names) for name, curve in evaluation.curves.items()
        }
    if evaluation.quality:
        result["risk_coverage"] = {
            order: {risk: curve.to_json() for risk, curve in of_order.items()}
            for order, of_order in evaluation.quality.items()
        }
    if evaluation.calibration is not None:
        result["calibration"] = asdict(evaluation.calibration)
    if evaluation.placing is not None:
        result["representatives"] = asdict(evaluation.placing)
    return result


def curve_json(curve: BackfillingCurve, group_names: Sequence[str]) -> dict[str, Any]:
    """A curve (`BackfillingCurve.to_json`); with groups also `groups`, that of each of them, `gap` and `gap_closed`."""
    if not group_names:
        return curve.to_json()
    curves = {name: curve.of_group(number) for number, name in enumerate(group_names)}
    groups = {name: {"num_queries": of_group.num_queries, **of_group.to_json()} for name, of_group in curves.items()}
    return {**curve.to_json(), "groups": groups, **gaps_to_json(curve)}


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
