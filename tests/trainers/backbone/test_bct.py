"""Backward-compatible training: its loss and the old classifier's missing rows against plain loops."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from data.images import Batch
from models.backbones import build_backbone
from tests.tiny import write_images
from tests.trainers.backbone.setting import setting_of
from trainers.backbone.bct import Compatible, OldModel, completed_classifier, mean_embeddings
from utils.config import to_dict
from utils.distributed import World

CLASSES, OLD_CLASSES, SMOOTHING, WEIGHT = 4, 2, 0.1, 0.7


def smoothed_cross_entropy(logits: torch.Tensor, label: int) -> float:
    exponentials = [math.exp(value) for value in logits.tolist()]
    share = SMOOTHING / len(exponentials)
    targets = [share + (1 - SMOOTHING) * (i == label) for i in range(len(exponentials))]
    return -sum(t * math.log(e / sum(exponentials)) for t, e in zip(targets, exponentials, strict=True))


@pytest.mark.parametrize("old_classes", [OLD_CLASSES, CLASSES])
def test_the_loss_is_its_own_and_that_of_the_completed_old_classifier(tmp_path: Path, old_classes: int) -> None:
    """Of classes that the old model has not seen, rows point along their mean embeddings."""
    write_images(tmp_path, classes=CLASSES, training=5, validation=1)
    config, new, training, _ = setting_of(tmp_path, dataset_params={"batch_size": 8})
    old = build_backbone(**to_dict(config.arch_params)).eval().requires_grad_(False)
    learned = old.fc.weight[:old_classes].flatten(1).clone()
    rows = completed_classifier(OldModel(old, old_classes), training, 8, "fp32", World())
    (everything,) = training.view_batches(0, 100)
    with torch.no_grad():
        embeddings = old(everything.images)[1].flatten(1)
    means = torch.stack([embeddings[everything.labels == label].mean(0) for label in range(CLASSES)])
    assert rows.shape == (CLASSES, 16)
    assert torch.equal(rows[:old_classes], learned)
    for label in range(old_classes, CLASSES):
        direction = means[label] - means.mean(0)
        expected_row = direction / direction.norm() * (learned[0].norm() + learned[1].norm()) / 2
        torch.testing.assert_close(rows[label], expected_row, rtol=1e-3, atol=1e-4)

    task = Compatible(config, training, training, "fp32", World(), rows, WEIGHT)
    batch = next(iter(task.batches(0)))
    loss = task.loss(new, batch)
    with torch.no_grad():
        logits, embedding = new.train()(batch.images)
    expected = 0.0
    for label, own, vector in zip(batch.labels.tolist(), logits, embedding.flatten(1), strict=True):
        theirs = torch.stack([(row * vector).sum() for row in rows])
        expected += smoothed_cross_entropy(own, label) + WEIGHT * smoothed_cross_entropy(theirs, label)
    assert loss.mean.item() == pytest.approx(expected / len(batch.labels), rel=1e-4)
    assert loss.correct == (logits.argmax(1) == batch.labels).sum()
    loss.mean.backward()
    assert new.get_parameter("conv1.weight").grad is not None
    assert old.fc.weight.grad is None
    assert torch.equal(old.fc.weight[:old_classes].flatten(1), learned)


def test_a_class_without_images_has_the_mean_zero() -> None:
    images = torch.tensor([1.0, 3.0, 5.0]).view(3, 1, 1, 1)
    batches = [
        Batch(images[:2], torch.tensor([0, 2]), torch.arange(2)),
        Batch(images[2:], torch.tensor([2]), torch.ones(1)),
    ]
    assert mean_embeddings(nn.Identity(), batches, 4, "fp32", World()).tolist() == [[1.0], [0.0], [4.0], [0.0]]
