"""A part of the items of an evaluation: of some classes alone, or with a long tail of class sizes."""

import torch

from data.embeddings import EmbeddingSet
from evaluation.config import Subset
from utils.errors import UserError
from utils.seeds import Stream, generator

FEWEST = 2  # items a class, so that each of them has one to find


def choose_items(labels: torch.Tensor, subset: Subset, seed: int) -> torch.Tensor:
    """The positions (m,) int64, ascending, of the items that `subset` describes; what is drawn is drawn by the seed.

    With an imbalance f the classes come in a random order, and of the one at place r of C a share of f^(-r / (C - 1))
    of the items stays: all of the first, 1/f of the last, though never fewer than two (the long tail of Cui et al.,
    arXiv 1901.05555). Items with a negative label are of no class: all of them stay, as the distractors that they are,
    unless `classes` asks for some classes alone.

    Args:
        labels: (n,) integers.

    Raises:
        UserError: no item has a class of the subset.
    """
    labels = labels.cpu()
    classes = labels[labels >= 0].unique()
    chosen = [(labels < 0).nonzero().squeeze(1)]
    if subset.classes is not None:
        first, end = subset.classes
        classes, chosen = classes[(classes >= first) & (classes < end)], []
        if not len(classes):
            raise UserError(f"eval_params.subset.classes: no item has a label from {first} to {end - 1}")
    random = generator(seed, Stream.SUBSET)
    for place, label in enumerate(classes[torch.randperm(len(classes), generator=random)].tolist()):
        (items,) = (labels == label).nonzero(as_tuple=True)
        share = subset.imbalance ** (-place / max(1, len(classes) - 1))
        count = max(FEWEST, round(share * len(items)))
        chosen.append(items[torch.randperm(len(items), generator=random)[:count]])
    return torch.cat(chosen).sort().values


def take_subset(
    query: EmbeddingSet, gallery: EmbeddingSet, subset: Subset, seed: int
) -> tuple[EmbeddingSet, EmbeddingSet]:
    """The part of queries and gallery that `subset` describes: of the same items where both hold the same.

    Raises:
        UserError: see `choose_items`.
    """
    assert query.labels is not None
    assert gallery.labels is not None
    items = choose_items(query.labels, subset, seed)
    return query.take(items), gallery.take(
        items if query.same_items(gallery) else choose_items(gallery.labels, subset, seed)
    )
