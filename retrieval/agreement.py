"""How much of what one gallery retrieves another retrieves too: a quality of retrieval that needs no labels."""

import torch
from torch import Tensor

from retrieval.evaluation import evaluate
from retrieval.ranking.buffers import Buffers
from retrieval.ranking.distances import check_distance, distance_table
from retrieval.validation import check_embeddings
from utils.errors import UserError

QUERIES = 256  # at once
NEIGHBOURS = 10


def retrieval_quality(transformed: Tensor, new: Tensor, labels: Tensor | None) -> tuple[str, float]:
    """How well new queries find their way in a transformed gallery of the same n items.

    Args:
        transformed, new: (n, d).
        labels: (n,) classes, negative for an item of none; or None.

    Returns:
        ("mAP", its value) where labels tell what is relevant, else ("recall@k", what the new gallery retrieves too).
    """
    known = None if labels is None else labels[labels >= 0]
    if labels is not None and known is not None and len(known.unique()) < len(known):
        value = evaluate(new, transformed, labels).mean_average_precision
        assert value is not None
        return "mAP", value
    k = min(NEIGHBOURS, len(new) - 1)
    return f"recall@{k}", recall_of_nearest(new, transformed, new, k=k)


@torch.no_grad()
def recall_of_nearest(query: Tensor, gallery: Tensor, reference: Tensor, *, k: int = 10, distance: str = "l2") -> float:
    """The mean share of a query's k nearest items in `reference` that are among its k nearest in `gallery`.

    Queries, gallery and reference are the same items in the same order, and an item never retrieves itself.

    Args:
        query, gallery, reference: embeddings (n, d), float16 or float32, on the same device.
        k: below n.
        distance: `l2` or `cosine`.

    Raises:
        UserError: embeddings that are not finite or do not fit together, an unknown distance, or no k - 1 other items.
    """
    check_distance(distance)
    check_embeddings(query=query, gallery=gallery)
    check_embeddings(query=query, gallery=reference)
    if not 1 <= k < len(gallery) or not len(query) == len(gallery) == len(reference):
        raise UserError(
            f"recall of the {k} nearest: needs more than {k} items, the same in all sets, got {len(gallery)}"
        )
    table, buffers = distance_table(query, [gallery, reference], distance), Buffers(query.device)
    found = 0
    for itself in torch.arange(len(query), device=query.device).split(QUERIES):
        rows = table.rows(itself, itself, buffers)  # (c, 2, n)
        nearest = rows.topk(k, largest=False).indices  # (c, 2, k)
        found += int((nearest[:, 0].unsqueeze(2) == nearest[:, 1].unsqueeze(1)).sum())
    return found / (k * len(query))
