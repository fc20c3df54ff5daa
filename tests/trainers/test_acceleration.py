"""`auto` compiles where it pays; what is compiled keeps the names and the arithmetic of the model."""

import shutil

import pytest
import torch
from torch import nn

from trainers.acceleration import COMPILE_PAYS_AFTER, maybe_compiled
from trainers.config import Compile
from utils.distributed import World

GPU = World(device=torch.device("cuda"))


@pytest.mark.parametrize(
    ("choice", "world", "steps", "compiler", "compiled"),
    [
        ("off", GPU, 10**6, True, False),
        ("on", World(), 1, False, True),
        ("auto", World(), 10**6, True, False),
        ("auto", GPU, COMPILE_PAYS_AFTER, True, True),
        ("auto", GPU, COMPILE_PAYS_AFTER - 1, True, False),
        ("auto", GPU, COMPILE_PAYS_AFTER, False, False),
    ],
)
def test_auto_compiles_long_runs_on_a_gpu(
    choice: Compile, world: World, steps: int, compiler: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name if compiler else None)
    model = nn.Linear(2, 2)
    assert (maybe_compiled(model, choice, world, steps=steps) is not model) == compiled


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_is_the_model() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    compiled, batch = maybe_compiled(model, "on", World(), steps=1), torch.randn(8, 3)
    compiled.train(False)
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(compiled(batch), model(batch))
    compiled(batch).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
