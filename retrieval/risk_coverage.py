"""How good a backfilling order is: does it take the items that the transformation places badly before the others?

Two kinds of risk of a gallery item: its alignment error, |new - h(old)|, and its retrieval risk, 1 - CMC-1 or 1 - AP of
h(old) as the query in the gallery of new embeddings. An order is judged as a selective classifier's confidence is: by
the mean risk of the share of items that it would backfill last, the risk-coverage curve, and the area under it, AURC
(Geifman & El-Yaniv, 2017), which lies between that of sorting by the risk itself and a random order's.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from retrieval.evaluation import Progress, cutoffs, evaluate
from retrieval.ranking.distances import check_distance, row_parts, unit
from retrieval.validation import check_embeddings, check_orders, check_same_items
from utils.distributed import World

POINTS = 20  # of a risk-coverage curve, at equal steps of coverage up to 1


@dataclass(frozen=True)
class RiskCoverage:
    """How well an order keeps the items of low risk for the end."""

    spearman: float | None
    """Rank correlation with the risk, 1 where the riskiest come first; None where all items have the same risk."""
    coverages: tuple[float, ...]
    """Shares of the items, rising to 1."""
    kept: tuple[float, ...]
    """Mean risk of so many items, those backfilled last."""
    oracle: tuple[float, ...]
    """The same of the items of the smallest risk: no order is better."""
    random: float
    """The mean risk of all items, which a random order has at any coverage."""
    aurc: Mapping[str, float]
    """Area under the curve, the mean over all numbers of items: of `kept`, `oracle` and `random`."""

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


@torch.no_grad()
def order_quality(
    transformed: Tensor,
    new: Tensor,
    labels: Tensor,
    orders: Mapping[str, Tensor],
    *,
    distance: str = "l2",
    cameras: Tensor | None = None,
    compute_map: bool = True,
    world: World = World(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
) -> dict[str, dict[str, RiskCoverage]]:
    """Judge orders of a gallery of n items by each risk: `alignment_error`, `cmc_top1`, `average_precision`.

    Items without another of their class, or with a negative label, have no retrieval risk, and are left out of the last
    two, which are missing where all items are such, as in a gallery of one image of each class. The items are ranked
    once, whatever the number of orders.

    Args:
        transformed: h(old) of the items, (n, d).
        new: the new model's embeddings of the same items, (n, d).
        labels: (n,) integers.
        orders: name -> a permutation (n,) of the items, the first to be backfilled first, as `backfilling_order` gives.
        cameras: (n,) integers; as for `evaluate`, an item's matches by its own camera are then ignored.
        compute_map: `average_precision` is left out if false.
        world, progress: as for `evaluate`, of the n items as queries.

    Returns:
        Order -> risk -> how good the order is.

    Raises:
        UserError: as `evaluate`, or no order, or one that is no permutation of the items.
    """
    check_embeddings(transformed=transformed, new=new)
    check_same_items(new=new, transformed=transformed)
    check_orders(orders, len(new))
    scores = {name: places_from_the_end(order) for name, order in orders.items()}
    errors = alignment_errors(transformed, new, distance)
    quality = {name: {"alignment_error": risk_coverage(score, errors)} for name, score in scores.items()}
    if not any_match(labels, cameras):
        return quality
    ranking = evaluate(
        transformed,
        new,
        labels,
        query_cameras=cameras,
        gallery_cameras=cameras,
        distance=distance,
        top_k=(1,),
        compute_map=compute_map,
        per_query=True,
        world=world,
        progress=progress,
    ).per_query
    assert ranking is not None
    missed = {"cmc_top1": (ranking.first_ranks[:, 0] > 1).double()}
    if ranking.average_precisions is not None:
        missed["average_precision"] = 1 - ranking.average_precisions[:, 0]
    for name, score in scores.items():
        quality[name] |= {of: risk_coverage(score[ranking.query_index], risk) for of, risk in missed.items()}
    return quality


def any_match(labels: Tensor, cameras: Tensor | None = None) -> bool:
    """Whether any of the items (n,) has another of its class, by another camera where `cameras` (n,) are known.

    >>> any_match(torch.tensor([3, 5, 3])), any_match(torch.tensor([3, 5, 3]), torch.tensor([1, 2, 1]))
    (True, False)
    """
    known = labels >= 0
    found = torch.stack([labels, torch.arange(len(labels)).to(labels) if cameras is None else cameras], dim=1)[known]
    return len(found.unique(dim=0)) > len(found[:, 0].unique())


def alignment_errors(transformed: Tensor, new: Tensor, distance: str = "l2") -> Tensor:
    """|new - h(old)| of each item, or 1 - cosine, (n, d), (n, d) -> (n,) float64."""
    check_distance(distance)
    parts = ((h.double(), new.double()) for h, new in zip(row_parts(transformed), row_parts(new), strict=True))
    if distance == "cosine":
        return torch.cat([1 - (unit(h) * unit(new)).sum(1) for h, new in parts])
    return torch.cat([(new - h).norm(dim=1) for h, new in parts])


def places_from_the_end(order: Tensor) -> Tensor:
    """The place of each item from the end of an order: 0 for the last, (n,) -> (n,) int64.

    >>> places_from_the_end(torch.tensor([2, 0, 1])).tolist()
    [1, 0, 2]
    """
    places = torch.empty_like(order, dtype=torch.int64)
    places[order.flip(0)] = torch.arange(len(order), device=order.device)
    return places


def risk_coverage(score: Tensor, risk: Tensor) -> RiskCoverage:
    """Judge `score` (n,), small where the risk should be and different for each item, by `risk` (n,)."""
    n = len(risk)
    counts = torch.tensor(cutoffs(n, POINTS - 1)[1:]).clamp(min=1).unique()
    kept, oracle = selective_risks(score, risk), selective_risks(risk, risk)
    mean = risk.double().mean().item()
    return RiskCoverage(
        spearman=spearman(score, risk),
        coverages=tuple((counts / n).tolist()),
        kept=tuple(kept[counts.to(risk.device) - 1].tolist()),
        oracle=tuple(oracle[counts.to(risk.device) - 1].tolist()),
        random=mean,
        aurc={"kept": kept.mean().item(), "oracle": oracle.mean().item(), "random": mean},
    )


def selective_risks(score: Tensor, risk: Tensor) -> Tensor:
    """The mean risk of the 1, 2, ..., n items of the smallest score, (n,), (n,) -> (n,) float64.

    >>> selective_risks(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.5, 0.0, 0.25])).tolist()
    [0.0, 0.125, 0.25]
    """
    return risk.double()[score.argsort()].cumsum(0) / torch.arange(1, len(risk) + 1, device=risk.device)


def spearman(first: Tensor, second: Tensor) -> float | None:
    """Spearman's rank correlation of two scores (n,), (n,): Pearson's of the ranks, ties at their mean rank.

    None where one of them is the same for all items.

    >>> round(spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 30.0, 20.0])), 6)
    0.5
    """
    ranks = torch.stack([_ranks(first), _ranks(second)])
    centred = ranks - ranks.mean(1, keepdim=True)
    lengths = centred.norm(dim=1)
    if not lengths.all():
        return None
    return ((centred[0] @ centred[1]) / (lengths[0] * lengths[1])).item()


def _ranks(scores: Tensor) -> Tensor:
    """The rank of each score from 1, equal ones at their mean, (n,) -> (n,) float64."""
    _, group, sizes = scores.unique(return_inverse=True, return_counts=True)
    return (sizes.cumsum(0) - (sizes - 1) / 2.0).double()[group]
