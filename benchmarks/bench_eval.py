"""A backfilling curve of 22 points against what it replaces: sorting every row of distances, once for each point.

    python benchmarks/bench_eval.py [--json FILE] [--tiny]

Claim: the whole curve takes less than 0.6 of the time of one evaluation by sorting, its time grows like n^2, and it
needs no n x n matrix. Measured: `evaluate` and `backfilling_curve`, n queries against n items in clusters, and the most
memory beyond the embeddings. Compared with: one evaluation of the same embeddings with torch.cdist, torch.sort and
vectorised AP and CMC, in chunks of queries; of which a curve takes one for each point.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import DEVICE, Figure, cost_of, figure, options, ratios, run, take_turns
from retrieval import backfilling_curve, backfilling_order, cutoffs, evaluate

BACKFILLING, POINTS = 20, 22
CLASSES, DIMENSION = 100, 128
SORT_CHUNK = 64  # queries: the fastest of 16, 64, ..., 1024 for the sort on the machine of the README


class Upgrade(NamedTuple):
    """The embeddings of n items before and after."""

    new: Tensor  # (n, d) queries, and the gallery when it is backfilled
    transformed: Tensor  # (n, d)
    labels: Tensor  # (n,)


def synthetic(n: int, device: torch.device = DEVICE) -> Upgrade:
    """Clustered embeddings: n items in 100 classes; h(old) is new with noise, more of it for some items."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) // (n // CLASSES)
    centres = torch.randn(CLASSES, DIMENSION, generator=generator)
    new = centres[labels] + 2.5 * torch.randn(n, DIMENSION, generator=generator)
    transformed = new + 2 * torch.rand(n, 1, generator=generator) * torch.randn(n, DIMENSION, generator=generator)
    return Upgrade(new.to(device), transformed.to(device), labels.to(device))


def curve(items: Upgrade, queries: int | None = None) -> None:
    """Our curve under the distance order, of all queries or of the first few."""
    n = len(items.new)
    order = backfilling_order("distance", transformed=items.transformed, new=items.new)
    ids = torch.arange(n)
    backfilling_curve(
        items.new[:queries],
        items.transformed,
        items.new,
        items.labels[:queries],
        items.labels,
        orders={"distance": order},
        cutoffs=cutoffs(n, BACKFILLING),
        query_ids=ids[:queries],
        gallery_ids=ids,
    )


def evaluation(items: Upgrade) -> Any:
    """Our evaluation of the gallery before backfilling."""
    return evaluate(items.new, items.transformed, items.labels).to_json()


def sort_evaluation(items: Upgrade) -> dict[str, float]:
    """The same by sorting. Every query has a relevant item, and ties are broken as they fall."""
    n, device = len(items.new), items.new.device
    rank = torch.arange(1, n + 1, device=device)
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for chunk in torch.arange(n, device=device).split(SORT_CHUNK):
        distances = torch.cdist(items.new[chunk], items.transformed)
        distances[torch.arange(len(chunk)), chunk] = torch.inf
        nearest = distances.sort(1).indices[:, :-1]
        relevant = items.labels[nearest] == items.labels[chunk, None]
        precision = relevant.cumsum(1, dtype=torch.int32) / rank[:-1]
        average_precision = torch.where(relevant, precision, 0).sum(1, dtype=torch.float64) / relevant.sum(1)
        hits = [relevant[:, :k].any(1).sum() for k in (1, 5)]
        sums += torch.stack([*hits, average_precision.sum()])
    return dict(zip(("cmc_top1", "cmc_top5", "map"), (sums / n).tolist(), strict=True))


def compare(items: Upgrade, turns: int) -> Iterator[Figure]:
    """Ours and the sort on the same embeddings."""
    n = len(items.new)
    ours, theirs = evaluation(items), sort_evaluation(items)
    agreement = max(abs(ours[name] - theirs[name]) for name in theirs)
    yield figure(f"largest difference of a metric, ours and sort, n = {n}", agreement, at_most=1e-6)
    ways = {"evaluate": evaluation, "curve": curve, "sort": sort_evaluation}
    times = take_turns({name: partial(way, items) for name, way in ways.items()}, turns)
    yield figure("one evaluation, ours", times["evaluate"], "s")
    yield figure("one evaluation, sort", times["sort"], "s")
    yield figure(f"curve of {POINTS} points, ours", times["curve"], "s")
    against = ratios(times["curve"], times["sort"])
    yield figure("curve, ours / one evaluation, sort", against, "x", at_most=0.6)
    yield figure("curve, a sort for each point / ours", [POINTS / ratio for ratio in against], "x", at_least=30)


def growth(sizes: list[int]) -> Iterator[Figure]:
    """Time of the curve over n^2, relative to the size before the last."""
    spent = {}
    for n in sizes:
        spent[n] = min(take_turns({"curve": partial(curve, synthetic(n))}, turns=2)["curve"])
        yield figure(f"curve, n = {n}", spent[n], "s")
    base = sizes[-2]
    for n in sizes:
        ratio = spent[n] / spent[base] * (base / n) ** 2
        yield figure(f"cost over n^2, n = {n} / n = {base}", ratio, "x", at_most=1.2 if n > base else None)


def memory(n: int, large: int) -> Iterator[Figure]:
    """The most memory beyond the embeddings; for a large gallery of few queries, as their number does not matter."""
    small = partial(synthetic, 2 * CLASSES)
    extra = cost_of(curve, partial(synthetic, n), small).extra
    yield figure(f"extra memory of the curve, n = {n}", extra, "GiB", at_most=1.0)
    extra = cost_of(partial(curve, queries=512), partial(synthetic, large), small).extra
    yield figure(f"extra memory of the curve, n = {large}, 512 queries", extra, "GiB", at_most=4.0)


def measure(arguments: argparse.Namespace) -> Iterator[Figure]:
    tiny = arguments.tiny
    sizes = [2000, 5000, 10_000, 20_000, *([50_000, 100_000] if DEVICE.type == "cuda" else [])]
    yield from compare(synthetic(200 if tiny else 10_000), arguments.turns)
    yield from growth([200, 400] if tiny else sizes)
    yield from memory(*((200, 400) if tiny else (10_000, 100_000)))


if __name__ == "__main__":
    run(options(__doc__, turns=3), measure)
