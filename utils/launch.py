"""A script that starts itself once for each GPU, by the engine of torchrun, and ends as those processes do."""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Sequence

from utils.choices import Processes
from utils.errors import UserError
from utils.preemption import PREEMPTED

HOST = "127.0.0.1"
LAUNCHER = "REFILL_LAUNCHER"  # environment variable of the processes: the id of the one that has started them
POLL_SECONDS = 0.1
GRACE_SECONDS = 120  # for processes that are told to end: they finish a step and write a checkpoint
TELLING = (2, PREEMPTED, 130)  # exit codes of processes that say why they end
PR_SET_PDEATHSIG = 1  # of Linux, <sys/prctl.h>


def launch(processes: Processes) -> None:
    """Run this script, as it was called, in so many processes, and end with their exit code.

    In those processes it returns at once, as where there is to be one alone, and under torchrun or Slurm, whose number
    counts. A signal to this process goes to all of them, which end as they do by themselves; after it, Ctrl-C kills.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    if "WORLD_SIZE" in os.environ or "RANK" in os.environ:
        if LAUNCHER in os.environ:
            end_with_parent(int(os.environ[LAUNCHER]))
        return
    if processes == 1:
        return

    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    count = max(gpus, 1) if processes == "auto" else processes
    if gpus and count > gpus:
        raise UserError(f"processes: is {count}, and each has a GPU of its own, but {gpus} are visible; lower it")
    if count > 1:
        sys.exit(run_processes(count))


def run_processes(count: int) -> int:
    """Run this script in `count` processes to its end -> the exit code."""
    from torch.distributed import TCPStore
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, start_processes

    # What it logs at an end is said by the processes themselves.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)  # where they meet: a port that is free
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    place = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there: the process of rank 0 makes none
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count))),
        LAUNCHER: str(os.getpid()),
    }
    ranks = range(count)
    processes = start_processes(
        name=sys.argv[0],
        entrypoint=sys.executable,
        args={rank: tuple(sys.argv) for rank in ranks},
        envs={rank: {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in ranks},
        logs_specs=DefaultLogsSpecs(os.devnull),
    )
    told = False
    try:
        ended = processes.wait(period=POLL_SECONDS)
    except SignalException as order:
        told = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one more finds them on their way out
        try:
            processes.close(order.sigval, GRACE_SECONDS)
        except SignalException:  # Ctrl-C, again
            processes.close(signal.SIGKILL)
        ended = processes.wait(0)
    return 1 if ended is None else exit_code([one.exitcode for one in ended.failures.values()], told=told)


def exit_code(failures: Sequence[int], *, told: bool) -> int:
    """The exit code of a run, of the codes other than 0 that its processes ended with (-N: by the signal N).

    That of a process that knows why comes before the 1 of those that miss it.

    Args:
        told: the run was told to end. Else a process that ended as one that was told was so because of another.

    >>> [exit_code(codes, told=False) for codes in ([], [1, 2, -15], [1, 75], [-9, 75], [-15, 75])]
    [0, 2, 1, 137, 75]
    >>> exit_code([1, 75], told=True), exit_code([-15, -15], told=True)
    (75, 143)
    """
    causes = failures if told else [code for code in failures if code not in (PREEMPTED, -signal.SIGTERM)] or failures
    if not causes:
        return 0
    for code in (*TELLING, *(code for code in causes if code > 0)):
        if code in causes:
            return code
    return 128 - max(causes)  # of -9 and -15, say, that which was not for the sake of another


def end_with_parent(parent: int | None = None) -> None:
    """Have this process be terminated when its parent dies, even by SIGKILL: what goes on would run it twice.

    Args:
        parent: its id, where that may have died already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if parent is not None and os.getppid() != parent:
            sys.exit(128 + signal.SIGTERM)
