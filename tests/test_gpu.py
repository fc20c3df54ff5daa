"""On a GPU: what it computes is what the CPU computes. The same checks as benchmarks/gpu.py begins with."""

import pytest
import torch

from benchmarks.on_gpu.correctness import CHECKS, ITEMS, collectives_error, difference, product_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
GPU = torch.device("cuda")


@pytest.mark.parametrize("name", CHECKS)
def test_it_computes_what_the_cpu_computes(name: str) -> None:
    assert difference(name, GPU, ITEMS) <= CHECKS[name].tolerance


def test_float32_is_float32_but_in_training_steps() -> None:
    assert product_error(GPU, fast=False) < 1e-6 < 1e-5 < product_error(GPU, fast=True) < 1e-3


def test_one_process_joins_a_group_by_nccl() -> None:
    assert collectives_error(GPU) <= 1e-6
