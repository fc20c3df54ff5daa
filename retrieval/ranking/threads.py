"""Chunks of work on every core: a thread each, because many single operations use one core only."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import torch
from torch import Tensor

from retrieval.ranking.buffers import Buffers


def worker_count(device: torch.device) -> int:
    """How many chunks are at work at a time."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def _keep_freed_memory() -> None:
    """Let temporaries use memory again: glibc maps those afresh that exceed the largest freed so far, up to 32 MiB."""
    torch.empty(2**25 - 2**16, dtype=torch.uint8)  # freed at once, and never touched


def run_chunks(work: Callable[[Tensor, Buffers], int], chunks: Iterable[Tensor], device: torch.device) -> Iterator[int]:
    """Yield `work(chunk, buffers)` of every chunk, in order.

    On a CPU as many chunks are at work at a time as torch has threads, each on one thread with buffers of its own. A
    GPU takes them one after the other.
    """
    threads = worker_count(device)
    _keep_freed_memory()
    if threads == 1:
        buffers = Buffers(device)
        for chunk in chunks:
            yield work(chunk, buffers)
        return
    free: SimpleQueue[Buffers] = SimpleQueue()
    for _ in range(threads):
        free.put(Buffers(device))

    @torch.no_grad()
    def work_with_free_buffers(chunk: Tensor) -> int:
        buffers = free.get()
        try:
            return work(chunk, buffers)
        finally:
            free.put(buffers)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            pending: deque[Future[int]] = deque()
            for chunk in chunks:
                pending.append(pool.submit(work_with_free_buffers, chunk))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
    finally:
        torch.set_num_threads(threads)
