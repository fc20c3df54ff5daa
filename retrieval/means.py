"""From the figures of each query to those of the whole set: means over queries, and their confidence intervals."""

from collections.abc import Mapping
from dataclasses import asdict, replace

import torch
from torch import Tensor

from retrieval.intervals import bootstrap_means, percentile_interval
from retrieval.metrics import cmc, precision, recall
from retrieval.results import Counts, Interval, PerQuery, RetrievalMetrics, Wanted


def mean_metrics(
    ranking: PerQuery, counts: Counts, wanted: Wanted, query_labels: Tensor, interval_level: float | None, seed: int
) -> tuple[tuple[RetrievalMetrics, ...], Mapping[str, Interval]]:
    """The metrics at each point, and the intervals of their means over the points (empty without a level).

    `query_labels` are those of all queries (n_q,), for the metrics of each class at the first point.
    """
    figures = query_figures(ranking, wanted)
    names, points = list(figures), ranking.first_ranks.shape[1]
    means = {name: values.mean(0).tolist() for name, values in figures.items()}
    intervals: list[dict[str, Interval]] = [{} for _ in range(points)]
    auc_intervals: dict[str, Interval] = {}
    if interval_level is not None:
        resampled = bootstrap_means(torch.stack(list(figures.values()), dim=2), seed)  # (samples, P, M)
        of_points = percentile_interval(resampled, interval_level).permute(1, 2, 0).tolist()  # P, M, 2
        intervals = [dict(zip(names, map(tuple, rows), strict=True)) for rows in of_points]
        of_means = percentile_interval(resampled.mean(1), interval_level).T.tolist()
        auc_intervals = dict(zip(names, map(tuple, of_means), strict=True))
    metrics = [
        _metrics({name: values[point] for name, values in means.items()}, counts, wanted, intervals[point])
        for point in range(points)
    ]
    if wanted.per_class:
        metrics[0] = replace(metrics[0], per_class=_metrics_of_classes(ranking, figures, counts, wanted, query_labels))
    return tuple(metrics), auc_intervals


def _metrics(
    means: Mapping[str, float], counts: Counts, wanted: Wanted, intervals: Mapping[str, Interval]
) -> RetrievalMetrics:
    return RetrievalMetrics(
        **asdict(counts),
        cmc={k: means[f"cmc_top{k}"] for k in wanted.top_k},
        mean_average_precision=means["map"] if wanted.compute_map else None,
        recall={k: means[f"recall_at_{k}"] for k in wanted.recall_at},
        precision={k: means[f"precision_at_{k}"] for k in wanted.precision_at},
        intervals=intervals,
    )


def _metrics_of_classes(
    ranking: PerQuery, figures: Mapping[str, Tensor], counts: Counts, wanted: Wanted, query_labels: Tensor
) -> dict[int, RetrievalMetrics]:
    """Label -> the metrics at the first point of the queries of that class, if any of them was evaluated."""
    # On the CPU, where sums are added in one order.
    every, queries = query_labels.cpu().unique(return_counts=True)
    labels = query_labels.cpu()[ranking.query_index.cpu()]
    classes, class_of_query, evaluated = labels.unique(return_inverse=True, return_counts=True)
    skipped = queries[torch.searchsorted(every, classes)] - evaluated
    means = {name: torch.bincount(class_of_query, values[:, 0].cpu()) / evaluated for name, values in figures.items()}
    columns = zip(*(column.tolist() for column in (classes, evaluated, skipped, *means.values())), strict=True)
    return {
        label: _metrics(
            dict(zip(means, row, strict=True)), replace(counts, num_queries=n, num_skipped=left_out), wanted, {}
        )
        for label, n, left_out, *row in columns
    }


def query_figures(ranking: PerQuery, wanted: Wanted) -> dict[str, Tensor]:
    """The name of each figure, as in the JSON, and its values for each query, (q, P) float64."""
    figures = {f"cmc_top{k}": cmc(ranking.first_ranks, k) for k in wanted.top_k}
    if ranking.average_precisions is not None:
        figures["map"] = ranking.average_precisions
    hits = dict(zip(wanted.depths, ranking.hits.unbind(2), strict=True))  # k -> (q, P)
    figures |= {f"recall_at_{k}": recall(hits[k], ranking.num_relevant[:, None]) for k in wanted.recall_at}
    figures |= {f"precision_at_{k}": precision(hits[k], k) for k in wanted.precision_at}
    return figures
