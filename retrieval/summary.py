"""From the figures of each query to those of the whole set: means over queries, and their confidence intervals."""

from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from retrieval.confidence import bootstrap_means, percentile_interval
from retrieval.metrics import cmc, precision, recall
from retrieval.results import Counts, Interval, PerQuery, RetrievalMetrics, Wanted


def summarise(
    ranking: PerQuery, counts: Counts, wanted: Wanted, confidence: float | None, seed: int
) -> tuple[tuple[RetrievalMetrics, ...], Mapping[str, Interval]]:
    """The metrics at each point, and the intervals of their means over the points (empty without `confidence`)."""
    figures = query_figures(ranking, wanted)
    names, points = list(figures), ranking.first_ranks.shape[1]
    means = {name: values.mean(0).tolist() for name, values in figures.items()}
    intervals: list[dict[str, Interval]] = [{} for _ in range(points)]
    auc_intervals: dict[str, Interval] = {}
    if confidence is not None:
        resampled = bootstrap_means(torch.stack(list(figures.values()), dim=2), seed)  # (samples, P, M)
        of_points = percentile_interval(resampled, confidence).permute(1, 2, 0).tolist()  # P, M, 2
        intervals = [dict(zip(names, map(tuple, rows), strict=True)) for rows in of_points]
        of_means = percentile_interval(resampled.mean(1), confidence).T.tolist()
        auc_intervals = dict(zip(names, map(tuple, of_means), strict=True))
    metrics = tuple(
        RetrievalMetrics(
            **asdict(counts),
            cmc={k: means[f"cmc_top{k}"][point] for k in wanted.top_k},
            mean_average_precision=means["map"][point] if wanted.compute_map else None,
            recall={k: means[f"recall_at_{k}"][point] for k in wanted.recall_at},
            precision={k: means[f"precision_at_{k}"][point] for k in wanted.precision_at},
            intervals=intervals[point],
        )
        for point in range(points)
    )
    return metrics, auc_intervals


def query_figures(ranking: PerQuery, wanted: Wanted) -> dict[str, Tensor]:
    """The name of each figure, as in the JSON, and its values for each query, (q, P) float64."""
    figures = {f"cmc_top{k}": cmc(ranking.first_ranks, k) for k in wanted.top_k}
    if ranking.average_precisions is not None:
        figures["map"] = ranking.average_precisions
    hits = dict(zip(wanted.depths, ranking.hits.unbind(2), strict=True))  # k -> (q, P)
    figures |= {f"recall_at_{k}": recall(hits[k], ranking.num_relevant[:, None]) for k in wanted.recall_at}
    figures |= {f"precision_at_{k}": precision(hits[k], k) for k in wanted.precision_at}
    return figures
