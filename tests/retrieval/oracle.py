"""The evaluator once more, the slow way: one query and one mixed gallery at a time, with scikit-learn and numpy."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.metrics import average_precision_score


def distances(query: np.ndarray, gallery: np.ndarray, distance: str) -> np.ndarray:
    """Squared L2 distance or 1 - cosine of one query (d,) to a gallery (n, d), by differences, as float32."""
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if distance == "cosine":
        query = query / np.linalg.norm(query)
        gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    return ((gallery - query) ** 2).sum(1).astype(np.float32)


def evaluate_slowly(
    query: torch.Tensor,
    gallery: torch.Tensor,
    query_labels: torch.Tensor,
    gallery_labels: torch.Tensor | None = None,
    query_ids: torch.Tensor | None = None,
    gallery_ids: torch.Tensor | None = None,
    distance: str = "l2",
    top_k: Sequence[int] = (1, 5),
    recall_at: Sequence[int] = (),
    precision_at: Sequence[int] = (),
) -> dict[str, float]:
    """CMC, mAP, recall@k and precision@k with ties broken against the query, as `RetrievalMetrics.to_json` gives."""
    figures: list[dict[str, float]] = []
    for _, average_precision, ranks in rank_slowly(
        query, gallery, query_labels, gallery_labels, query_ids, gallery_ids, distance
    ):
        figures.append(
            {
                **{f"cmc_top{k}": float(min(ranks) <= k) for k in top_k},
                "map": average_precision,
                **{f"recall_at_{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in recall_at},
                **{f"precision_at_{k}": sum(rank <= k for rank in ranks) / k for k in precision_at},
            }
        )
    return {name: float(np.mean([of_query[name] for of_query in figures])) for name in figures[0]}


def rank_slowly(
    query: torch.Tensor,
    gallery: torch.Tensor,
    query_labels: torch.Tensor,
    gallery_labels: torch.Tensor | None = None,
    query_ids: torch.Tensor | None = None,
    gallery_ids: torch.Tensor | None = None,
    distance: str = "l2",
) -> Iterator[tuple[int, float, list[int]]]:
    """Each query that has a relevant item: its index, average precision, and the ranks of its relevant items.

    A query with a negative label has none.
    """
    gallery_labels = query_labels if gallery_labels is None else gallery_labels
    query_ids = torch.arange(len(query)) if query_ids is None else query_ids
    gallery_ids = query_ids if gallery_ids is None else gallery_ids
    items = zip(query.numpy(), query_labels.numpy(), query_ids.numpy(), strict=True)
    for index, (embedding, label, name) in enumerate(items):
        others = gallery_ids.numpy() != name
        relevant = gallery_labels.numpy()[others] == label
        if label < 0 or not relevant.any():
            continue
        found = distances(embedding, gallery.numpy()[others], distance)
        worst_first = np.lexsort((relevant, found))  # among equals, the irrelevant before the relevant
        ranks = (np.flatnonzero(relevant[worst_first]) + 1).tolist()
        yield index, float(average_precision_score(relevant, -found)), ranks


def mixed_gallery(transformed: torch.Tensor, new: torch.Tensor, order: torch.Tensor, cutoff: int) -> torch.Tensor:
    """The gallery when the first `cutoff` items of `order` are backfilled."""
    gallery = transformed.clone()
    for item in order[:cutoff].tolist():
        gallery[item] = new[item]
    return gallery
