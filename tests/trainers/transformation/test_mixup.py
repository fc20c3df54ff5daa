"""Mixup against its formula, an item at a time."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.transformed import Transformed
from trainers.transformation.config import DiscriminativeLoss, ObjectiveParams, SimilarityLoss
from trainers.transformation.losses import TransformationObjective
from trainers.transformation.mixup import mixed
from trainers.transformation.pairs import PairBatch

GENERATOR = torch.Generator().manual_seed(0)
CLASSES = 5


def batch(count: int = 40, *, side_info: bool = True) -> PairBatch:
    old, new, side = torch.randn(3, count, 6, generator=GENERATOR)
    return PairBatch(old, side if side_info else None, new, torch.randint(CLASSES, (count,), generator=GENERATOR))


def shares(found: Tensor, own: Tensor) -> list[tuple[int, float]]:
    """Which other item each row was mixed with, and the item's own share, found by trying every other one."""
    mixtures = []
    for row, item in zip(found, own, strict=True):
        direction = item - own  # (B, d): row = other + share * direction
        share = ((row - own) * direction).sum(1) / direction.square().sum(1).clamp(min=1e-12)
        errors = (own + share[:, None] * direction - row).norm(dim=1)
        other = int(errors.argmin())
        assert errors[other] < 1e-4
        mixtures.append((other, float(share[other])))
    return mixtures


def test_everything_of_an_item_is_mixed_alike() -> None:
    before = batch()
    (after,) = mixed([before], 1.0, CLASSES, seed=7, epoch=0, rank=0)
    assert after.side_info is not None
    assert before.side_info is not None
    assert after.labels.shape == (40, CLASSES)
    for i, (other, share) in enumerate(shares(after.old, before.old)):
        if other == i:  # it was drawn for itself
            continue
        assert 0.5 - 1e-4 <= share <= 1 + 1e-4
        for found, own in ((after.new, before.new), (after.side_info, before.side_info)):
            torch.testing.assert_close(found[i], share * own[i] + (1 - share) * own[other], rtol=1e-3, atol=1e-4)
        expected = share * F.one_hot(before.labels[i], CLASSES) + (1 - share) * F.one_hot(before.labels[other], CLASSES)
        torch.testing.assert_close(after.labels[i], expected.float(), rtol=1e-3, atol=1e-4)


def test_shares_are_beta_distributed() -> None:
    before = batch(500)
    (after,) = mixed([before], 0.4, CLASSES, seed=7, epoch=0, rank=0)
    found = sorted(share for _, share in shares(after.old, before.old))
    drawn = torch.distributions.Beta(0.4, 0.4).sample(torch.Size([20000]))
    expected = torch.maximum(drawn, 1 - drawn)
    for level in (0.2, 0.5, 0.8):
        assert found[int(level * 500)] == pytest.approx(float(expected.quantile(level)), abs=0.06)


def test_a_function_of_its_numbers() -> None:
    batches = [batch(), batch(side_info=False)]
    first, again, other, beside = (
        list(mixed(batches, 0.4, None, seed=1, epoch=epoch, rank=rank))
        for epoch, rank in ((2, 0), (2, 0), (3, 0), (2, 1))
    )
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.old, two.old)
    assert not torch.equal(first[0].old, other[0].old)
    assert not torch.equal(first[0].old, beside[0].old)
    assert torch.equal(first[0].labels, batches[0].labels)  # without classes they stay
    assert first[1].side_info is None


@pytest.mark.parametrize("unlabelled", [0, 12])
def test_the_discriminative_loss_of_a_mixture_is_the_mixture_of_its_losses(unlabelled: int) -> None:
    """An item without a label has no share of classes, and no part in it."""
    before = batch()
    before = before._replace(labels=before.labels.where(torch.arange(40) >= unlabelled, -1))
    (after,) = mixed([before], 1.0, CLASSES, seed=7, epoch=0, rank=0)
    params = ObjectiveParams(SimilarityLoss(mu_similarity=0.0), DiscriminativeLoss(label_smoothing=0.1))
    objective = TransformationObjective(params, torch.randn(CLASSES, 6, generator=GENERATOR))
    expected = 0.0
    for i, (other, share) in enumerate(shares(after.old, before.old)):
        share = 0.5 if other == i else share  # it was drawn for itself: both halves are its own
        for item, weight in ((i, share), (other, 1 - share)):
            label = before.labels[item, None]
            if label >= 0:
                expected += weight * float(objective(Transformed(after.old[None, i], None), after.new[None, i], label))
        assert max(before.labels[[i, other]]) >= 0 or not after.labels[i].any()
    found = objective(Transformed(after.old, None), after.new, after.labels)
    assert float(found) == pytest.approx(expected / 40, rel=1e-4)
