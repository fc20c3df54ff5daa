"""What all benchmarks share: turns within one run, figures with their spread, and memory in a process of its own.

A script hands `run` its options and a function that yields figures. Each figure is printed as it comes, below a line on
the machine; `--json FILE` writes them all.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from utils.files import write_json
from utils.provenance import environment

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GIB = 2**30
Figure = dict[str, Any]


def figure(
    name: str,
    values: float | Sequence[float],
    unit: str = "",
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Figure:
    """A measured value, or the median of one for each turn, and the bar that it should reach or not exceed, if any."""
    each = values if isinstance(values, Sequence) else [values]
    value = statistics.median(each)
    bar = at_most if at_least is None else at_least
    holds = None if bar is None else bool(value <= bar if at_least is None else value >= bar)
    spread = {"min": min(each), "max": max(each)}
    return {"name": name, "value": value, "unit": unit, **spread, "bar": bar, "holds": holds}


def line(row: Figure) -> str:
    """A figure as it is printed."""
    spread = "" if row["min"] == row["max"] else f"{row['min']:.4g} to {row['max']:.4g}"
    bar = "" if row["bar"] is None else f"bar {row['bar']:g}: {'holds' if row['holds'] else 'MISSED'}"
    return f"{row['name']:64}{row['value']:12.4g} {row['unit']:10}{spread:24}{bar}".rstrip()


def options(doc: str, *, turns: int) -> argparse.ArgumentParser:
    """The options that every benchmark has; `doc` is the script's docstring."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    parser.add_argument("--turns", type=int, default=turns, help=f"how often each way is timed (default: {turns})")
    parser.add_argument("--tiny", action="store_true", help="seconds, to see that it runs; the figures mean nothing")
    return parser


def run(parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], Iterable[Figure]]) -> None:
    """Print the machine and the figures that `measure` yields, and write them where `--json` says."""
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.turns = 1
    print(machine_line())
    figures = []
    for row in measure(arguments):
        print(line(row), flush=True)
        figures.append(row)
    if arguments.json:
        write_json(arguments.json, figures)


def machine_line() -> str:
    """What figures are of."""
    machine = environment()
    return f"{machine['device']}, {machine['cores']} cores, torch {machine['torch']}, {torch.get_num_threads()} threads"


def now() -> float:
    """The time in seconds, when the device has done what it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object]) -> float:
    """The wall-clock time of `work`."""
    started = now()
    work()
    return now() - started


def take_turns(ways: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """The seconds of each way in each turn, A B A B ...; a turn before them warms up and does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns + 1):
        for name, way in ways.items():
            times[name].append(seconds(way))
    return {name: each[1:] for name, each in times.items()}


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """Turn by turn, how many times as long the first way took: a machine that is slow for a while slows both."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


class Apart:
    """Work timed in a process of its own, where memory is not kept as our trainer keeps it in this one."""

    def __init__(self, prepare: Callable[[], Callable[[], object]]) -> None:
        """`prepare`, which must be picklable, makes the work there."""
        start = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, start, _prepare_here, (prepare, torch.get_num_threads()))

    def __call__(self) -> float:
        """The seconds of one turn."""
        return self._process.submit(_turn_here).result()


_work_here: Callable[[], object]


def _prepare_here(prepare: Callable[[], Callable[[], object]], threads: int) -> None:
    global _work_here  # of a process that is for it alone
    torch.set_num_threads(threads)
    _work_here = prepare()


def _turn_here() -> float:
    return seconds(_work_here)


class TrainerTurns:
    """Turns with a trainer, which asks for its batches itself: in each epoch first the plain loop, then the trainer."""

    def __init__(self, plain_epoch: Callable[[], float]) -> None:
        """`plain_epoch` takes the plain loop over as many batches as an epoch has, and gives its seconds."""
        self.plain_epoch = plain_epoch
        self._seconds: list[tuple[float, float]] = []  # a step of each, for every epoch

    def epoch(self, batches: Sequence[Any], fed: Callable[[Any], Any] = lambda batch: batch) -> Iterator[Any]:
        """Take the plain loop's turn, then yield what `fed` makes of each of `batches` to the trainer."""
        plain = self.plain_epoch()
        started = now()
        yield from map(fed, batches)
        self._seconds.append((plain / len(batches), (now() - started) / len(batches)))

    def times(self) -> tuple[list[float], list[float]]:
        """Seconds a step of the plain loop and of the trainer, for each epoch but the first, which warms up."""
        plain, ours = zip(*self._seconds[1:], strict=True)
        return list(plain), list(ours)


class Cost(NamedTuple):
    """What something took in a process of its own."""

    seconds: float
    extra: float  # GiB at most, beyond what it was given and what was loaded; on a GPU, of the GPU
    whole: float  # GiB at most that the process held of the machine's memory


def cost_of(work: Callable[[Any], object], given: Callable[[], Any], warm_up: Callable[[], Any] | None = None) -> Cost:
    """The cost of `work(given())`, after `work(warm_up())`, which loads what is loaded once. All must be picklable."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_cost_here, work, given, warm_up, torch.get_num_threads()).result()


def _cost_here(
    work: Callable[[Any], object], given: Callable[[], Any], warm_up: Callable[[], Any] | None, threads: int
) -> Cost:
    torch.set_num_threads(threads)
    if warm_up is not None:
        work(warm_up())
    value = given()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak to what is resident now
    before = _peak()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / GIB
    spent, whole = seconds(lambda: work(value)), _peak()
    peak = torch.cuda.max_memory_allocated() / GIB if DEVICE.type == "cuda" else whole
    return Cost(spent, peak - before, whole)


def _peak() -> float:
    """The most memory, in GiB, that was resident in this process; ru_maxrss would begin with its parent's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / GIB
