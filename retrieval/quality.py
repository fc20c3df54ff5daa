"""One number for how well a transformed gallery serves: with labels and without, or while it is backfilled."""

from statistics import fmean

import torch
from torch import Tensor

from retrieval.evaluation import backfilling_curve, cutoffs, evaluate
from retrieval.orders.backfilling import backfilling_order
from retrieval.ranking.distances import check_distance, distance_table
from retrieval.validation import check_embeddings
from utils.errors import UserError

QUERIES = 256  # at once
NEIGHBOURS = 10
BACKFILLING = 4  # points between the ends: few, since choices are compared at the same ones


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


def upgrade_quality(new: Tensor, transformed: Tensor, labels: Tensor, classifier: Tensor, bias: Tensor) -> float:
    """The mean of the areas under the curves of CMC-1, CMC-5 and mAP, under `confidence` order.

    Args:
        new: the new model's embeddings of n items, which are queries and what the gallery is backfilled with, (n, d).
        transformed: h(old) of the same items, (n, d).
        labels: (n,) integers.
        classifier: (C, d), and its bias (C,), for the order.

    Raises:
        UserError: as `backfilling_curve`.
    """
    order = backfilling_order(
        "confidence", transformed=transformed, new=new, classifier=classifier, classifier_bias=bias
    )
    points = cutoffs(len(new), BACKFILLING)
    curve = backfilling_curve(new, transformed, new, labels, orders={"confidence": order}, cutoffs=points)
    return fmean(value for value in curve["confidence"].auc.to_json().values() if value is not None)


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
    table = distance_table(query, [gallery, reference], distance)
    found = 0
    for itself in torch.arange(len(query), device=query.device).split(QUERIES):
        rows = table.rows(itself, itself)  # (c, 2, n)
        nearest = rows.topk(k, largest=False).indices  # (c, 2, k)
        found += int((nearest[:, 0].unsqueeze(2) == nearest[:, 1].unsqueeze(1)).sum())
    return found / (k * len(query))
