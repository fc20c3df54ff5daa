"""Backfilling orders: which gallery items to give their new embedding first. Ties go by index."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retrieval.distances import check_distance, unit
from retrieval.validation import check_embeddings, check_finite, check_same_items
from utils.config import unknown_choice
from utils.errors import UserError


@dataclass(frozen=True)
class Gallery:
    """What an order may look at: a gallery of n items before and after backfilling."""

    transformed: Tensor  # (n, d) h(old)
    new: Tensor  # (n, d)
    log_variance: Tensor | None  # (n,) or (n, sigma_dim)
    distance: str
    seed: int


def random_order(gallery: Gallery) -> Tensor:
    """A random order, the same for a seed on every device."""
    return torch.randperm(len(gallery.new), generator=torch.Generator().manual_seed(gallery.seed))


def distance_order(gallery: Gallery) -> Tensor:
    """Largest distance between new and h(old) first: an oracle, since it needs the new embeddings."""
    transformed, new = gallery.transformed.double(), gallery.new.double()
    if gallery.distance == "cosine":
        transformed, new = unit(transformed), unit(new)
        return _descending(-(transformed * new).sum(1))
    return _descending((new - transformed).square().sum(1))


def sigma_order(gallery: Gallery) -> Tensor:
    """Largest log variance first (FastFill); one of several dimensions counts by its mean."""
    if gallery.log_variance is None:
        raise UserError(
            "order `sigma` needs a gallery with sigma (log variance); "
            "train with MLP_BN_SIDE_PROJECTION_SIGMA or give a gallery file with `sigma`"
        )
    return _descending(mean_log_variance(gallery.log_variance, len(gallery.new)))


def mean_log_variance(log_variance: Tensor, n: int) -> Tensor:
    """One log variance for each of n items, (n,) or (n, sigma_dim) -> (n,) float64: the mean over its dimensions.

    Raises:
        UserError: it is of another number of items, or not finite.
    """
    rows = log_variance.double().view(len(log_variance), -1)
    if len(rows) != n:
        raise UserError(f"sigma: has {len(rows)} rows, but new {n}; they should be the same items")
    check_finite("sigma", rows)
    return rows.mean(1)


ORDERS: dict[str, Callable[[Gallery], Tensor]] = {
    "random": random_order,
    "distance": distance_order,
    "sigma": sigma_order,
}


def backfilling_order(
    name: str,
    *,
    transformed: Tensor,
    new: Tensor,
    log_variance: Tensor | None = None,
    seed: int = 0,
    distance: str = "l2",
) -> Tensor:
    """The order `name` of ORDERS for a gallery -> permutation (n,) int64, on the device of `new`.

    Args:
        name: `random`, `distance` or `sigma`.
        transformed: h(old) of the gallery items, (n, d).
        new: the new model's embeddings of the same items, (n, d).
        log_variance: of h's output, (n,) or (n, sigma_dim); the order `sigma` needs it.
        seed: of the order `random`.
        distance: `l2` or `cosine`, for the order `distance`.

    Raises:
        UserError: an unknown name, a missing log variance, or tensors that are not finite or do not fit together.
    """
    if name not in ORDERS:
        raise UserError(unknown_choice("order", name, ORDERS))
    check_distance(distance)
    check_embeddings(new=new, transformed=transformed)
    check_same_items(new=new, transformed=transformed)
    return ORDERS[name](Gallery(transformed, new, log_variance, distance, seed)).to(new.device)


def _descending(scores: Tensor) -> Tensor:
    return scores.sort(descending=True, stable=True).indices
