"""The folded form of a transformation computes what the plain one does; see also test_standardisation.py."""

import pytest
import torch
from torch import nn

from models.folding import folded
from models.transformations import build_transformation
from models.transformed import Transformation
from utils.precision import Resolved


def randomised(arch: str, **options: int) -> Transformation:
    torch.manual_seed(0)
    dims = {"old_embedding_dim": 6, "new_embedding_dim": 8, "side_info_dim": 4, "inner_dim": 32}
    model = build_transformation(arch, **dims, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            for name, low, high in (("running_mean", -0.5, 0.5), ("running_var", 0.5, 2.0), ("weight", 0.5, 2.0)):
                nn.init.uniform_(getattr(module, name), low, high)
    return model.eval()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 3e-2)])
@pytest.mark.parametrize(("arch", "options"), [("fct", {}), ("fastfill", {}), ("fastfill", {"sigma_dim": 8})])
def test_the_folded_form_gives_the_same(
    arch: str, options: dict[str, int], precision: Resolved, tolerance: float
) -> None:
    model = randomised(arch, **options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    old, side = torch.randn(50, 6), torch.randn(50, 4)
    with torch.no_grad():
        expected, found = model(old, side), folded(model, precision)(old, side)
    for plain, fast in zip(expected, found, strict=True):
        assert (plain is None) == (fast is None)
        if plain is not None:
            assert fast.dtype == torch.float32
            assert (plain - fast).norm() <= tolerance * plain.norm()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nothing_but_the_outputs_stays_in_single_precision() -> None:
    model = folded(randomised("fastfill"), "bf16")
    single = {name.rpartition(".")[0] for name, value in model.named_parameters() if value.dtype == torch.float32}
    assert single == {"mixer.2.linear", "uncertainty_head.linear"}
    assert not any(isinstance(module, nn.BatchNorm1d) for module in model.modules())
