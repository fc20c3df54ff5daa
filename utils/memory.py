"""How much memory is free, on a GPU or on the machine and in the container of a process, and what is kept of it."""

import ctypes
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Of a control group, in Linux's versions 2 and 1 of them: what it may take, what it has taken, and how much of that
# are copies of files that the system drops when memory is asked for.
LIMIT, USAGE = ("memory.max", "memory.limit_in_bytes"), ("memory.current", "memory.usage_in_bytes")
DROPPABLE = ("inactive_file", "total_inactive_file")
MALLOC = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
MOST_KEPT = 2**25  # bytes: no larger block can be kept


def keep_freed_memory() -> None:
    """Have this process keep the memory of its tensors on a CPU, of up to MOST_KEPT each, for the next ones.

    glibc's malloc gives what lies free at its end back to the system, which then has to clear other pages: up to a
    tenth of a training step, a sixth of embedding images of 224 px. Other C libraries stay as they are.
    """
    if MALLOC is not None:
        MALLOC.mallopt(MMAP_THRESHOLD, MOST_KEPT)
        MALLOC.mallopt(TRIM_THRESHOLD, -1)


def free_bytes(device: torch.device) -> int | None:
    """The bytes that this process can still take on `device`; None where the system does not say (it is not Linux).

    On a CPU that is an equal share, where several processes of a run are on one machine. What `keep_freed_memory` had
    this process keep is given back for it.
    """
    if device.type == "cuda":
        return free_on_gpu(device)
    if MALLOC is not None:
        MALLOC.malloc_trim(0)
    here = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE", "1")
    free_here = free_on_machine()
    return None if free_here is None else free_here // int(here)


def free_on_gpu(device: torch.device) -> int:
    """The bytes that a GPU has free, those included that torch holds for use again."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_on_machine(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """The bytes that a process can take before this machine, or a container around it, is out of memory.

    Args:
        proc, cgroups: where Linux tells.
    """
    available = _entry(proc / "meminfo", "MemAvailable:")
    if available is None:
        return None
    return max(0, min([available * 1024, *_free_in_groups(proc, cgroups)]))


def _free_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What is left in each control group about this process."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            limit, usage = (_text(folder / names[bool(controllers)]).strip() for names in (LIMIT, USAGE))
            if limit.isdigit() and usage.isdigit():
                droppable = _entry(folder / "memory.stat", DROPPABLE[bool(controllers)]) or 0
                yield int(limit) - int(usage) + droppable
            if folder == root:
                break


def _entry(path: Path, name: str) -> int | None:
    """The number behind `name` in a file with one on each line."""
    for line in _text(path).splitlines():
        key, *rest = line.split()
        if key == name:
            return int(rest[0])
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
