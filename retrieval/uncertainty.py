"""How good a transformation's uncertainty is: does sigma tell the items that it places well from those it does not?

Two kinds of risk of a gallery item: its alignment error, |new - h(old)|, and its retrieval risk, 1 - CMC-1 or 1 - AP of
h(old) as the query in the gallery of new embeddings. Sigma is judged as a selective classifier's confidence is: by the
mean risk of the share of items with the smallest sigma, the risk-coverage curve, and the area under it, AURC
(Geifman & El-Yaniv, 2017), which lies between that of the oracle that sorts by the risk itself and a random order's.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from retrieval.distances import check_distance, unit
from retrieval.evaluation import cutoffs, evaluate
from retrieval.orders import mean_log_variance
from retrieval.validation import check_embeddings, check_same_items
from utils.distributed import World

POINTS = 20  # of a risk-coverage curve, at equal steps of coverage up to 1


@dataclass(frozen=True)
class RiskCoverage:
    """How well a score finds the items of low risk."""

    spearman: float | None
    """Rank correlation of score and risk; None where either is the same for all items."""
    coverages: tuple[float, ...]
    """Shares of the items, rising to 1."""
    sigma: tuple[float, ...]
    """Mean risk of so many items, those of the smallest score."""
    oracle: tuple[float, ...]
    """The same of the items of the smallest risk: no order is better."""
    random: float
    """The mean risk of all items, which a random order has at any coverage."""
    aurc: Mapping[str, float]
    """Area under the curve, the mean over all numbers of items: of `sigma`, `oracle` and `random`."""

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


@torch.no_grad()
def uncertainty_quality(
    transformed: Tensor,
    new: Tensor,
    labels: Tensor,
    log_variance: Tensor,
    *,
    distance: str = "l2",
    compute_map: bool = True,
    world: World = World(),  # noqa: B008 (frozen)
) -> dict[str, RiskCoverage]:
    """Judge the log variance of a gallery of n items by each risk: `alignment_error`, `cmc_top1`, `average_precision`.

    Items without another of their class have no retrieval risk, and are left out of the last two.

    Args:
        transformed: h(old) of the items, (n, d).
        new: the new model's embeddings of the same items, (n, d).
        labels: (n,) integers.
        log_variance: (n,) or (n, sigma_dim); one of several dimensions counts by its mean.
        compute_map: `average_precision` is left out if false.

    Raises:
        UserError: as `evaluate`, or a log variance that is not finite or of other items.
    """
    check_embeddings(transformed=transformed, new=new)
    check_same_items(new=new, transformed=transformed)
    score = mean_log_variance(log_variance, len(new))
    ranking = evaluate(
        transformed, new, labels, distance=distance, top_k=(1,), compute_map=compute_map, per_query=True, world=world
    ).per_query
    assert ranking is not None
    missed = {"cmc_top1": (ranking.first_ranks[:, 0] > 1).double()}
    if ranking.average_precisions is not None:
        missed["average_precision"] = 1 - ranking.average_precisions[:, 0]
    return {
        "alignment_error": risk_coverage(score, alignment_errors(transformed, new, distance)),
        **{name: risk_coverage(score[ranking.query_index], risk) for name, risk in missed.items()},
    }


def alignment_errors(transformed: Tensor, new: Tensor, distance: str = "l2") -> Tensor:
    """|new - h(old)| of each item, or 1 - cosine, (n, d), (n, d) -> (n,) float64."""
    check_distance(distance)
    transformed, new = transformed.double(), new.double()
    if distance == "cosine":
        return 1 - (unit(transformed) * unit(new)).sum(1)
    return (new - transformed).norm(dim=1)


def risk_coverage(score: Tensor, risk: Tensor) -> RiskCoverage:
    """Judge `score` (n,), small where the risk should be, by `risk` (n,)."""
    n = len(risk)
    counts = torch.tensor(cutoffs(n, POINTS - 1)[1:]).clamp(min=1).unique()
    sigma, oracle = selective_risks(score, risk), selective_risks(risk, risk)
    mean = risk.double().mean().item()
    return RiskCoverage(
        spearman=spearman(score, risk),
        coverages=tuple((counts / n).tolist()),
        sigma=tuple(sigma[counts.to(risk.device) - 1].tolist()),
        oracle=tuple(oracle[counts.to(risk.device) - 1].tolist()),
        random=mean,
        aurc={"sigma": sigma.mean().item(), "oracle": oracle.mean().item(), "random": mean},
    )


def selective_risks(score: Tensor, risk: Tensor) -> Tensor:
    """The mean risk of the 1, 2, ..., n items of the smallest score, (n,), (n,) -> (n,) float64.

    Items of equal score count with their mean risk each, so that their order is of no effect.

    >>> selective_risks(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.5, 0.0, 0.25])).tolist()
    [0.0, 0.125, 0.25]
    >>> selective_risks(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])).tolist()
    [0.5, 0.5]
    """
    _, group, sizes = score.unique(return_inverse=True, return_counts=True)  # groups by rising score
    total = torch.zeros(len(sizes), dtype=torch.float64, device=risk.device).index_add_(0, group, risk.double())
    means = (total / sizes).repeat_interleave(sizes)
    return means.cumsum(0) / torch.arange(1, len(risk) + 1, device=risk.device)


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
