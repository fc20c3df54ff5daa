"""Learning-rate schedules: pure functions of the epoch."""

import math


def warmup_cosine(epoch: int, *, lr: float, epochs: int, warmup_length: int) -> float:
    """The published schedule, set once an epoch (FCT, appendix A): linear warm-up, then half a cosine to zero.

    >>> [round(warmup_cosine(e, lr=1.0, epochs=10, warmup_length=2), 3) for e in (0, 1, 2, 6)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if epoch < warmup_length:
        return lr * (epoch + 1) / warmup_length
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup_length) / (epochs - warmup_length))) * lr


def constant(epoch: int, *, lr: float, epochs: int, warmup_length: int) -> float:
    """Linear warm-up, then `lr` throughout.

    >>> [constant(e, lr=1.0, epochs=10, warmup_length=2) for e in (0, 1, 9)]
    [0.5, 1.0, 1.0]
    """
    return lr * min(1.0, (epoch + 1) / warmup_length) if warmup_length else lr


SCHEDULES = {"cosine_lr": warmup_cosine, "constant_lr": constant}
