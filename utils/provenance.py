"""Where a figure comes from: the machine, the versions and the git revision."""

import datetime
import os
import platform
import subprocess
import tomllib
from pathlib import Path

import torch


def git_revision() -> str | None:
    """The commit that is checked out here, or None outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def tool_versions() -> dict[str, str | None]:
    """What wrote a file: the version and git revision of this code, and the version of torch."""
    with (Path(__file__).parent.parent / "pyproject.toml").open("rb") as file:
        version: str = tomllib.load(file)["project"]["version"]
    return {"version": version, "git_revision": git_revision(), "torch": str(torch.__version__)}


def timestamp() -> str:
    """The time now, in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def environment() -> dict[str, str | int]:
    """This machine as plain values: Python, torch, the device that stages run on, the CPU and its usable cores."""
    cpu = cpu_name()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    device = f"{len(gpus)} x {gpus[0]}" if gpus else cpu
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    }


def cpu_name() -> str:
    """The model of the processor, or its kind where nothing says more."""
    return cpu_field("model name") or platform.processor() or platform.machine()


def cpu_field(name: str) -> str:
    """What Linux says of the first processor: its "flags" or "model name", say; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in fields if key.strip() == name), "")
