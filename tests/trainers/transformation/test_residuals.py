"""Uncertainty from residuals: it ranks errors that can be foreseen, and its level is that of held-out errors."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from models.baselines import AffineTransformation
from models.transformations import build_transformation
from trainers.transformation.pairs import PairBatch
from trainers.transformation.residuals import fit_residual_head, squared_errors
from utils.distributed import World

D = 5


def pairs_of(n: int, seed: int, *, noise: float = 1.0, units: float = 1.0) -> tuple[PairBatch, torch.Tensor]:
    """Pairs new = units (old + noise), whose log variance is linear in the old embedding; and that log variance."""
    g = torch.Generator().manual_seed(seed)
    old = torch.randn(n, D, generator=g)
    log_variance = old @ torch.tensor([1.5, -1.0, 0.0, 0.0, 0.5]) - 1
    new = old + noise * (0.5 * log_variance).exp().unsqueeze(1) * torch.randn(n, D, generator=g)
    return PairBatch(old, None, units * new, torch.full((n,), -1)), log_variance


def scaled_identity(units: float) -> AffineTransformation:
    model = build_transformation("ridge", old_embedding_dim=D, new_embedding_dim=D, side_info_dim=0)
    assert isinstance(model, AffineTransformation)
    model.affine.weight.data.copy_(units * torch.eye(D))
    model.affine.bias.data.zero_()
    return model


def fitted(*, noise: float = 1.0, units: float = 1.0) -> tuple[AffineTransformation, PairBatch]:
    """A transformation with a residual head, and the held-out pairs; `noise` is theirs."""
    model, (held_out, _) = scaled_identity(units), pairs_of(200, 1, noise=noise, units=units)
    fit_residual_head(model, [pairs_of(400, 0, units=units)[0]], held_out, World())
    return model, held_out


def log_variance_of(model: AffineTransformation, old: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        s = model(old).log_variance
    assert s is not None
    assert s.shape == (len(old), 1)
    return s[:, 0]


def test_it_finds_a_log_variance_that_is_linear_in_the_old_embedding() -> None:
    model, _ = fitted()
    pairs, truth = pairs_of(300, 2)
    s = log_variance_of(model, pairs.old)
    assert torch.equal(model(pairs.old).embedding, pairs.old)
    assert spearmanr(s, truth)[0] > 0.98
    assert float((s - truth).abs().mean()) < 0.3


def test_its_level_is_that_of_the_held_out_errors() -> None:
    """Here these are three times as large as the training pairs', as those of an overfitted transformation are."""
    (model, held_out), (plain, _) = fitted(noise=3.0), fitted()
    s = log_variance_of(model, held_out.old)
    with torch.no_grad():
        assert abs(float((squared_errors(model, held_out) * (-s).exp()).mean()) - 1) < 1e-4
    shift = s - log_variance_of(plain, held_out.old)
    torch.testing.assert_close(shift, torch.full_like(shift, 9.0).log(), rtol=0, atol=0.2)


@pytest.mark.parametrize("units", [1e-7, 1e6])
def test_in_other_units_it_is_the_same_uncertainty(units: float) -> None:
    (model, held_out), (plain, _) = fitted(units=units), fitted()
    expected = log_variance_of(plain, held_out.old) + 2 * math.log(units)
    torch.testing.assert_close(log_variance_of(model, held_out.old), expected, rtol=1e-3, atol=1e-3)


def test_no_error_at_all_is_very_certain() -> None:
    model, (pairs, _) = scaled_identity(1.0), pairs_of(50, 0, noise=0.0)
    fit_residual_head(model, [pairs], pairs, World())
    s = log_variance_of(model, pairs.old)
    assert s.isfinite().all()
    assert s.max() < -20
