"""Free memory: the least of what the machine has left and what the containers about a process leave it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import ENVIRONMENT, REPOSITORY
from utils.memory import MALLOC, free_bytes, free_on_machine

KIB, GIB = 2**10, 2**30


def machine(folder: Path, cgroup: str, files: dict[str, str]) -> int | None:
    """What is free on a machine with 8 GiB left, whose process is in `cgroup`, with these files of control groups."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "meminfo").write_text(
        f"MemTotal: 99999999 kB\nMemFree: 1 kB\nMemAvailable: {8 * GIB // KIB} kB\n"
    )
    (folder / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return free_on_machine(folder / "proc", folder / "cgroup")


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("", {}, 8 * GIB),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "5\n"}, 8 * GIB),
        ("0::/\n", {"memory.max": f"{3 * GIB}\n", "memory.current": f"{GIB}\n"}, 2 * GIB),
        (
            "0::/\n",
            {
                "memory.max": f"{3 * GIB}\n",
                "memory.current": f"{2 * GIB}\n",
                "memory.stat": f"anon 7\nfile 9\ninactive_file {GIB}\n",
            },
            2 * GIB,
        ),
        # The limit is that of the slice about the service; the container's own folder is not there.
        ("0::/slice/service\n", {"slice/memory.max": f"{GIB}\n", "slice/memory.current": "0\n"}, GIB),
        ("0::/gone\n", {"memory.max": f"{GIB}\n", "memory.current": f"{2 * GIB}\n"}, 0),
        (
            "5:cpu:/a\n4:memory:/docker/b\n0::/\n",
            {
                "memory/memory.limit_in_bytes": f"{4 * GIB}\n",
                "memory/memory.usage_in_bytes": f"{2 * GIB}\n",
                "memory/memory.stat": f"total_inactive_file {GIB}\n",
            },
            3 * GIB,
        ),
    ],
)
def test_the_least_of_machine_and_containers(tmp_path: Path, cgroup: str, files: dict[str, str], expected: int) -> None:
    assert machine(tmp_path, cgroup, files) == expected


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert free_on_machine(tmp_path, tmp_path) is None


def test_processes_share_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr("utils.memory.free_on_machine", lambda: 12 * GIB)
    assert free_bytes(cpu) == 12 * GIB
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert free_bytes(cpu) == 2 * GIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")  # the others are on another machine
    assert free_bytes(cpu) == 4 * GIB
    monkeypatch.setattr("utils.memory.free_on_machine", lambda: None)
    assert free_bytes(cpu) is None


def test_what_a_gpu_has_free_includes_what_torch_holds_for_use_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 4 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GIB)
    assert free_bytes(torch.device("cuda")) == 8 * GIB


FRESH_PAGES = """
import resource, sys
from pathlib import Path
import torch
from utils.memory import free_bytes, keep_freed_memory

def resident():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 2**10

if sys.argv[1] == "kept":
    keep_freed_memory()

def take():
    tensors = [torch.ones(2**22) for _ in range(20)]  # of 16 MiB

for _ in range(3):  # what is small may take a piece of what is kept
    take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
before = resident()
free_bytes(torch.device("cpu"))
print(before - resident())
"""


def run_on_fresh_pages(way: str) -> tuple[int, float]:
    """The pages that a process takes for tensors as large as those before them, and the MiB that it then gives back."""
    command = [sys.executable, "-c", FRESH_PAGES, way]
    environment = os.environ | ENVIRONMENT | {"MALLOC_MMAP_THRESHOLD_": "131072"}  # else glibc adapts it as it goes
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    pages, mebibytes = done.stdout.split()
    return int(pages), float(mebibytes)


@pytest.mark.skipif(MALLOC is None or sys.platform != "linux", reason="another C library")
def test_freed_memory_is_kept_until_free_memory_is_asked_for() -> None:
    pages, given_back = run_on_fresh_pages("as it is")
    pages_if_kept, given_back_if_kept = run_on_fresh_pages("kept")
    assert pages_if_kept < pages / 10
    assert given_back < 10
    assert 300 < given_back_if_kept < 500
