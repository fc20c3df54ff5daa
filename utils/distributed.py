"""One code path for one process and for N: with one, every collective returns its input."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.errors import UserError


@dataclass(frozen=True)
class World:
    """The processes of this run, as one of them sees them."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """True on the one process that prints and writes."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's contiguous part of `count` items; the parts cover all items and differ by at most one."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Concatenate every process's `rows` (n_r, ...) in rank order -> (sum of n_r, ...). The n_r may differ."""
        if self.size == 1:
            return rows
        counts = torch.zeros(self.size, dtype=torch.int64, device=rows.device)
        counts[self.rank] = len(rows)
        self.sum(counts)
        longest = int(counts.max())
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def local_batch(self, global_batch: int) -> int:
        """The share of a global batch that one process works on.

        Raises:
            UserError: the number of processes does not divide the batch.
        """
        if global_batch % self.size:
            raise UserError(
                f"dataset_params.batch_size: {global_batch} is the batch over all processes "
                f"and cannot be divided by {self.size} processes"
            )
        return global_batch // self.size


@contextmanager
def process_group() -> Iterator[World]:
    """Join the processes that torchrun started (nccl on GPUs, gloo on CPUs), or be the only one."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size == 1:
        yield World(device=device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=1))
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()
