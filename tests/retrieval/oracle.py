"""The evaluator once more, the slow way: one query and one mixed gallery at a time, with scikit-learn and numpy."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from retrieval import PerQuery, RetrievalMetrics

Ranked = tuple[int, float, list[int]]  # a query's index, average precision, and the ranks of its relevant items


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distances(query: np.ndarray, gallery: np.ndarray, distance: str) -> np.ndarray:
    """Squared L2 distance or 1 - cosine of one query (d,) to a gallery (n, d), by differences, as float32."""
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if distance == "cosine":
        query = query / np.linalg.norm(query)
        gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    return ((gallery - query) ** 2).sum(1).astype(np.float32)


def rank_slowly(
    query: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor | None = None,
    query_ids: Tensor | None = None,
    gallery_ids: Tensor | None = None,
    distance: str = "l2",
    query_cameras: Tensor | None = None,
    gallery_cameras: Tensor | None = None,
) -> Iterator[Ranked]:
    """Each query that has a relevant item, with ties broken against it. A query with a negative label has none.

    With cameras, a query's gallery is without the items of its label by its own camera.
    """
    gallery_labels = query_labels if gallery_labels is None else gallery_labels
    query_ids = torch.arange(len(query)) if query_ids is None else query_ids
    gallery_ids = query_ids if gallery_ids is None else gallery_ids
    items = zip(query.numpy(), query_labels.numpy(), query_ids.numpy(), strict=True)
    for index, (embedding, label, name) in enumerate(items):
        others = gallery_ids.numpy() != name
        if query_cameras is not None and gallery_cameras is not None:
            by_its_camera = gallery_cameras.numpy() == int(query_cameras[index])
            others &= ~(by_its_camera & (gallery_labels.numpy() == label))
        relevant = gallery_labels.numpy()[others] == label
        if label < 0 or not relevant.any():
            continue
        found = distances(embedding, gallery.numpy()[others], distance)
        worst_first = np.lexsort((relevant, found))  # among equals, the irrelevant before the relevant
        ranks = (np.flatnonzero(relevant[worst_first]) + 1).tolist()
        yield index, float(average_precision_score(relevant, -found)), ranks


def mean_figures(
    ranked: Iterable[Ranked],
    top_k: Sequence[int] = (1, 5),
    recall_at: Sequence[int] = (),
    precision_at: Sequence[int] = (),
) -> dict[str, float]:
    """CMC, mAP, recall@k and precision@k, as `RetrievalMetrics.to_json` gives them."""
    figures = [
        {
            **{f"cmc_top{k}": float(min(ranks) <= k) for k in top_k},
            "map": average_precision,
            **{f"recall_at_{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in recall_at},
            **{f"precision_at_{k}": sum(rank <= k for rank in ranks) / k for k in precision_at},
        }
        for _, average_precision, ranks in ranked
    ]
    return {name: float(np.mean([of_query[name] for of_query in figures])) for name in figures[0]}


def evaluate_slowly(query: Tensor, gallery: Tensor, labels: Tensor, distance: str = "l2") -> dict[str, float]:
    """CMC and mAP where queries and gallery are the same items."""
    return mean_figures(rank_slowly(query, gallery, labels, distance=distance))


def mixed_gallery(transformed: Tensor, new: Tensor, order: Tensor, cutoff: int) -> Tensor:
    """The gallery when the first `cutoff` items of `order` are backfilled."""
    gallery = transformed.clone()
    for item in order[:cutoff].tolist():
        gallery[item] = new[item]
    return gallery


def check_parts(
    found: Mapping[int, RetrievalMetrics], ranked: list[Ranked], part_of_query: Tensor, depths: dict[str, Any]
) -> None:
    """The figures of each class or group are those of its queries alone; negative ones are none."""
    parts: dict[int, list[Ranked]] = {}
    for query in ranked:
        if (part := int(part_of_query[query[0]])) >= 0:
            parts.setdefault(part, []).append(query)
    assert list(found) == sorted(parts)
    for part, metrics in found.items():
        assert metrics.num_queries == len(parts[part])
        assert metrics.num_queries + metrics.num_skipped == part_of_query.tolist().count(part)
        assert metrics.to_json() == pytest.approx(mean_figures(parts[part], **depths), abs=1e-6)


def check_queries(found: PerQuery | None, point: int, ranked: list[Ranked]) -> None:
    """The figures of each query at a point of the curve, and at the first the ranks of all relevant items."""
    assert found is not None
    assert found.average_precisions is not None
    assert found.hit_ranks is not None
    precisions = [average_precision for _, average_precision, _ in ranked]
    all_ranks = [ranks for _, _, ranks in ranked]
    assert found.query_index.tolist() == [index for index, _, _ in ranked]
    assert found.num_relevant.tolist() == [len(ranks) for ranks in all_ranks]
    assert found.first_ranks[:, point].tolist() == [ranks[0] for ranks in all_ranks]
    assert found.average_precisions[:, point].tolist() == pytest.approx(precisions, abs=1e-6)
    if point == 0:
        assert found.hit_ranks.tolist() == [rank for ranks in all_ranks for rank in ranks]
