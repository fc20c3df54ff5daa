"""Uncertainty from residuals: it ranks errors that can be foreseen, and its level is that of held-out errors."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge

from models.baselines import AffineTransformation
from models.standardisation import Standardisation
from models.transformations import build_transformation
from trainers.transformation.closed_forms import Moments, Spectrum, ridge
from trainers.transformation.pairs import PairBatch, PairsInMemory, View
from trainers.transformation.residuals import Regression, left_out, residual_head, set_level, squared_errors
from utils.distributed import World

D = 5


def pairs_of(n: int, seed: int, *, units: float = 1.0) -> tuple[PairBatch, torch.Tensor]:
    """Pairs new = units (old + noise), whose log variance is linear in the old embedding; and that log variance."""
    g = torch.Generator().manual_seed(seed)
    old = torch.randn(n, D, generator=g)
    log_variance = old @ torch.tensor([1.5, -1.0, 0.0, 0.0, 0.5]) - 1
    new = old + (0.5 * log_variance).exp().unsqueeze(1) * torch.randn(n, D, generator=g)
    return PairBatch(old, None, units * new, torch.full((n,), -1)), log_variance


def in_memory(batch: PairBatch) -> PairsInMemory:
    view = View({"old": batch.old, "new": batch.new}, batch.labels)
    return PairsInMemory([view], batch_size=64, world=World(), seed=0)


def fitted(*, units: float = 1.0) -> tuple[AffineTransformation, PairBatch]:
    """The ridge regression with a residual head, and the held-out pairs."""
    (training, _), (held_out, _) = pairs_of(6000, 0, units=units), pairs_of(200, 1, units=units)
    regression = Regression.of(in_memory(training), held_out, False, World())
    model = build_transformation("ridge", old_embedding_dim=D, new_embedding_dim=D, side_info_dim=0)
    assert isinstance(model, AffineTransformation)
    model.affine.weight.data.copy_(regression.solution.weight)
    model.affine.bias.data.copy_(regression.solution.bias)
    model.residual_head = residual_head(regression, torch.device("cpu"))
    set_level(model, held_out)
    return model, held_out


def log_variance_of(model: AffineTransformation, old: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        s = model(old).log_variance
    assert s is not None
    assert s.shape == (len(old), 1)
    return s[:, 0]


@pytest.mark.parametrize("n", [8, 40])
def test_left_out_is_what_regressions_without_the_item_predict(n: int) -> None:
    """With more pairs than dimensions, and with fewer: 8 of 12."""
    rng = np.random.default_rng(n)
    old, new = rng.normal(size=(n, 12)) + 5, rng.normal(size=(n, 3))
    batch = PairBatch(torch.from_numpy(old).float(), None, torch.from_numpy(new).float(), torch.zeros(n))
    moments = Moments.of([batch], World())
    spectrum = Spectrum.of(moments)
    solution = ridge(moments, spectrum)
    found = left_out(moments, spectrum, solution, batch)
    for item in range(n):
        others = np.arange(n) != item
        oracle = Ridge(alpha=solution.found["strength"]).fit(old[others], new[others])
        np.testing.assert_allclose(found[item].numpy(), oracle.predict(old[item : item + 1])[0], rtol=1e-3, atol=1e-3)


def test_it_finds_a_log_variance_that_is_linear_in_the_old_embedding() -> None:
    model, _ = fitted()
    pairs, truth = pairs_of(300, 2)
    s = log_variance_of(model, pairs.old)
    assert spearmanr(s, truth)[0] > 0.98
    assert float((s - truth).abs().mean()) < 0.3


def test_errors_of_items_that_are_fitted_to_are_those_of_others() -> None:
    """With as many pairs as dimensions the errors of training pairs are small, and say nothing of others'."""
    g = torch.Generator().manual_seed(0)
    old, new = torch.randn(1060, 60, generator=g), torch.randn(1060, 4, generator=g)
    new[:, 0] += old[:, 0]
    training, others = (PairBatch(old[part], None, new[part], torch.zeros(1)) for part in (slice(60), slice(60, None)))
    moments = Moments.of([training], World())
    spectrum = Spectrum.of(moments)
    solution = ridge(moments, spectrum, Moments.of([others], World()))
    left = (left_out(moments, spectrum, solution, training) - training.new).square().mean()
    predicted = [batch.old @ solution.weight.T.float() + solution.bias.float() for batch in (training, others)]
    own, unseen = ((h - batch.new).square().mean() for h, batch in zip(predicted, (training, others), strict=True))
    assert own < 0.8 * unseen
    assert float(left) == pytest.approx(float(unseen), rel=0.15)


def test_its_level_is_that_of_the_held_out_errors() -> None:
    """Here these are three times as large as the training pairs', as those of an overfitted transformation are."""
    (model, held_out), (plain, _) = fitted(), fitted()
    with torch.no_grad():
        h = model(held_out.old).embedding
    held_out = held_out._replace(new=h + 3 * (held_out.new - h))
    set_level(model, held_out)
    s = log_variance_of(model, held_out.old)
    with torch.no_grad():
        assert abs(float((squared_errors(model, held_out) * (-s).exp()).mean()) - 1) < 1e-4
    shift = s - log_variance_of(plain, held_out.old)
    torch.testing.assert_close(shift, torch.full_like(shift, 9.0).log(), rtol=0, atol=1e-3)


def test_a_relative_one_falls_with_the_distance_from_the_centre_and_keeps_the_level() -> None:
    model, held_out = fitted()
    plain = log_variance_of(model, held_out.old)
    model.centre = Standardisation(D)
    model.centre.mean.fill_(0.5)
    model.centre.scale.fill_(2.0)
    set_level(model, held_out)
    s = log_variance_of(model, held_out.old)
    with torch.no_grad():
        distance = ((model(held_out.old).embedding - 0.5) / 2).square().mean(1)
        assert abs(float((squared_errors(model, held_out) * (-s).exp()).mean()) - 1) < 1e-4
    shift = s + distance.log() - plain
    torch.testing.assert_close(shift, shift.mean().expand_as(shift), rtol=0, atol=1e-4)


@pytest.mark.parametrize("units", [1e-7, 1e6])
def test_in_other_units_it_is_the_same_uncertainty(units: float) -> None:
    (model, held_out), (plain, _) = fitted(units=units), fitted()
    expected = log_variance_of(plain, held_out.old) + 2 * math.log(units)
    torch.testing.assert_close(log_variance_of(model, held_out.old), expected, rtol=1e-2, atol=1e-2)


def test_no_error_at_all_is_very_certain() -> None:
    old = torch.randn(50, D, generator=torch.Generator().manual_seed(0))
    pairs = PairBatch(old, None, 2 * old, torch.zeros(50))
    regression = Regression.of(in_memory(pairs), pairs, False, World())
    s = residual_head(regression, torch.device("cpu"))(old)
    assert s.isfinite().all()
    assert s.max() < -15
