"""One evaluation and a whole curve of 22 points under three orders: time, memory, and what limits them."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.bench_eval import BACKFILLING, CLASSES, DIMENSION, POINTS, Upgrade, evaluation, synthetic
from benchmarks.harness import DEVICE, GIB, Figure, figure, now, seconds, take_turns
from benchmarks.on_gpu.correctness import THREE_ORDERS, orders_of
from retrieval import backfilling_curve, cutoffs, evaluate

TURNS = 3
PRODUCT_ROWS = 2_048  # queries of a product that is timed alone


def curve(items: Upgrade, orders: dict[str, torch.Tensor]) -> None:
    """The curve under each order."""
    marks = cutoffs(len(items.new), BACKFILLING)
    backfilling_curve(items.new, items.transformed, items.new, items.labels, orders=orders, cutoffs=marks)


def memory_of(work: Callable[[], object]) -> float:
    """The most memory of the GPU, in GiB, that `work` takes beyond what is taken; 0 without a GPU."""
    if DEVICE.type != "cuda":
        return 0.0
    now()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    now()
    return (torch.cuda.max_memory_allocated() - before) / GIB


def products(items: Upgrade) -> None:
    """The matrix products of one evaluation alone, in float64, as the engine takes them."""
    gallery = items.transformed.double().T.contiguous()
    for queries in items.new.split(PRODUCT_ROWS):
        torch.mm(queries.double(), gallery)


def moves(items: Upgrade) -> None:
    """Every distance of one evaluation written once and read once, in float32."""
    rows = torch.empty(PRODUCT_ROWS, len(items.transformed), device=DEVICE)
    for queries in items.new.split(PRODUCT_ROWS):
        part = rows[: len(queries)]
        part.zero_()
        part.sum()


def square(tiny: bool) -> Iterator[Figure]:
    """50,000 queries in a gallery of as many."""
    n = 2 * CLASSES if tiny else 50_000
    name = f"{n:,} x {n:,} x {DIMENSION}"
    items, binding = synthetic(n), DEVICE.type == "cuda" and not tiny
    orders = orders_of(items, THREE_ORDERS)
    ways = {
        "evaluation": partial(evaluation, items),
        "curve": partial(curve, items, orders),
        "products": partial(products, items),
        "moves": partial(moves, items),
    }
    times = take_turns(ways, 1 if tiny else TURNS)
    title = f"curve, {POINTS} points, {len(orders)} orders, {name}"
    yield figure(title, times["curve"], "s", at_most=1.0 if binding else None)
    yield figure(f"one evaluation, {name}", times["evaluation"], "s", at_most=0.3 if binding else None)
    for way, limit in (("products", "matrix rate, float64"), ("moves", "memory bandwidth")):
        share = [least / spent for least, spent in zip(times[way], times["evaluation"], strict=True)]
        yield figure(f"  evaluation, share of the limit: {limit}", share)
    yield figure("  evaluation, extra memory", memory_of(ways["evaluation"]), "GiB")
    yield figure("  curve, extra memory", memory_of(ways["curve"]), "GiB")


def wide(tiny: bool) -> Iterator[Figure]:
    """10,000 queries in a gallery of a million."""
    queries, n = (CLASSES, 4 * CLASSES) if tiny else (10_000, 1_000_000)
    items = synthetic(n)
    ids, chosen = torch.arange(n), torch.arange(0, n, n // queries)
    query, labels = items.new[chosen.to(DEVICE)], items.labels[chosen.to(DEVICE)]

    def work() -> None:
        evaluate(query, items.transformed, labels, items.labels, query_ids=chosen, gallery_ids=ids)

    if not tiny:
        seconds(work)  # warms up
    yield figure(f"one evaluation, {queries:,} x {n:,} x {DIMENSION}", seconds(work), "s")
    yield figure(f"  extra memory, {queries:,} x {n:,}", memory_of(work), "GiB")


STEPS = (square, wide)
