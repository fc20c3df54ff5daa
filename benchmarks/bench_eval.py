"""A whole backfilling curve against what it replaces: sorting every row of distances, once for each point.

    python benchmarks/bench_eval.py [--json FILE] [--embeddings DIR] [--quick]

On the same embeddings, in one run:

- ours: `evaluate`, and `backfilling_curve` with 22 points;
- sort: one evaluation with torch.cdist, torch.sort and vectorised AP and CMC, in chunks of queries. (a) is its loop
  over the points, each of which costs the same: timed once, times 22;
- (b) the way of the papers' public code: both n x n matrices, and for each point a copy, an argsort of every row and
  one scikit-learn call a query. Timed on some queries and 2 points, and scaled by their counts.

Peak memory is measured in processes of their own, beyond what the embeddings take. The embeddings are synthetic, in
clusters, or those of DIR/query.npz and DIR/gallery.npz (`eval_params.embeddings_output_dir` of eval.py).
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figure, figure, print_figure, print_machine
from data.embeddings import read_embeddings
from retrieval import backfilling_curve, backfilling_order, cutoffs, evaluate
from utils.files import write_json

BACKFILLING, POINTS = 20, 22
CLASS_SIZE, CLASSES, DIMENSION = 100, 100, 128
SORT_CHUNK = 64  # queries: the fastest of 16, 64, ..., 1024 for the sort on the machine of the README


class Upgrade(NamedTuple):
    """The embeddings of n items before and after."""

    new: Tensor  # (n, d) queries, and the gallery when it is backfilled
    transformed: Tensor  # (n, d)
    labels: Tensor  # (n,)


def synthetic(n: int, class_size: int = CLASS_SIZE) -> Upgrade:
    """Clustered embeddings: n items in classes of `class_size`; h(old) is new with noise, more of it for some items."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) // class_size
    centres = torch.randn(int(labels[-1]) + 1, DIMENSION, generator=generator)
    new = centres[labels] + 2.5 * torch.randn(n, DIMENSION, generator=generator)
    transformed = new + 2 * torch.rand(n, 1, generator=generator) * torch.randn(n, DIMENSION, generator=generator)
    return Upgrade(new.to(device), transformed.to(device), labels.to(device))


def curve(items: Upgrade, queries: int | None = None) -> Any:
    """Our curve under the distance order, of all queries or of the first few."""
    n = len(items.new)
    order = backfilling_order("distance", transformed=items.transformed, new=items.new)
    ids = torch.arange(n)
    curves = backfilling_curve(
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
    return curves["distance"].points[0].to_json()


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


def matrix_points(items: Upgrade, queries: int, points: int) -> None:
    """(b) on the first `queries` and `points`."""
    device = items.new.device
    itself = torch.eye(queries, len(items.new), dtype=torch.bool, device=device)
    relevant = (items.labels == items.labels[:queries, None]) & ~itself
    old_distances = torch.cdist(items.new[:queries], items.transformed)
    new_distances = torch.cdist(items.new[:queries], items.new)
    for cutoff in cutoffs(len(items.new), BACKFILLING)[:points]:
        distances = old_distances.clone()
        distances[:, :cutoff] = new_distances[:, :cutoff]
        distances[itself] = distances.amax()
        nearest = distances.argsort(1)
        hits = relevant.gather(1, nearest[:, :5])
        for k in (1, 5):
            hits[:, :k].any(1).double().mean()
        for truth, scores in zip(relevant.cpu().numpy(), -distances.cpu().numpy(), strict=True):
            average_precision_score(truth, scores)


def matrices(items: Upgrade) -> None:
    """What (b) holds at a time, for all queries."""
    old_distances = torch.cdist(items.new, items.transformed)
    new_distances = torch.cdist(items.new, items.new)
    distances = old_distances.clone()
    distances[:, :1] = new_distances[:, :1]
    distances.argsort(1)


def few_chunks(items: Upgrade) -> Any:
    """Our curve for the queries of a few chunks: memory grows with the gallery and not with the number of chunks."""
    return curve(items, queries=512)


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The wall-clock time of `work`."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_gigabytes(work: Callable[[Upgrade], Any], n: int, threads: int) -> float:
    """The most memory that `work` takes beyond n embeddings, in a process of its own; on a GPU, of the GPU."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_peak_here, work, n, threads).result()


def _peak_here(work: Callable[[Upgrade], Any], n: int, threads: int) -> float:
    torch.set_num_threads(threads)
    work(synthetic(2 * CLASS_SIZE))  # loads what is loaded once
    items = synthetic(n)
    if items.new.device.type == "cuda":
        allocated = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work(items)
        return (torch.cuda.max_memory_allocated() - allocated) / 2**30
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak to what is resident now
    before = _resident("VmHWM")
    work(items)
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 2**20


def compare(items: Upgrade, some: int, repeats: int) -> Iterator[Figure]:
    """Ours, sort, (a) and (b) on the same embeddings; ours and sort take turns."""
    n, device = len(items.new), items.new.device
    ours, theirs = evaluation(items), sort_evaluation(items)  # also the warm-up
    agreement = max(abs(ours[name] - theirs[name]) for name in theirs)
    yield figure(f"largest difference of a metric, ours and sort, n = {n}", agreement, "")
    ways = {"evaluate": evaluation, "curve": curve, "sort": sort_evaluation}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            times[name].append(seconds(lambda way=way: way(items), device))  # type: ignore[misc]
    median = {name: statistics.median(values) for name, values in times.items()}
    loop = POINTS * median["sort"]
    matrix = seconds(lambda: matrix_points(items, some, 2), device) * (n / some) * (POINTS / 2)
    yield figure("one evaluation, ours", median["evaluate"], "s")
    yield figure("one evaluation, sort", median["sort"], "s")
    yield figure(f"curve of {POINTS} points, ours", median["curve"], "s")
    yield figure(f"curve, (a) a sort for each point: one, times {POINTS}", loop, "s")
    yield figure(f"curve, (b) matrix and scikit-learn: from {some} queries", matrix, "s")
    yield figure("curve, ours / one evaluation, sort", median["curve"] / median["sort"], "x", at_most=0.6)
    yield figure("curve, (a) / ours", loop / median["curve"], "x", at_least=30)
    yield figure("curve, (b) / ours", matrix / median["curve"], "x", at_least=120)


def growth(sizes: list[int]) -> Iterator[Figure]:
    """Time of the curve over n^2, relative to the size before the last; classes of fixed size, or of fixed number."""
    for title, class_size in (("classes of 100", lambda n: CLASS_SIZE), ("100 classes", lambda n: n // CLASSES)):
        costs = {}
        for n in sizes:
            items = synthetic(n, class_size(n))
            spent = min(seconds(lambda items=items: curve(items), items.new.device) for _ in range(2))  # type: ignore[misc]
            costs[n] = spent / n**2
            yield figure(f"curve, n = {n}, {title}", spent, "s")
        for n in sizes:
            ratio = costs[n] / costs[sizes[-2]]
            yield figure(
                f"cost over n^2, n = {n} / n = {sizes[-2]}, {title}", ratio, "x", at_most=1.2 if n > sizes[-2] else None
            )


def memory(quick: bool) -> Iterator[Figure]:
    """Peak memory beyond the embeddings, each in a process of its own."""
    small, large = 200 if quick else 10_000, 100_000
    ways: list[tuple[str, Callable[[Upgrade], Any], int, float | None]] = [
        ("curve, ours", curve, small, 1.0),
        ("curve, ours (512 of the queries)", few_chunks, large, 4.0),
        ("one evaluation, sort", sort_evaluation, small, None),
        ("curve, (b)", matrices, small, None),
    ]
    for title, way, n, bar in ways[:1] if quick else ways:
        gigabytes = peak_gigabytes(way, n, torch.get_num_threads())
        yield figure(f"extra memory, n = {n}, {title}", gigabytes, "GiB", at_most=bar)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    parser.add_argument("--embeddings", metavar="DIR", help="compare on query.npz and gallery.npz of this folder")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    arguments = parser.parse_args()
    print_machine()
    items = synthetic(200 if arguments.quick else CLASSES * CLASS_SIZE)
    if arguments.embeddings:
        query, gallery = (
            read_embeddings(Path(arguments.embeddings) / name, where="--embeddings")
            for name in ("query.npz", "gallery.npz")
        )
        gallery = gallery.in_order_of(query.named("query.npz"), "gallery.npz")
        assert gallery.labels is not None
        device = items.new.device
        items = Upgrade(query.embeddings.float().to(device), gallery.embeddings.float().to(device), gallery.labels)
    sizes = [2000, 5000, 10_000, 20_000, *([50_000, 100_000] if torch.cuda.is_available() else [])]
    figures: list[Figure] = []
    for row in chain(
        compare(items, some=4 if arguments.quick else 100, repeats=1 if arguments.quick else 3),
        growth([200, 400] if arguments.quick else sizes),
        memory(quick=arguments.quick),
    ):
        print_figure(row)
        figures.append(row)
    if arguments.json:
        write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
