"""One code path for one process and for N: with one, every collective returns its input."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from utils.choices import Precision
from utils.errors import UserError
from utils.precision import kernels, resolve_precision
from utils.provenance import cpu_name


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

    def announce(self, choice: Precision) -> None:
        """Say, on the main process, what the run is on, and the precision that `choice` comes to there."""
        if self.is_main:
            processes = "1 process" if self.size == 1 else f"{self.size} processes"
            devices = cpu_name() if self.device.type == "cpu" else f"{self.size} x {torch.cuda.get_device_name()}"
            print(f"on {devices}, {processes}, {resolve_precision(choice, self.device)}", flush=True)

    def share(self, count: int) -> slice:
        """This process's contiguous part of `count` items; the parts cover all items and differ by at most one."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any process. It goes between the hosts, so no process waits for its device."""
        return bool(self.sum(torch.tensor(int(flag)))) if self.size > 1 else flag

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Concatenate every process's `rows` (n_r, ...) in rank order -> (sum of n_r, ...). The n_r may differ.

        Gradients flow back: a process's rows get the sum of what all processes find for them.
        """
        return rows if self.size == 1 else _GatherRows.apply(rows, self)

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the main process's buffers, in place: batch statistics, of which each has its own."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def local_batch(self, global_batch: int, key: str = "dataset_params.batch_size") -> int:
        """The share of a global batch, which `key` of the config sets, that one process works on.

        Raises:
            UserError: the number of processes does not divide the batch.
        """
        if global_batch % self.size:
            raise UserError(
                f"{key}: {global_batch} is the batch over all processes and cannot be divided by {self.size} processes"
                "\n(processes=N chooses how many there are)"
            )
        return global_batch // self.size


class LaterAny:
    """`World.any` for a question that is asked at every step: no process waits for the others' answers.

    On several processes a call gives the answer to the question before, which had a step's time to come in, so that all
    of them hear it at the same call, one late. On one process it is the flag itself.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._asked: tuple[torch.Tensor, dist.Work] | None = None

    def __call__(self, flag: bool) -> bool:
        """Whether any process's flag was true when it was asked before; once that is so, nothing more is asked."""
        if self.world.size == 1:
            return flag
        if self._asked is not None:
            raised, work = self._asked
            work.wait()
            if raised:
                return True
        raised = torch.tensor(int(flag))  # goes between the hosts, as in `World.any`
        work = dist.all_reduce(raised, async_op=True)
        assert work is not None
        self._asked = raised, work
        return False


class _GatherRows(torch.autograd.Function):
    """`World.gather_rows` on several processes."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, world: World) -> torch.Tensor:
        counts = torch.zeros(world.size, dtype=torch.int64, device=rows.device)
        counts[world.rank] = len(rows)
        sizes = world.sum(counts).tolist()
        ctx.world, ctx.sizes = world, sizes
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return ctx.world.sum(gradient.contiguous().clone()).split(ctx.sizes)[ctx.world.rank], None


@contextmanager
def process_group() -> Iterator[World]:
    """Join the processes that torchrun or Slurm started (nccl on GPUs, gloo on CPUs), or be the only one.

    Within it float32 is float32 on a GPU too, but where `kernels` says otherwise.
    Where one process ends early, a launcher ends the others: torchrun, or srun with --wait.

    Raises:
        UserError: the environment variables by which a launcher tells each process its place do not fit together.
    """
    size, local_rank = _place_in_environment()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        # Where a launcher shows each process its own GPU alone, that is number 0 whatever the rank.
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if size == 1:
        with kernels(device, fast=False):
            yield World(device=device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"  # tensors on a GPU host go by gloo
    dist.init_process_group(backend, timeout=timedelta(hours=1))
    try:
        with kernels(device, fast=False):
            yield World(dist.get_rank(), size, device)
        dist.barrier()  # the main process may be writing its results, and others may still fail
    except BaseException:
        if device.type == "cpu":  # gloo's threads would abort the process at its end; nccl would wait for the others
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _place_in_environment() -> tuple[int, int]:
    """The number of processes, and this one's among those of its machine; the rest is checked, and read by torch."""
    size, rank, local_rank = _number("WORLD_SIZE", "1"), _number("RANK", "0"), _number("LOCAL_RANK", "0")
    if rank >= size:
        raise UserError(f"RANK: is {rank}, but WORLD_SIZE {size}; unset both to run one process, or use torchrun")
    if size > 1:
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            if not os.environ.get(name):
                raise UserError(f"{name}: is not set, but WORLD_SIZE is {size}; unset that too, or use torchrun")
        _number("MASTER_PORT", "")
    return size, local_rank


def _number(name: str, default: str) -> int:
    text = os.environ.get(name, default).strip()
    if not text.isdecimal() or (name == "WORLD_SIZE" and int(text) < 1):
        raise UserError(f"{name}: the environment variable should be a whole number, got {text!r}; unset it or mend it")
    return int(text)
