"""Optimizers against their formulas; which parameters decay; where learning rate and length come from."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from models.resnet import build_backbone
from models.transformations import build_transformation
from trainers.config import LrPolicyParams, OptimizerParams
from trainers.optimizers import build_optimizer, build_schedule


def exempt_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    exempt = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in exempt}


@pytest.mark.parametrize("algorithm", ["sgd", "adam"])
def test_every_parameter_decays_unless_batch_norm_is_taken_out(algorithm: Any) -> None:
    model = build_backbone("ResNet50", num_classes=3, embedding_dim=8, width=0.0625)
    every = build_optimizer(model, OptimizerParams(algorithm, lr=0.1, weight_decay=0.01))
    assert exempt_names(model, every) == set()
    some = build_optimizer(model, OptimizerParams(algorithm, lr=0.1, weight_decay=0.01, no_bn_decay=True))
    exempt = exempt_names(model, some)
    assert exempt == {name for name, parameter in model.named_parameters() if parameter.ndim == 1}
    assert {"bn1.weight", "layer1.0.downsample.1.bias", "layer4.2.downsample.1.weight"} <= exempt
    for optimizer in (every, some):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        assert len(parameters) == len(set(parameters)) == len(list(model.parameters()))


def test_the_bias_of_a_linear_layer_decays() -> None:
    dims = {"old_embedding_dim": 3, "new_embedding_dim": 4, "side_info_dim": 3, "inner_dim": 5}
    model = build_transformation("fastfill", **dims)
    params = OptimizerParams("adam", lr=0.1, weight_decay=0.01, no_bn_decay=True)
    exempt = exempt_names(model, build_optimizer(model, params))
    assert "p1.0.1.weight" in exempt
    assert not {"mixer.2.bias", "uncertainty_head.bias", "p1.0.0.weight"} & exempt


def steps(params: OptimizerParams, gradients: list[float]) -> list[float]:
    """The values of one weight that starts at 2.0."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    optimizer, values = build_optimizer(model, params), []
    for gradient in gradients:
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        values.append(model.weight.item())
    return values


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_its_formula(nesterov: bool) -> None:
    params = OptimizerParams("sgd", lr=0.1, weight_decay=0.01, momentum=0.875, nesterov=nesterov)
    weight, velocity, expected = 2.0, 0.0, []
    for gradient in (1.0, -0.5, 3.0):
        gradient += 0.01 * weight
        velocity = 0.875 * velocity + gradient
        weight -= 0.1 * (gradient + 0.875 * velocity if nesterov else velocity)
        expected.append(weight)
    assert steps(params, [1.0, -0.5, 3.0]) == pytest.approx(expected, rel=1e-5)


def test_adam_is_its_formula_with_its_own_l2() -> None:
    weight, m, v, expected = 2.0, 0.0, 0.0, []
    for t, gradient in enumerate((1.0, -0.5, 3.0), start=1):
        gradient += 0.01 * weight
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        weight -= 0.1 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        expected.append(weight)
    assert steps(OptimizerParams("adam", lr=0.1, weight_decay=0.01), [1.0, -0.5, 3.0]) == pytest.approx(
        expected, rel=1e-5
    )


def test_the_schedule_takes_rate_and_length_from_the_run_unless_it_has_its_own() -> None:
    optimizer = OptimizerParams("sgd", lr=2.0)
    of_the_run = build_schedule(LrPolicyParams(warmup_length=0), optimizer, epochs=10)
    assert of_the_run(0) == 2.0
    assert of_the_run(5) == pytest.approx(1.0)
    own = build_schedule(LrPolicyParams(warmup_length=0, epochs=20, lr=4.0), optimizer, epochs=10)
    assert own(0) == 4.0
    assert own(10) == pytest.approx(2.0)
    assert build_schedule(LrPolicyParams("constant_lr", warmup_length=2), optimizer, epochs=10)(9) == 2.0
    assert build_schedule(LrPolicyParams(warmup_length=0, lr=0.0), optimizer, epochs=10)(0) == 0.0
