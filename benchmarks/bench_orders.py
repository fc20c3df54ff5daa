"""The backfilling orders on a large gallery: 1 million items, 1,000 classes.

    python benchmarks/bench_orders.py [--json FILE] [--tiny]

Claim: every order takes less than a minute, and less than 1 GiB beyond the embeddings. Measured: time and memory of
each in a process of its own, on float16 embeddings in clusters; not of the oracle, which knows all labels and costs as
much as an evaluation.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import DEVICE, Figure, cost_of, figure, options, run
from retrieval import backfilling_order

ORDERS = ("random", "sigma", "distance", "confidence", "entropy", "class_distance", "knn_disagreement")
DIMENSION = 128


class Items(NamedTuple):
    """What an order may look at."""

    new: Tensor  # (n, d) float16
    transformed: Tensor  # (n, d) float16
    log_variance: Tensor  # (n,)
    classifier: Tensor  # (C, d)
    class_means: Tensor  # (C, d)


def synthetic(n: int, classes: int) -> Items:
    """n items in clusters about their class mean; h(old) is new with noise. Made in parts, to leave memory alone."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(classes, DIMENSION, generator=generator)
    new, transformed = (torch.empty(n, DIMENSION, dtype=torch.float16) for _ in range(2))
    for rows in torch.arange(n).split(10_000):
        noise, error = torch.randn(2, len(rows), DIMENSION, generator=generator)
        new[rows] = (means[rows % classes] + noise).half()
        transformed[rows] = (new[rows].float() + error).half()
    log_variance = torch.randn(n, generator=generator)
    return Items(*(tensor.to(DEVICE) for tensor in (new, transformed, log_variance, means, means)))


def order(items: Items, name: str) -> Tensor:
    """Our order."""
    return backfilling_order(name, **items._asdict())


def measure(arguments: argparse.Namespace) -> Iterator[Figure]:
    n, classes = (1000, 10) if arguments.tiny else (1_000_000, 1000)
    for name in ORDERS[:2] if arguments.tiny else ORDERS:
        cost = cost_of(partial(order, name=name), partial(synthetic, n, classes), partial(synthetic, 100, 10))
        yield figure(f"{name}: time, n = {n}, {classes} classes", cost.seconds, "s", at_most=60)
        yield figure(f"{name}: extra memory", cost.extra, "GiB", at_most=1)


if __name__ == "__main__":
    run(options(__doc__, turns=1), measure)
