"""One number for how well a transformed gallery serves: with labels and without, or while it is backfilled."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from retrieval.evaluation import backfilling_curve, cutoffs, evaluate
from retrieval.orders.backfilling import backfilling_order
from retrieval.ranking.distances import check_distance, distance_table
from retrieval.validation import check_embeddings
from utils.errors import UserError

QUERIES = 256  # at once
NEIGHBOURS = 10
MIXTURES = (0.25, 0.5, 0.75)  # shares of a gallery that are backfilled where orders are compared
RANDOM_ORDERS = 5  # to compare with
ERRORS = 2  # standard errors beyond which a gain is more than chance
BACKFILLING = 4  # points between the ends: few, since choices are compared at the same ones


def retrieval_quality(transformed: Tensor, new: Tensor, labels: Tensor | None) -> tuple[str, float]:
    """How well new queries find their way in a transformed gallery of the same n items.

    Args:
        transformed, new: (n, d).
        labels: (n,) classes, negative for an item of none; or None.

    Returns:
        ("mAP", its value) where labels tell what is relevant, else ("recall@k", what the new gallery retrieves too).
    """
    measure, each = retrieval_qualities(transformed, new, labels)
    return measure, float(each.mean())


def retrieval_qualities(transformed: Tensor, new: Tensor, labels: Tensor | None) -> tuple[str, Tensor]:
    """As `retrieval_quality`, but of each query that has anything to find, (q,) float64."""
    known = None if labels is None else labels[labels >= 0]
    if labels is not None and known is not None and len(known.unique()) < len(known):
        found = evaluate(new, transformed, labels, per_query=True).per_query
        assert found is not None
        assert found.average_precisions is not None
        return "mAP", found.average_precisions[:, 0].double()
    k = min(NEIGHBOURS, len(new) - 1)
    return f"recall@{k}", _recalls_of_nearest(new, transformed, new, k, "l2")


def order_gains(
    transformed: Tensor, new: Tensor, labels: Tensor | None, scores: Mapping[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """What each order brings beyond random order, by the measure of `retrieval_quality`.

    Args:
        transformed, new: (n, d).
        labels: (n,) classes, negative for an item of none; or None.
        scores: name -> (n,), the largest to be backfilled first.

    Returns:
        For each order plain values: `measure` and the `gain`, of its mean over queries and `MIXTURES`; the standard
        `error` of that, by the spread over queries and that of random orders; and whether it `beats_random`, by more
        than chance.
    """
    count = len(new)
    chance = [backfilling_order("random", transformed=transformed, new=new, seed=seed) for seed in range(RANDOM_ORDERS)]
    orders = {name: score.sort(descending=True, stable=True).indices for name, score in scores.items()}
    measure = ""
    found: dict[str, Tensor] = {}
    for name, order in [*((f"random {seed}", order) for seed, order in enumerate(chance)), *orders.items()]:
        qualities = []
        for share in MIXTURES:
            mixed = transformed.clone()
            mixed[order[: round(share * count)]] = new[order[: round(share * count)]].to(mixed.dtype)
            measure, each = retrieval_qualities(mixed, new, labels)
            qualities.append(each)
        found[name] = torch.stack(qualities).mean(0)
    random = torch.stack([found[f"random {seed}"] for seed in range(RANDOM_ORDERS)])  # (orders, queries)
    of_draws = float(random.mean(1).var()) * (1 + 1 / RANDOM_ORDERS)  # of one order, and of the mean of the others
    return {name: _gain(measure, found[name] - random.mean(0), of_draws) for name in orders}


def _gain(measure: str, of_queries: Tensor, of_draws: float) -> dict[str, Any]:
    gain, error = float(of_queries.mean()), (float(of_queries.var()) / len(of_queries) + of_draws) ** 0.5
    return {"measure": measure, "gain": gain, "error": error, "beats_random": gain > ERRORS * error}


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
    return float(_recalls_of_nearest(query, gallery, reference, k, distance).mean())


@torch.no_grad()
def _recalls_of_nearest(query: Tensor, gallery: Tensor, reference: Tensor, k: int, distance: str) -> Tensor:
    """That share for each query, (n,) float64."""
    table = distance_table(query, [gallery, reference], distance)
    found = []
    for itself in torch.arange(len(query), device=query.device).split(QUERIES):
        rows = table.rows(itself, itself)  # (c, 2, n)
        nearest = rows.topk(k, largest=False).indices  # (c, 2, k)
        found.append((nearest[:, 0].unsqueeze(2) == nearest[:, 1].unsqueeze(1)).sum((1, 2)))
    return torch.cat(found).double() / k
