"""The evaluator once more, the slow way: one query and one mixed gallery at a time, with scikit-learn and numpy."""

from collections.abc import Sequence

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
) -> dict[str, float]:
    """CMC with ties broken against the query, and mAP, as `RetrievalMetrics.to_json` gives them."""
    gallery_labels = query_labels if gallery_labels is None else gallery_labels
    query_ids = torch.arange(len(query)) if query_ids is None else query_ids
    gallery_ids = query_ids if gallery_ids is None else gallery_ids
    hits: dict[int, list[bool]] = {k: [] for k in top_k}
    precisions = []
    for embedding, label, name in zip(query.numpy(), query_labels.numpy(), query_ids.numpy(), strict=True):
        others = gallery_ids.numpy() != name
        relevant = gallery_labels.numpy()[others] == label
        if not relevant.any():
            continue
        found = distances(embedding, gallery.numpy()[others], distance)
        precisions.append(average_precision_score(relevant, -found))
        worst_first = np.lexsort((relevant, found))  # among equals, the irrelevant before the relevant
        for k in top_k:
            hits[k].append(bool(relevant[worst_first[:k]].any()))
    return {**{f"cmc_top{k}": float(np.mean(hit)) for k, hit in hits.items()}, "map": float(np.mean(precisions))}


def mixed_gallery(transformed: torch.Tensor, new: torch.Tensor, order: torch.Tensor, cutoff: int) -> torch.Tensor:
    """The gallery when the first `cutoff` items of `order` are backfilled."""
    gallery = transformed.clone()
    for item in order[:cutoff].tolist():
        gallery[item] = new[item]
    return gallery
