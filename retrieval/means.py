"""From the figures of each query to those of the whole set: means over queries, and their confidence intervals."""

from collections.abc import Mapping
from dataclasses import asdict, replace

import torch
from torch import Tensor

from retrieval.intervals import bootstrap_means, percentile_interval
from retrieval.metrics import cmc, precision, recall
from retrieval.results import Counts, Interval, PerQuery, RetrievalMetrics, Wanted


def mean_metrics(
    ranking: PerQuery,
    counts: Counts,
    wanted: Wanted,
    query_labels: Tensor,
    query_groups: Tensor | None,
    interval_level: float | None,
    seed: int,
) -> tuple[tuple[RetrievalMetrics, ...], Mapping[str, Interval]]:
    """The metrics at each point, and the intervals of their means over the points (empty without a level).

    `query_labels` are those of all queries (n_q,), for the metrics of each class at the first point; `query_groups`,
    where there are any, for those of each group at every point.
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
        (per_class,) = _metrics_of_parts(query_labels, ranking, figures, counts, wanted, points=1)
        metrics[0] = replace(metrics[0], per_class=per_class)
    if query_groups is not None:
        per_group = _metrics_of_parts(query_groups, ranking, figures, counts, wanted, points)
        metrics = [replace(point, per_group=parts) for point, parts in zip(metrics, per_group, strict=True)]
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


def _metrics_of_parts(
    part_of_query: Tensor,
    ranking: PerQuery,
    figures: Mapping[str, Tensor],
    counts: Counts,
    wanted: Wanted,
    points: int,
) -> list[dict[int, RetrievalMetrics]]:
    """Of the first `points`: part -> the metrics of its queries, if any of them was evaluated.

    Args:
        part_of_query: (n_q,) of all queries; a negative one: of no part.
    """
    # On the CPU, where sums are added in one order.
    part_of_query = part_of_query.cpu()
    every, queries = part_of_query.unique(return_counts=True)
    part = part_of_query[ranking.query_index.cpu()]
    (in_one,) = (part >= 0).nonzero(as_tuple=True)
    parts, place, evaluated = part[in_one].unique(return_inverse=True, return_counts=True)
    skipped = queries[torch.searchsorted(every, parts)] - evaluated
    values = {name: of_queries.cpu()[in_one] for name, of_queries in figures.items()}  # (m, P)
    found = []
    for point in range(points):
        means = {name: torch.bincount(place, column[:, point]) / evaluated for name, column in values.items()}
        columns = zip(*(column.tolist() for column in (parts, evaluated, skipped, *means.values())), strict=True)
        found.append(
            {
                number: _metrics(
                    dict(zip(means, row, strict=True)), replace(counts, num_queries=n, num_skipped=left_out), wanted, {}
                )
                for number, n, left_out, *row in columns
            }
        )
    return found


def query_figures(ranking: PerQuery, wanted: Wanted) -> dict[str, Tensor]:
    """The name of each figure, as in the JSON, and its values for each query, (q, P) float64."""
    figures = {f"cmc_top{k}": cmc(ranking.first_ranks, k) for k in wanted.top_k}
    if ranking.average_precisions is not None:
        figures["map"] = ranking.average_precisions
    hits = dict(zip(wanted.depths, ranking.hits.unbind(2), strict=True))  # k -> (q, P)
    figures |= {f"recall_at_{k}": recall(hits[k], ranking.num_relevant[:, None]) for k in wanted.recall_at}
    figures |= {f"precision_at_{k}": precision(hits[k], k) for k in wanted.precision_at}
    return figures
