"""`auto` decides from what the machine has; fp32 is untouched arithmetic."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch

from utils.distributed import process_group
from utils.precision import autocast, kernels, resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("flags\t\t: fpu amx_bf16 amx_tile\n", "bf16"),
        ("flags\t\t: fpu avx512_bf16\n", "bf16"),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512_bf16\n", "bf16"),
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512_bf16\n", "fp32"),  # half as fast as float32
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512_bf16 amx_bf16\n", "bf16"),
        ("flags\t\t: fpu avx512f avx512_vnni\n", "fp32"),
        ("flags\t\t: not_amx_bf16_at_all\n", "fp32"),
        ("model name: amx_bf16\nflags: fpu\n", "fp32"),
        (OSError("not Linux"), "fp32"),
    ],
)
def test_auto_asks_the_cpu(cpuinfo: str | OSError, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(path: Path, **options: str) -> str:
        if isinstance(cpuinfo, OSError):
            raise cpuinfo
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read_text)
    assert resolve_precision("auto", CPU) == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_asks_the_gpu(supported: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert resolve_precision("auto", torch.device("cuda")) == expected
    assert resolve_precision("fp32", torch.device("cuda")) == "fp32"


def switches() -> list[bool]:
    """Whether cuDNN measures, and whether convolutions and matrix products are TF32."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    precisions = [cudnn.conv.fp32_precision == "tf32", matmul.fp32_precision == "tf32"]  # type: ignore[attr-defined]
    assert precisions == [cudnn.allow_tf32, matmul.allow_tf32]  # the older way to ask does not raise
    return [cudnn.benchmark, *precisions]


def test_kernels_are_fast_on_gpus_alone_and_no_longer_than_asked_for() -> None:
    before = switches()
    assert before == [False, True, False]  # PyTorch's own
    with kernels(CPU, fast=True):
        assert switches() == before
    with kernels(torch.device("cuda"), fast=False):
        assert switches() == [False, False, False]
        with suppress(KeyError), kernels(torch.device("cuda"), fast=True):
            assert switches() == [True, True, True]
            raise KeyError
        assert switches() == [False, False, False]
    assert switches() == before


def test_a_script_on_a_gpu_computes_float32_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    before = switches()
    with process_group() as world:
        assert world.device.type == "cuda"
        assert switches() == [False, False, False]
    assert switches() == before


def test_autocast_computes_in_bf16_or_does_nothing() -> None:
    a, b = torch.randn(4, 5), torch.randn(5, 3)
    with autocast("fp32", CPU):
        assert torch.equal(a @ b, torch.mm(a, b))
    with autocast("bf16", CPU):
        product = a @ b
    assert product.dtype == torch.bfloat16
    assert torch.allclose(product.float(), a @ b, atol=0.1)
