"""`auto` decides from what the machine has; fp32 is untouched arithmetic."""

from pathlib import Path
from typing import Any

import pytest
import torch

from utils.precision import autocast, resolve_precision, tune_kernels

CPU = torch.device("cpu")


@pytest.mark.parametrize("choice", ["bf16", "fp32"])
def test_a_choice_is_taken(choice: Any) -> None:
    assert resolve_precision(choice, CPU) == choice
    assert resolve_precision(choice, torch.device("cuda")) == choice


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("flags\t\t: fpu amx_bf16 amx_tile\n", "bf16"),
        ("flags\t\t: fpu avx512_bf16\n", "bf16"),
        ("flags\t\t: fpu avx512f avx512_vnni\n", "fp32"),
        ("flags\t\t: not_amx_bf16_at_all\n", "fp32"),
        ("model name: amx_bf16\nflags: fpu\n", "fp32"),
        ("Features: bf16 asimd\n", "fp32"),
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


def test_kernels_are_tuned_on_gpus_alone() -> None:
    def switches() -> list[bool]:
        return [torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32]

    before = switches()
    tune_kernels(CPU)
    assert switches() == before == [False, False]
    try:
        tune_kernels(torch.device("cuda"))
        assert switches() == [True, True]
    finally:
        torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = False


def test_autocast_computes_in_bf16_or_does_nothing() -> None:
    a, b = torch.randn(4, 5), torch.randn(5, 3)
    with autocast("fp32", CPU):
        assert torch.equal(a @ b, torch.mm(a, b))
        assert (a @ b).dtype == torch.float32
    with autocast("bf16", CPU):
        product = a @ b
    assert product.dtype == torch.bfloat16
    assert torch.allclose(product.float(), a @ b, atol=0.1)
