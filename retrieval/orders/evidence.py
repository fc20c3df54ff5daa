"""What a backfilling order may look at."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    """The n items of a gallery before and after backfilling, and what is known of their classes."""

    transformed: Tensor  # (n, d) h(old)
    new: Tensor  # (n, d)
    log_variance: Tensor | None  # (n,) or (n, sigma_dim)
    classifier: Tensor | None  # (C, d)
    classifier_bias: Tensor | None  # (C,)
    class_means: Tensor | None  # (C, d)
    labels: Tensor | None  # (n,) int64
    distance: str
    seed: int
    unhelpful: Collection[str] = ()  # orders that are known to bring no more than random order
