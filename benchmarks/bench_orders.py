"""The backfilling orders on a large gallery: 1 million items, 1,000 classes.

    python benchmarks/bench_orders.py [--json FILE] [--quick]

On synthetic float16 embeddings, in clusters: the time of every order (but for the oracle, which knows all labels and
costs as much as an evaluation), and the most memory that it takes beyond the embeddings, in a process of its own.
`confidence` is compared with the softmax of all items at once, on a tenth of them.
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figure, figure, print_figure, print_machine
from retrieval import backfilling_order
from utils.files import write_json

ORDERS = ("random", "sigma", "distance", "confidence", "entropy", "class_distance", "knn_disagreement")
DIMENSION = 128
SECONDS, GIGABYTES = 60.0, 1.0  # the bars


class Items(NamedTuple):
    """What an order may look at."""

    new: Tensor  # (n, d) float16
    transformed: Tensor  # (n, d) float16
    log_variance: Tensor  # (n,)
    classifier: Tensor  # (C, d)
    class_means: Tensor  # (C, d)


def synthetic(n: int, classes: int) -> Items:
    """n items in clusters about their class mean; h(old) is new with noise. Made in parts, to leave memory alone."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(classes, DIMENSION, generator=generator)
    new, transformed = (torch.empty(n, DIMENSION, dtype=torch.float16) for _ in range(2))
    for rows in torch.arange(n).split(10_000):
        noise, error = torch.randn(2, len(rows), DIMENSION, generator=generator)
        new[rows] = (means[rows % classes] + noise).half()
        transformed[rows] = (new[rows].float() + error).half()
    log_variance = torch.randn(n, generator=generator)
    return Items(*(tensor.to(device) for tensor in (new, transformed, log_variance, means, means)))


def order(items: Items, name: str) -> Tensor:
    """Our order."""
    return backfilling_order(name, **items._asdict())


def whole_softmax(items: Items) -> Tensor:
    """The order `confidence` from one matrix of all probabilities."""
    probabilities = (items.transformed.float() @ items.classifier.T).softmax(1)
    return probabilities.amax(1).sort(stable=True).indices


def seconds(work: Callable[[], Any]) -> float:
    """The wall-clock time of `work`."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_own_process(name: str, n: int, classes: int, threads: int) -> tuple[float, float]:
    """The seconds of an order, and the most gibibytes that it takes beyond what it is given."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_measure, name, n, classes, threads).result()


def _measure(name: str, n: int, classes: int, threads: int) -> tuple[float, float]:
    torch.set_num_threads(threads)
    order(synthetic(100, 10), name)  # loads what is loaded once
    items = synthetic(n, classes)
    if torch.cuda.is_available():
        allocated = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return seconds(lambda: order(items, name)), (torch.cuda.max_memory_allocated() - allocated) / 2**30
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak to what is resident now
    before = _peak()
    return seconds(lambda: order(items, name)), _peak() - before


def _peak() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20


def measure(n: int, classes: int) -> Iterator[Figure]:
    """Time and memory of every order, and `confidence` against the plain way."""
    for name in ORDERS:
        spent, taken = in_own_process(name, n, classes, torch.get_num_threads())
        yield figure(f"{name}: time, n = {n}, {classes} classes", spent, "s", at_most=SECONDS)
        yield figure(f"{name}: extra memory, n = {n}, {classes} classes", taken, "GiB", at_most=GIGABYTES)
    items = synthetic(n // 10, classes)
    same = bool((order(items, "confidence") == whole_softmax(items)).float().mean() > 0.99)  # but for rounding
    yield figure("confidence: the same order as by one softmax of all", float(same), "", at_least=1)
    ways = {"ours": lambda: order(items, "confidence"), "whole": lambda: whole_softmax(items)}
    times = {name: min(seconds(way) for _ in range(3)) for name, way in ways.items()}
    yield figure(f"confidence: one softmax of all / ours, n = {n // 10}", times["whole"] / times["ours"], "x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    arguments = parser.parse_args()
    print_machine()
    figures: list[Figure] = []
    for row in measure(*((1000, 10) if arguments.quick else (1_000_000, 1000))):
        print_figure(row)
        figures.append(row)
    if arguments.json:
        write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
