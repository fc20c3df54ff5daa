"""Closed forms: SciPy, scikit-learn and plain formulas as oracles, and what must hold of them."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import Ridge, RidgeCV

from trainers.transformation.closed_forms import STRENGTHS, Affine, Moments, procrustes, ridge
from trainers.transformation.pairs import PairBatch
from utils.distributed import World
from utils.errors import UserError


def made_up(n: int, d_old: int, d_new: int, *, seed: int = 0, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Correlated old embeddings off the origin, and noisy linear images of them."""
    rng = np.random.default_rng(seed)
    old = rng.normal(size=(n, d_old)) @ rng.normal(size=(d_old, d_old)) + rng.normal(size=d_old)
    new = old @ rng.normal(size=(d_old, d_new)) + noise * rng.normal(size=(n, d_new)) + rng.normal(size=d_new)
    return old, new


def batches(old: np.ndarray, new: np.ndarray, size: int = 7) -> Iterator[PairBatch]:
    for start in range(0, len(old), size):
        x, y = (torch.from_numpy(array[start : start + size]) for array in (old, new))
        yield PairBatch(x, None, y, torch.zeros(len(x), dtype=torch.int64))


def fit(solver: Callable[[Moments], Affine], old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, Affine]:
    """The solution, and what it predicts for `old`."""
    solution = solver(Moments.of(batches(old, new), World()))
    return old @ solution.weight.numpy().T + solution.bias.numpy(), solution


@pytest.mark.parametrize(("d_old", "d_new"), [(6, 6), (4, 7), (7, 4)])
def test_procrustes_is_scipys_of_the_centred_and_padded_embeddings(d_old: int, d_new: int) -> None:
    old, new = made_up(50, d_old, d_new)
    predicted, solution = fit(procrustes, old, new)
    wide = max(d_old, d_new)
    padded = [np.pad(array - array.mean(0), ((0, 0), (0, wide - array.shape[1]))) for array in (old, new)]
    rotation, _ = orthogonal_procrustes(*padded)
    np.testing.assert_allclose(predicted - new.mean(0), (padded[0] @ rotation)[:, :d_new], atol=1e-9)
    weight = solution.weight.numpy()  # (d_new, d_old)
    narrow = weight.T @ weight if d_old < d_new else weight @ weight.T
    np.testing.assert_allclose(narrow, np.eye(min(d_old, d_new)), atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), d_old=st.integers(1, 6), more=st.integers(0, 3))
def test_a_rotation_and_a_shift_are_found_exactly(seed: int, d_old: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    old, _ = made_up(40, d_old, d_old, seed=seed)
    rotation = np.linalg.qr(rng.normal(size=(d_old + more, d_old)))[0].T
    new = old @ rotation + rng.normal(size=d_old + more)
    predicted, _ = fit(procrustes, old, new)
    np.testing.assert_allclose(predicted, new, atol=1e-6 * np.abs(new).max())


def test_ridge_is_scikit_learns_at_the_strength_that_it_chose() -> None:
    old, new = made_up(60, 8, 5, noise=5.0)
    predicted, solution = fit(ridge, old, new)
    oracle = Ridge(alpha=solution.found["strength"]).fit(old, new)
    np.testing.assert_allclose(solution.weight.numpy(), oracle.coef_, atol=1e-8)
    np.testing.assert_allclose(predicted, oracle.predict(old), atol=1e-8)


def gcv_of(old: np.ndarray, new: np.ndarray, strength: float) -> float:
    """Generalised cross-validation by the n x n hat matrix."""
    n, x = len(old), old - old.mean(0)
    hat = x @ np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T) + 1 / n
    residual = new - hat @ new
    return float(np.square(residual).sum() / n / (1 - np.trace(hat) / n) ** 2)


@pytest.mark.parametrize("n", [12, 40, 200])
def test_the_strength_is_that_of_the_least_validation_error_and_near_that_of_leave_one_out(n: int) -> None:
    old, new = made_up(n, 10, 4, noise=8.0)
    found = fit(ridge, old, new)[1].found
    strengths = np.square(old - old.mean(0)).sum() / old.shape[1] * np.array(STRENGTHS)
    errors = [gcv_of(old, new, strength) for strength in strengths]
    assert found["relative_strength"] == STRENGTHS[int(np.argmin(errors))]
    assert 0 < np.argmin(errors) < len(STRENGTHS) - 1  # or any choice would do
    assert found["gcv"] == pytest.approx(min(errors))
    if n == 200:
        oracle = RidgeCV(alphas=strengths).fit(old, new)
        assert abs(np.log10(oracle.alpha_ / found["strength"])) < 0.6


@pytest.mark.parametrize(("n", "offset"), [(15, 0.0), (200, 30.0)])
def test_with_held_out_pairs_the_strength_is_the_one_that_fits_them_best(n: int, offset: float) -> None:
    old, new = made_up(n + 50, 10, 4, noise=8.0)
    old[n:] += offset  # they may have another mean
    moments, held_out = (Moments.of(batches(old[part], new[part]), World()) for part in (slice(n), slice(n, None)))
    found = ridge(moments, held_out=held_out).found
    strengths = np.square(old[:n] - old[:n].mean(0)).sum() / old.shape[1] * np.array(STRENGTHS)
    errors = [
        np.square(Ridge(alpha=strength).fit(old[:n], new[:n]).predict(old[n:]) - new[n:]).sum(1).mean()
        for strength in strengths
    ]
    assert found["relative_strength"] == STRENGTHS[int(np.argmin(errors))]
    assert found["held_out_error"] == pytest.approx(min(errors))
    assert found["relative_strength"] != ridge(moments).found["relative_strength"]


def test_moments_towards_other_targets_are_those_of_the_new_pairs() -> None:
    old, new = made_up(30, 6, 4)
    targets = np.sin(new[:, :2])
    found = Moments.of(batches(old, new), World()).towards(batches(old, targets), World())
    expected = Moments.of(batches(old, targets), World())
    for name, value in vars(expected).items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 999))
def test_ridge_does_not_depend_on_the_unit_of_the_old_embeddings(scale: float, seed: int) -> None:
    old, new = made_up(30, 5, 3, seed=seed, noise=3.0)
    np.testing.assert_allclose(fit(ridge, scale * old, new)[0], fit(ridge, old, new)[0], rtol=1e-5, atol=1e-5)


def test_ridge_finds_an_affine_map_and_survives_inputs_that_depend_on_each_other() -> None:
    old, new = made_up(60, 6, 9, noise=0.0)
    np.testing.assert_allclose(fit(ridge, old, new)[0], new, atol=1e-4)
    twice = np.concatenate([old, old, np.ones((60, 1))], axis=1)
    np.testing.assert_allclose(fit(ridge, twice, new)[0], new, atol=1e-4)


def test_with_fewer_pairs_than_dimensions_ridge_does_not_reproduce_the_noise() -> None:
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(20, 60)), rng.normal(size=(20, 5))
    predicted, solution = fit(ridge, old, new)
    assert solution.weight.isfinite().all()
    assert np.square(predicted - new.mean(0)).sum() < 0.2 * np.square(new - new.mean(0)).sum()


@pytest.mark.parametrize("solver", [procrustes, ridge])
def test_batches_do_not_matter_and_side_information_stands_beside(solver: Callable[[Moments], Affine]) -> None:
    old, new = made_up(50, 6, 6)
    whole, split = (solver(Moments.of(batches(old, new, size), World())) for size in (50, 3))
    torch.testing.assert_close(whole.weight, split.weight, rtol=1e-9, atol=1e-9)
    parts = [batch._replace(old=batch.old[:, :4], side_info=batch.old[:, 4:]) for batch in batches(old, new, size=9)]
    beside = solver(Moments.of(parts, World()))
    torch.testing.assert_close(whole.weight, beside.weight, rtol=1e-9, atol=1e-9)


def test_what_cannot_be_fitted() -> None:
    old, new = made_up(20, 4, 4)
    with pytest.raises(UserError, match="the old embeddings are the same for all 20 items"):
        Moments.of(batches(np.full_like(old, 3.7), new), World())
    for broken in (np.nan, np.inf):
        bad = new.copy()
        bad[3, 1] = broken
        with pytest.raises(UserError, match="not all finite"):
            Moments.of(batches(old, bad), World())
    with pytest.raises(UserError, match="there is no pair"):
        Moments.of([], World())
