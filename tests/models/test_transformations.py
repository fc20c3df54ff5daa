"""Transformations: the published sizes, and the published 1x1 convolutions as the oracle."""

from typing import Any

import pytest
import torch
from torch import nn

from models.config import TransformationArch
from models.transformations import TRANSFORMATIONS, FCTTransformation, build_transformation, transformation_arguments
from utils.errors import UserError

DIMS = {"old_embedding_dim": 6, "new_embedding_dim": 8, "side_info_dim": 10, "inner_dim": 12}
TWO, THREE = {"old": 6, "new": 8}, {"old": 6, "new": 8, "side_info": 10}  # the models' dimensions


def conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class Published(nn.Module):
    """The network of the paper's figure 3 on (N, C, 1, 1)."""

    def __init__(self, old: int, new: int, side: int, inner: int) -> None:
        super().__init__()
        self.p1 = nn.Sequential(*conv(old, 2 * old), *conv(2 * old, 2 * new))
        self.p2 = nn.Sequential(*conv(side, 2 * side), *conv(2 * side, 2 * new))
        self.mixer = nn.Sequential(*conv(4 * new, inner), *conv(inner, inner), nn.Conv2d(inner, new, 1))

    def forward(self, old: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
        return self.mixer(torch.cat([self.p1(old), self.p2(side)], dim=1))

    def copy_weights(self, model: FCTTransformation) -> None:
        """Copy layer by layer in the order of the forward pass, whatever the layers are called."""
        mine = [m for m in self.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
        other = [m for part in (model.p1, model.p2, model.mixer) for m in part.modules()]
        other = [m for m in other if isinstance(m, nn.Linear | nn.BatchNorm1d)]
        for target, source in zip(mine, other, strict=True):
            state = source.state_dict()
            if isinstance(target, nn.Conv2d):
                state["weight"] = state["weight"][:, :, None, None]
            target.load_state_dict(state)


@pytest.mark.parametrize("arch", sorted(TRANSFORMATIONS))
def test_published_parameter_counts(arch: str) -> None:
    with torch.device("meta"):
        dims = {"old": 128, "new": 128}
        model = build_transformation(**transformation_arguments(TransformationArch(arch=arch), dims))
    baselines = dict.fromkeys(("procrustes", "ridge"), 128 * 128 + 128)
    baselines["residual_mlp"] = 128 * 256 + 256 + 256 * 128 + 128
    sigma = 129 if arch in ("fastfill", "MLP_BN_SIDE_PROJECTION_SIGMA") else 0
    assert sum(parameter.numel() for parameter in model.parameters()) == baselines.get(arch, 5_712_000 + sigma)


@pytest.mark.parametrize("arch", ["fct", "fastfill"])
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_published_convolutions(arch: str, training: bool) -> None:
    torch.manual_seed(0)
    model = build_transformation(arch, **DIMS)
    published = Published(*DIMS.values())
    old, side = torch.randn(16, 6, 1, 1), torch.randn(16, 10, 1, 1)
    model(old, side)  # moves the BN statistics
    assert isinstance(model, FCTTransformation)
    published.copy_weights(model)
    model.train(training)
    published.train(training)
    expected = published(old, side)
    torch.testing.assert_close(model(old, side).embedding, expected.flatten(1))
    torch.testing.assert_close(model(old.flatten(1), side.flatten(1)).embedding, expected.flatten(1))


@pytest.mark.parametrize("new_dim", [6, 8])
def test_the_residual_mlp_adds_to_its_skip(new_dim: int) -> None:
    """The skip is the identity, or linear where the dimensions differ."""
    model = build_transformation("residual_mlp", old_embedding_dim=6, new_embedding_dim=new_dim, side_info_dim=10)
    old, side = torch.randn(4, 6), torch.randn(4, 10)
    state = model.state_dict()
    hidden = nn.functional.gelu(torch.cat([old, side], 1) @ state["residual.0.weight"].T + state["residual.0.bias"])
    skip = old if new_dim == 6 else old @ state["skip.weight"].T
    expected = skip + hidden @ state["residual.2.weight"].T + state["residual.2.bias"]
    torch.testing.assert_close(model(old, side).embedding, expected)


def test_without_side_information_the_old_embedding_stands_in() -> None:
    model = build_transformation("fct", **{**DIMS, "side_info_dim": 6}).eval()
    old = torch.randn(1, 6)
    assert torch.equal(model(old).embedding, model(old, old).embedding)


@pytest.mark.parametrize("options", [{}, {"sigma_dim": 8}])
def test_the_log_variance_is_a_linear_function_of_h_and_not_detached(options: dict[str, int]) -> None:
    model = build_transformation("fastfill", **DIMS, **options).eval()
    h, s = model(torch.randn(4, 6), torch.randn(4, 10))
    assert s is not None
    assert s.shape == (4, options.get("sigma_dim", 1))
    head = model.get_submodule("uncertainty_head")
    assert isinstance(head, nn.Linear)
    torch.testing.assert_close(s, h @ head.weight.T + head.bias)
    s.sum().backward()
    assert isinstance(model, FCTTransformation)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.mixer.parameters())


@pytest.mark.parametrize(
    ("arch", "dims", "expected"),
    [
        ({"arch": "fastfill", "inner_dim": 12, "sigma_dim": 8}, THREE, {**DIMS, "sigma_dim": 8}),
        ({"arch": "fct", "old_embedding_dim": 6}, TWO, {**DIMS, "side_info_dim": 6, "inner_dim": 2048}),
        ({"arch": "residual_mlp"}, THREE, {**DIMS, "inner_dim": 256}),
        (
            {"arch": "ridge", "inner_dim": 64},
            TWO,
            {"old_embedding_dim": 6, "new_embedding_dim": 8, "side_info_dim": 0},
        ),
    ],
)
def test_the_models_complete_the_arguments(
    arch: dict[str, Any], dims: dict[str, int], expected: dict[str, int]
) -> None:
    assert transformation_arguments(TransformationArch(**arch), dims) == {"arch": arch["arch"], **expected}


@pytest.mark.parametrize(
    ("arch", "dims", "message"),
    [
        ({"arch": "fastfil"}, TWO, r"arch: unknown 'fastfil'; did you mean fastfill\?"),
        ({"arch": "fct", "sigma_dim": 1}, TWO, "sigma_dim: fct has no uncertainty"),
        ({"arch": "fastfill", "sigma_dim": 3}, TWO, "sigma_dim: should be 1 or new_embedding_dim 8, got 3"),
        ({"arch": "fct", "old_embedding_dim": 5}, TWO, "old_embedding_dim: says 5, the old model has 6"),
        ({"arch": "fct", "new_embedding_dim": 5}, TWO, "new_embedding_dim: says 5, the new model has 8"),
        ({"arch": "fct", "side_info_dim": 5}, THREE, "side_info_dim: says 5, the side-information model has 10"),
        ({"arch": "fct", "side_info_dim": 5}, TWO, "side_info_dim: says 5, the old embedding that .* for it has 6"),
        ({"arch": "ridge", "side_info_dim": 6}, TWO, "side_info_dim: says 6, there is no side-information, which is 0"),
        ({"arch": "procrustes"}, THREE, "arch: procrustes maps the old embedding alone; leave side-information out"),
    ],
)
def test_what_arch_params_may_not_say(arch: dict[str, Any], dims: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=rf"arch_params\.{message}"):
        build_transformation(**transformation_arguments(TransformationArch(**arch), dims))
