"""Optimizers against their formulas; which parameters decay; where learning rate and length come from."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from models.backbones import build_backbone
from models.transformations import build_transformation
from trainers.config import LrPolicyParams, OptimizerParams
from trainers.optimizers import build_optimizer, build_schedule

GRADIENTS = (1.0, -0.5, 3.0)
DIMS = {"old_embedding_dim": 3, "new_embedding_dim": 4, "side_info_dim": 3, "inner_dim": 5}


@pytest.mark.parametrize("algorithm", ["sgd", "adam"])
@pytest.mark.parametrize(
    "model",
    [
        build_backbone("ResNet50", num_classes=3, embedding_dim=8, width=0.0625),
        build_transformation("fastfill", **DIMS),
    ],
    ids=["backbone", "transformation"],
)
def test_every_parameter_decays_unless_batch_norm_is_taken_out(model: nn.Module, algorithm: Any) -> None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    norms = [path for path, module in model.named_modules() if "BatchNorm" in type(module).__name__]
    for exempt in (False, True):
        params = OptimizerParams(algorithm, lr=0.1, weight_decay=0.01, no_bn_decay=exempt)
        groups = build_optimizer(model, params).param_groups
        found = [(names[p], group["weight_decay"]) for group in groups for p in group["params"]]
        assert sorted(name for name, _ in found) == sorted(names.values())
        without = {f"{path}.{kind}" for path in norms for kind in ("weight", "bias")} if exempt else set()
        assert {name for name, decay in found if decay == 0} == without


def by_formula(params: OptimizerParams) -> list[float]:
    """The values of one weight that starts at 2, with an L2 penalty of 0.01."""
    weight, values, velocity, square = 2.0, list[float](), 0.0, 0.0
    for t, gradient in enumerate(GRADIENTS, start=1):
        gradient += 0.01 * weight
        if params.algorithm == "sgd":
            velocity = 0.875 * velocity + gradient
            weight -= 0.1 * (gradient + 0.875 * velocity if params.nesterov else velocity)
        else:
            velocity, square = 0.9 * velocity + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
            weight -= 0.1 * (velocity / (1 - 0.9**t)) / (math.sqrt(square / (1 - 0.999**t)) + 1e-8)
        values.append(weight)
    return values


@pytest.mark.parametrize(("algorithm", "nesterov"), [("sgd", False), ("sgd", True), ("adam", False)])
def test_steps_are_those_of_the_formula(algorithm: Any, nesterov: bool) -> None:
    params = OptimizerParams(algorithm, lr=0.1, weight_decay=0.01, momentum=0.875, nesterov=nesterov)
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    optimizer = build_optimizer(model, params)
    for gradient, expected in zip(GRADIENTS, by_formula(params), strict=True):
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        assert model.weight.item() == pytest.approx(expected, rel=1e-5)


def test_the_schedule_takes_rate_and_length_from_the_run_unless_it_has_its_own() -> None:
    def rate(epoch: int, **policy: Any) -> float:
        params = LrPolicyParams(**{"warmup_length": 0, **policy})
        return build_schedule(params, OptimizerParams("sgd", lr=2.0), epochs=10)(epoch)

    assert [rate(0), rate(5)] == pytest.approx([2.0, 1.0])
    assert [rate(epoch, epochs=20, lr=4.0) for epoch in (0, 10)] == pytest.approx([4.0, 2.0])
    assert rate(0, lr=0.0) == 0.0
    assert rate(9, algorithm="constant_lr", warmup_length=2) == 2.0
