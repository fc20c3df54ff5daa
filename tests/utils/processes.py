"""Runs a function in several processes that form one group, as torchrun would start them."""

import os
import socket
from collections.abc import Callable

import torch
from torch import multiprocessing

from utils.distributed import World, process_group


def run_processes(function: Callable[..., None], size: int, *arguments: object) -> None:
    """Call `function(world, *arguments)` in `size` gloo processes; a failure of one of them is raised here."""
    multiprocessing.spawn(_join, (size, free_port(), function, arguments), nprocs=size)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _join(rank: int, size: int, port: int, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        CUDA_VISIBLE_DEVICES="",  # gloo, on any machine
    )
    with process_group() as world:
        assert world == World(rank, size)
        function(world, *arguments)
