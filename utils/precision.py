"""Arithmetic: bf16 autocast where the machine computes it fast, float32 otherwise, and what float32 means on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from utils.choices import Precision
from utils.provenance import cpu_field

Resolved = Literal["bf16", "fp32"]
# CPU features that compute bf16 matrix products in hardware; elsewhere bf16 is emulated.
BF16_FLAGS = {"amx_bf16", "avx512_bf16"}


def resolve_precision(choice: Precision, device: torch.device) -> Resolved:
    """The precision to compute in. `auto` asks what the device has, so it is the same on every run on a machine."""
    if choice != "auto":
        return choice
    return "bf16" if gains_by_bf16(device) else "fp32"


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has bf16 products in hardware. A CPU that has not makes float32 copies of their factors."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return not BF16_FLAGS.isdisjoint(cpu_field("flags").split())  # where it says nothing, float32 is never wrong


def gains_by_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 faster than float32.

    Intel's processors do with AMX alone, which virtual machines may hide: without it an Emerald Rapids multiplies bf16
    half as fast as float32. AMD's gain by AVX512-BF16.
    """
    if device.type == "cuda" or not computes_bf16(device):
        return computes_bf16(device)
    return "amx_bf16" in cpu_field("flags").split() or cpu_field("vendor_id") != "GenuineIntel"


@contextmanager
def kernels(device: torch.device, *, fast: bool) -> Iterator[None]:
    """On a GPU, for as long as it lasts: what the kernels for float32 do.

    Args:
        fast: cuDNN measures which convolutions are the fastest, and products are TF32, which keeps 10 bits of each
            factor's mantissa: for training steps. Else all 23 bits: for figures, orders, clusters, closed forms.
    """
    if device.type != "cuda":
        yield
        return
    before = _switches()
    _set_switches(fast, fast, fast)
    try:
        yield
    finally:
        _set_switches(*before)


# PyTorch's older switches: what `fp32_precision`, the newer way, sets cannot be read by them, and torch.compile does.
def _switches() -> tuple[bool, bool, bool]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32


def _set_switches(benchmark: bool, tf32_convolutions: bool, tf32_products: bool) -> None:
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.allow_tf32 = tf32_convolutions
    torch.backends.cuda.matmul.allow_tf32 = tf32_products


def autocast(precision: Resolved, device: torch.device) -> torch.autocast:
    """A context for the forward pass; with fp32 it does nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
