"""Checks of what the evaluator is given: each a UserError of one line, before any work."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from retrieval.ranking.distances import row_parts
from retrieval.results import Wanted
from utils.errors import UserError


def check_embeddings(**sets: Tensor) -> None:
    """Check that the embeddings, by name, are finite, not empty and (n, d) with one d.

    Raises:
        UserError: naming the set, and the number of bad rows and the first of them if some are not finite.
    """
    first, reference = next(iter(sets.items()))
    for name, embeddings in sets.items():
        if embeddings.dim() != 2:
            raise UserError(f"{name}: embeddings should be (n, d), got {tuple(embeddings.shape)}")
        if not embeddings.numel():
            raise UserError(f"{name}: the set of embeddings is empty, {tuple(embeddings.shape)}")
        if embeddings.shape[1] != reference.shape[1]:
            raise UserError(
                f"{name}: embeddings are {embeddings.shape[1]}-dimensional, but those of {first} {reference.shape[1]}"
            )
        if embeddings.device != reference.device:
            raise UserError(
                f"{name}: embeddings are on {embeddings.device}, but those of {first} on {reference.device}"
            )
        check_finite(name, embeddings)


def check_finite(name: str, rows: Tensor) -> None:
    """Raise a UserError if a row of `rows` (n, d) holds NaN or an infinity."""
    bad = torch.cat([(~torch.isfinite(part)).any(1) for part in row_parts(rows)]).nonzero()
    if len(bad):
        raise UserError(f"{name}: {len(bad)} of {len(rows)} rows hold NaN or infinity, the first is row {int(bad[0])}")


def check_same_items(**sets: Tensor) -> None:
    """Raise a UserError unless all sets, by name, have the same number of rows."""
    (first, reference), *others = sets.items()
    for name, rows in others:
        if len(rows) != len(reference):
            raise UserError(
                f"{name}: has {len(rows)} rows, but {first} {len(reference)}; they should be the same items"
            )


def check_same_classes(classifier: Tensor, class_means: Tensor) -> None:
    """Raise a UserError unless both have a row for each class."""
    if len(classifier) != len(class_means):
        raise UserError(f"class_means: are of {len(class_means)} classes, but the classifier knows {len(classifier)}")


def as_integers(name: str, values: Tensor, embeddings: Tensor) -> Tensor:
    """Labels or ids (n,), checked to be one whole number for each of `embeddings`, as int64 on their device.

    Raises:
        UserError: another shape or type, or numbers from 2^63 on, which int64 would take for negative ones.
    """
    if values.shape != embeddings.shape[:1]:
        raise UserError(f"{name}: should be ({len(embeddings)},), one an embedding, got {tuple(values.shape)}")
    if values.is_floating_point() or values.is_complex():
        raise UserError(f"{name}: should be whole numbers, got {values.dtype}")
    whole = values.to(embeddings.device, torch.int64)
    if values.dtype == torch.uint64 and (whole < 0).any():
        raise UserError(f"{name}: should be below 2^63")
    return whole


def check_distinct(name: str, ids: Tensor) -> None:
    """Raise a UserError if an id occurs twice."""
    values, counts = ids.unique(return_counts=True)
    if len(values) < len(ids):
        twice = values[counts > 1]
        raise UserError(f"{name}: {len(twice)} ids occur more than once, the first is {int(twice[0])}")


def check_orders(orders: Mapping[str, Tensor], n: int) -> None:
    """Raise a UserError unless there are orders and each is a permutation of 0 .. n-1."""
    if not orders:
        raise UserError("orders: there is none to backfill in")
    for name, order in orders.items():
        whole = not order.is_floating_point() and order.shape == (n,)
        if not whole or not torch.equal(order.sort().values.long().cpu(), torch.arange(n)):
            raise UserError(f"order `{name}`: is no permutation of the {n} gallery items")


def check_cutoffs(cutoffs: Sequence[int], n: int) -> None:
    """Raise a UserError unless the cut-offs rise, within 0 .. n."""
    steps = [0, *cutoffs, n]
    if not cutoffs or any(after < before for before, after in pairwise(steps)):
        raise UserError(f"cut-offs: should rise from 0 or more to {n} or less, got {list(cutoffs)}")


def check_wanted(wanted: Wanted) -> None:
    """Raise a UserError unless every k is at least 1 and there is something to compute."""
    for name in ("top_k", "recall_at", "precision_at"):
        ranks = getattr(wanted, name)
        if any(k < 1 for k in ranks):
            raise UserError(f"{name}: should be 1 or more each, got {list(ranks)}")
    if not (wanted.top_k or wanted.depths or wanted.compute_map):
        raise UserError("top_k: there is nothing to compute; name a k, or ask for mAP")


def check_level(interval_level: float | None) -> None:
    """Raise a UserError unless the level of intervals, if there is one, is between 0 and 1."""
    if interval_level is not None and not 0 < interval_level < 1:
        raise UserError(f"interval_level: should be between 0 and 1, as 0.95, got {interval_level}")
