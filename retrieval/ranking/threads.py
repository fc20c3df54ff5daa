"""Chunks of work on every core: a thread each, because many single operations use one core only."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def worker_count(device: torch.device) -> int:
    """How many chunks are at work at a time."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def run_chunks(work: Callable[[Tensor], int], chunks: Iterable[Tensor], device: torch.device) -> Iterator[int]:
    """Yield `work(chunk)` of every chunk, in order, without gradients.

    On a CPU as many chunks are at work at a time as torch has threads, each on one thread. A GPU takes them one after
    the other.
    """
    threads, work = worker_count(device), torch.no_grad()(work)  # whether gradients are on is a thread's own
    if threads == 1:
        yield from map(work, chunks)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, chunks)
    finally:
        torch.set_num_threads(threads)
