"""Uncertainty from residuals: it ranks errors that can be foreseen, and its level is that of held-out errors."""

import math
from typing import cast

import pytest
import torch
from scipy.stats import spearmanr

from models.transformations import build_transformation
from trainers.transformation.pairs import PairBatch, PairsInMemory, View
from trainers.transformation.residuals import fit_residual_head, squared_errors
from utils.distributed import World

D = 5


def pairs_of(n: int, seed: int, *, noise: float = 1.0) -> tuple[View, torch.Tensor]:
    """Pairs new = old + noise, whose log variance is linear in the old embedding; and that log variance."""
    g = torch.Generator().manual_seed(seed)
    old = torch.randn(n, D, generator=g)
    log_variance = old @ torch.tensor([1.5, -1.0, 0.0, 0.0, 0.5]) - 1
    new = old + noise * (0.5 * log_variance).exp().unsqueeze(1) * torch.randn(n, D, generator=g)
    return View({"old": old, "new": new}, torch.full((n,), -1)), log_variance


def fitted(noise: float = 1.0) -> tuple[torch.nn.Module, PairBatch]:
    """The identity as transformation, with a residual head, and the held-out pairs."""
    model = build_transformation("ridge", old_embedding_dim=D, new_embedding_dim=D, side_info_dim=0)
    with torch.no_grad():
        model.get_parameter("affine.weight").copy_(torch.eye(D))
        model.get_parameter("affine.bias").zero_()
    training = PairsInMemory([pairs_of(400, 0)[0]], batch_size=64, world=World(), seed=0)
    view, _ = pairs_of(200, 1, noise=noise)
    held_out = PairBatch(view.embeddings["old"], None, view.embeddings["new"], view.labels)
    fit_residual_head(model, training.views_once(), held_out, World())
    return model, held_out


def test_it_finds_a_log_variance_that_is_linear_in_the_old_embedding() -> None:
    model, _ = fitted()
    view, truth = pairs_of(300, 2)
    with torch.no_grad():
        h, s = model(view.embeddings["old"])
    assert s.shape == (300, 1)
    assert torch.equal(h, view.embeddings["old"])
    assert spearmanr(s[:, 0], truth)[0] > 0.98
    assert float((s[:, 0] - truth).abs().mean()) < 0.3


def test_its_level_is_that_of_the_held_out_errors() -> None:
    """Here these are three times as large as the training pairs', as those of an overfitted transformation are."""
    (model, held_out), (plain, _) = fitted(noise=3.0), fitted()
    with torch.no_grad():
        s = model(held_out.old).log_variance[:, 0]
        ratio = squared_errors(model, held_out) * (-s).exp()  # type: ignore[arg-type]
        shift = s - plain(held_out.old).log_variance[:, 0]
    assert abs(float(ratio.mean()) - 1) < 1e-4
    torch.testing.assert_close(shift, torch.full_like(shift, 9.0).log(), rtol=0, atol=0.2)


@pytest.mark.parametrize("scale", [1e-7, 1e6])
def test_in_other_units_it_is_the_same_uncertainty(scale: float) -> None:
    def log_variance(units: float) -> torch.Tensor:
        model = build_transformation("ridge", old_embedding_dim=D, new_embedding_dim=D, side_info_dim=0)
        with torch.no_grad():
            model.get_parameter("affine.weight").copy_(units * torch.eye(D))
            model.get_parameter("affine.bias").zero_()
        views = [pairs_of(count, seed)[0] for count, seed in ((400, 0), (200, 1))]
        parts = [PairBatch(view.embeddings["old"], None, units * view.embeddings["new"], view.labels) for view in views]
        fit_residual_head(model, parts[:1], parts[1], World())
        with torch.no_grad():
            return cast(torch.Tensor, model(parts[1].old).log_variance)

    expected = log_variance(1.0) + 2 * math.log(scale)
    torch.testing.assert_close(log_variance(scale), expected, rtol=1e-3, atol=1e-3)


def test_no_error_at_all_is_very_certain() -> None:
    model = build_transformation("ridge", old_embedding_dim=D, new_embedding_dim=D, side_info_dim=0)
    old = torch.randn(50, D)
    with torch.no_grad():
        new = model(old).embedding
    labels = torch.full((50,), -1)
    training = PairsInMemory([View({"old": old, "new": new}, labels)], batch_size=50, world=World(), seed=0)
    fit_residual_head(model, training.views_once(), PairBatch(old, None, new, labels), World())
    with torch.no_grad():
        s = model(old).log_variance
    assert s is not None
    assert s.isfinite().all()
    assert s.max() < -20
