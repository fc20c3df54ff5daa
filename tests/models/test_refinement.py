"""The refinement of h against the formula, an item at a time, and its file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_transformation, load_model, save_model
from models.model_files import describe_refined, describe_transformation
from models.refinement import RefinedTransformation, soft_assignment
from utils.errors import UserError
from utils.files import read_torch, write_torch

GENERATOR = torch.Generator().manual_seed(0)
DIMENSIONS = {"old_embedding_dim": 3, "new_embedding_dim": 4, "side_info_dim": 3}
OLD = torch.randn(7, 3, generator=GENERATOR)
CLASSIFIER, MEANS = torch.randn(2, 5, 4, generator=GENERATOR)
BIAS = torch.randn(5, generator=GENERATOR)


def refined(strength: float, normalised: bool = False) -> RefinedTransformation:
    torch.manual_seed(0)
    inner = build_transformation("fastfill", **DIMENSIONS, inner_dim=8, normalised=normalised)
    model = RefinedTransformation(inner, num_classes=5, new_embedding_dim=4, strength=strength)
    for name, value in (("classifier", CLASSIFIER), ("bias", BIAS), ("class_means", MEANS)):
        getattr(model, name).copy_(value)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_formula(strength: float) -> None:
    model = refined(strength)
    h, log_variance = model.transformation(OLD)
    found = model(OLD)
    assert torch.equal(found.log_variance, log_variance)
    for item, before in enumerate(h.double().numpy()):
        odds = np.array([np.exp(before @ CLASSIFIER[c].numpy() + float(BIAS[c])) for c in range(5)])
        p = odds / odds.sum()
        pull = strength * p.max()
        expected = (1 - pull) * before + pull * sum(p[c] * MEANS[c].numpy() for c in range(5))
        assert found.embedding[item].numpy() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_where_h_has_length_one_it_keeps_it() -> None:
    model, plain = refined(0.7, normalised=True), refined(0.7)
    expected = plain.refine(model.transformation(OLD).embedding)
    assert float((expected.norm(dim=1) - 1).abs().min()) > 1e-2
    expected = expected / expected.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(model(OLD).embedding, expected)
    torch.testing.assert_close(model.refine(model.transformation(OLD).embedding), expected)


def test_soft_assignment_is_the_posterior_of_equal_gaussians() -> None:
    h = torch.randn(6, 4, generator=GENERATOR)
    weight, bias = soft_assignment(MEANS, variance=0.3)
    densities = torch.exp(-torch.cdist(h, MEANS).square() / (2 * 0.3))
    expected = densities / densities.sum(1, keepdim=True)
    torch.testing.assert_close((h @ weight.T + bias).softmax(1), expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("normalised", [False, True])
def test_a_file_gives_the_same_model(tmp_path: Path, normalised: bool) -> None:
    model, path = refined(0.7, normalised), tmp_path / "refined.pt"
    arguments = {"arch": "fastfill", **DIMENSIONS, "inner_dim": 8, "normalised": normalised}
    inner = describe_transformation(model.transformation, arguments)
    save_model(path, describe_refined(model, inner, {"quality": 0.5}), config={}, seed=0)
    assert torch.equal(load_model(path)(OLD).embedding, model(OLD).embedding)
    content = read_torch(path)
    assert content["chosen"] == {"quality": 0.5}
    content["state_dict"]["bias"] = torch.zeros(9)
    write_torch(path, content)
    with pytest.raises(UserError, match="the file's weights do not fit its architecture"):
        load_model(path)
