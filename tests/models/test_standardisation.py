"""A transformation in another form computes the same: of embeddings at another scale, and folded for inference."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from models.folding import folded
from models.model_files import describe_transformation, load_model, save_model
from models.standardisation import Standardisation, mean_and_scale
from models.transformations import build_transformation
from models.transformed import Transformation
from utils.precision import Resolved

DIMS = {"old_embedding_dim": 6, "new_embedding_dim": 8, "side_info_dim": 4, "inner_dim": 32}
GENERATOR = torch.Generator().manual_seed(0)
OLD, SIDE = torch.randn(50, 6, generator=GENERATOR), torch.randn(50, 4, generator=GENERATOR)
PLACES = {"old": (100.0, 1.0), "side_info": (-3e-4, 1e-4), "new": (100.0, 1e4)}  # role -> offset, scale


def placed(embeddings: torch.Tensor, role: str) -> torch.Tensor:
    offset, scale = PLACES[role]
    return (embeddings.double() * scale + offset).float()


PLACED = placed(OLD, "old"), placed(SIDE, "side_info")


def both(arch: str, **options: int) -> tuple[Transformation, Transformation]:
    """A transformation of embeddings of zero mean and unit scale, and the same one of embeddings elsewhere."""
    torch.manual_seed(0)
    plain, elsewhere = (build_transformation(arch, **DIMS, standardised=there, **options) for there in (False, True))
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm1d):
            for name, low, high in (("running_mean", -0.5, 0.5), ("running_var", 0.5, 2.0), ("weight", 0.5, 2.0)):
                nn.init.uniform_(getattr(module, name), low, high)
    elsewhere.load_state_dict(plain.state_dict(), strict=False)
    assert elsewhere.standards is not None
    for role, (offset, scale) in PLACES.items():
        standard = cast(Standardisation, elsewhere.standards[role])
        standard.mean.fill_(offset)
        standard.scale.fill_(scale)
    return plain.eval(), elsewhere.eval()


@torch.no_grad()
@pytest.mark.parametrize("arch", ["fct", "fastfill", "residual_mlp"])
def test_it_gives_what_it_would_of_standardised_embeddings(arch: str) -> None:
    plain, elsewhere = both(arch)
    expected, found = plain(OLD, SIDE), elsewhere(*PLACED)
    torch.testing.assert_close(found.embedding, placed(expected.embedding, "new"), rtol=1e-4, atol=1e-1)
    if arch == "fastfill":
        torch.testing.assert_close(found.log_variance, expected.log_variance, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 3e-2)])
@pytest.mark.parametrize(("arch", "options"), [("fct", {}), ("fastfill", {}), ("fastfill", {"sigma_dim": 8})])
def test_the_folded_form_gives_the_same(
    arch: str, options: dict[str, int], precision: Resolved, tolerance: float
) -> None:
    """Elsewhere too: +100 leaves bfloat16 steps of 0.5, so what is subtracted has to be in float32."""
    plain, elsewhere = both(arch, **options)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    offset, scale = PLACES["new"]
    expected, found = plain(OLD, SIDE), folded(elsewhere, precision)(*PLACED)
    found = found._replace(embedding=((found.embedding.double() - offset) / scale).float())
    for outputs in (folded(plain, precision)(OLD, SIDE), found):
        for fast, right in zip(outputs, expected, strict=True):
            assert (fast is None) == (right is None)
            if right is not None:
                assert fast.dtype == torch.float32
                assert (fast - right).norm() <= tolerance * right.norm()
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_nothing_but_the_outputs_of_a_folded_form_stays_in_single_precision() -> None:
    model = folded(both("fastfill")[0], "bf16")
    single = {name.rpartition(".")[0] for name, value in model.named_parameters() if value.dtype == torch.float32}
    assert single == {"mixer.2.linear", "uncertainty_head.linear"}
    assert not any(isinstance(module, nn.BatchNorm1d) for module in model.modules())


@torch.no_grad()
def test_a_file_holds_means_and_scales_and_one_without_them_loads_as_ever(tmp_path: Path) -> None:
    for model, options in zip(both("fastfill"), ({}, {"standardised": True}), strict=True):
        arguments: dict[str, Any] = {"arch": "fastfill", **DIMS, **options}
        save_model(tmp_path / "h.pt", describe_transformation(model, arguments), config={}, seed=0)
        for found, expected in zip(load_model(tmp_path / "h.pt")(*PLACED), model(*PLACED), strict=True):
            assert torch.equal(found, expected)


def test_mean_and_scale() -> None:
    rows = torch.randn(200, 5, dtype=torch.float64, generator=GENERATOR) * torch.tensor([1.0, 2.0, 3.0, 0.0, 1.0]) + 7
    mean, scale = mean_and_scale(rows)
    standardised = (rows - mean.double()) / scale
    assert standardised.mean(0).abs().max() < 1e-6
    assert float(standardised.square().mean()) == pytest.approx(1, rel=1e-5)
    assert mean_and_scale(torch.full((100, 3), 0.1))[1] == 0
    assert mean_and_scale(torch.zeros(100, 3))[1] == 0
    assert mean_and_scale(1e-6 * rows)[1] == pytest.approx(1e-6 * scale, rel=1e-5)
