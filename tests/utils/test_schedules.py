"""Schedules against PyTorch's, and at their ends."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from utils.schedules import constant, warmup_cosine


@pytest.mark.parametrize(("epochs", "warmup"), [(100, 5), (80, 5), (7, 0), (1, 0)])
def test_warm_up_then_the_cosine_of_pytorch(epochs: int, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.024)
    cosine = CosineAnnealingLR(optimizer, epochs - warmup)
    expected = [1.024 * (epoch + 1) / warmup for epoch in range(warmup)]
    for _ in range(epochs - warmup):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    rates = [warmup_cosine(epoch, lr=1.024, epochs=epochs, warmup_length=warmup) for epoch in range(epochs)]
    assert rates == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("epochs", [3, 1])
def test_a_warm_up_may_take_the_whole_training(epochs: int) -> None:
    assert warmup_cosine(epochs - 1, lr=1.0, epochs=epochs, warmup_length=4) == epochs / 4


def test_constant_stays_at_the_peak_after_the_warm_up() -> None:
    rates = [constant(e, lr=2.0, epochs=6, warmup_length=4) for e in range(6)]
    assert rates == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert constant(0, lr=2.0, epochs=6, warmup_length=0) == 2.0
