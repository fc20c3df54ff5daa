"""Arithmetic of the forward pass: bf16 autocast where the machine computes it fast, float32 otherwise."""

from pathlib import Path
from typing import Literal

import torch

Resolved = Literal["bf16", "fp32"]
# CPU features that compute bf16 matrix products in hardware; elsewhere bf16 is emulated and slower than float32.
FAST_BF16_FLAGS = {"amx_bf16", "avx512_bf16"}


def resolve_precision(choice: Literal["auto", "bf16", "fp32"], device: torch.device) -> Resolved:
    """The precision to compute in. `auto` asks what the device has, so it is the same on every run on a machine."""
    if choice != "auto":
        return choice
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_fast_bf16()
    return "bf16" if fast else "fp32"


def _cpu_has_fast_bf16() -> bool:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False  # not Linux: float32 is never wrong
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not FAST_BF16_FLAGS.isdisjoint(flags.split())


def tune_kernels(device: torch.device) -> None:
    """On a GPU: let cuDNN choose the fastest convolutions, and compute what stays float32 in TF32 (training only)."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_tf32 = True


def autocast(precision: Resolved, device: torch.device) -> torch.autocast:
    """A context for the forward pass; with fp32 it does nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
