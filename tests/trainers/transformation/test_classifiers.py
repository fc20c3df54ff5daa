"""The classifier that is fitted to new embeddings: scikit-learn's, whatever the scale of the embeddings."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from trainers.transformation.classifiers import PENALTY, fit_classifier

N, D, C = 90, 6, 4
GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.randint(C, (N,), generator=GENERATOR)
EMBEDDINGS = torch.randn(C, D, generator=GENERATOR)[LABELS] + 0.7 * torch.randn(N, D, generator=GENERATOR)


def test_without_smoothing_it_is_scikit_learns() -> None:
    unit = float(EMBEDDINGS.var(0, correction=0).mean().sqrt())
    oracle = LogisticRegression(C=1 / (N * PENALTY), fit_intercept=False, tol=1e-8, max_iter=2000)
    oracle.fit(EMBEDDINGS.numpy() / unit, LABELS.numpy())
    weight = fit_classifier(EMBEDDINGS, LABELS, C, 0.0)
    np.testing.assert_allclose(weight.numpy() * unit, oracle.coef_, atol=0.02)


@pytest.mark.parametrize("scale", [0.01, 50.0])
def test_the_scale_of_the_embeddings_does_not_matter_and_again_is_the_same(scale: float) -> None:
    weight = fit_classifier(EMBEDDINGS, LABELS, C, 0.1)
    scaled = fit_classifier(scale * EMBEDDINGS, LABELS, C, 0.1)
    torch.testing.assert_close(scaled * scale, weight, rtol=0, atol=0.02)
    assert torch.equal(weight, fit_classifier(EMBEDDINGS, LABELS, C, 0.1))
    assert not weight.requires_grad


def test_smoothing_pulls_the_logits_together_and_a_class_without_items_is_not_chosen() -> None:
    sharp, smooth = (fit_classifier(EMBEDDINGS, LABELS, C + 1, smoothing) for smoothing in (0.0, 0.3))
    assert smooth.norm() < sharp.norm()
    assert (EMBEDDINGS @ sharp.T).argmax(1).max() < C


def test_items_with_a_negative_label_are_left_out() -> None:
    known = torch.arange(N) % 3 > 0
    expected = fit_classifier(EMBEDDINGS[known], LABELS[known], C, 0.1)
    strange = EMBEDDINGS.where(known[:, None], 100.0)
    assert torch.equal(fit_classifier(strange, LABELS.where(known, -1), C, 0.1), expected)


def test_far_from_the_origin_it_tells_classes_apart_as_well() -> None:
    """But for the direction of the offset, which it needs for a bias; of the mean square, classes are nothing there."""
    logits = [at @ fit_classifier(at, LABELS, C, 0.1).T for at in (EMBEDDINGS, EMBEDDINGS + 100)]
    here, there = (float(F.cross_entropy(found, LABELS, label_smoothing=0.1)) for found in logits)
    assert there < here + 0.1
