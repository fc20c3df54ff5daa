"""Mixup (Zhang et al., arXiv 1710.09412) of paired embeddings: a transformation that does not know its items by heart.

The old model has seen the items that h is trained on, and places them better than others. Between two of them lies what
it makes of an item that it has not seen.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.nn import functional as F

from trainers.transformation.pairs import PairBatch
from utils.seeds import Stream, seed_of


def mixed(
    batches: Iterable[PairBatch], alpha: float, num_classes: int | None, *, seed: int, epoch: int, rank: int
) -> Iterator[PairBatch]:
    """Mix each item of a batch with another of it: lambda x_i + (1 - lambda) x_j for old, side-information and new.

    lambda is drawn for each item from Beta(alpha, alpha), and is at least 1/2, so that most of an item is its own.

    Args:
        batches: with labels (B,).
        alpha: 0 leaves items nearly as they are, 1 draws lambda evenly.
        num_classes: C; labels become shares of classes (B, C), of which an item with a negative label has none. None:
            there are no labels, and they stay as they are.
        seed, epoch, rank: what is drawn is a function of these.
    """
    random = np.random.default_rng(seed_of(seed, Stream.MIXUP, epoch, rank))
    for batch in batches:
        count, device = len(batch.labels), batch.new.device
        other = torch.from_numpy(random.permutation(count)).to(device)
        share = random.beta(alpha, alpha, size=(count, 1))
        own = torch.from_numpy(np.maximum(share, 1 - share)).float().to(device)  # (B, 1)

        def mix(values: torch.Tensor, own: torch.Tensor = own, other: torch.Tensor = other) -> torch.Tensor:
            return own * values + (1 - own) * values[other]

        yield PairBatch(
            mix(batch.old),
            None if batch.side_info is None else mix(batch.side_info),
            mix(batch.new),
            batch.labels if num_classes is None else mix(shares(batch.labels, num_classes)),
        )


def shares(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Labels (B,) as shares of classes (B, C): 1 for an item's own, and nothing for one with a negative label."""
    return F.one_hot(labels.clamp(min=0), num_classes) * (labels >= 0).float().unsqueeze(1)
