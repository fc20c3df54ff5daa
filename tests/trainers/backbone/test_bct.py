"""Backward-compatible training: its loss and the old classifier's missing rows against plain loops."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from data.datasets import open_images
from data.images import Batch, ImageSet
from models.resnet import ResNet, build_backbone
from tests.tiny import BACKBONE, write_images
from trainers.backbone.bct import Compatible, OldModel, completed_classifier, mean_embeddings, synthesised_rows
from trainers.backbone.config import BackboneConfig
from utils.config import build, parse_yaml, to_dict
from utils.distributed import World

CLASSES, OLD_CLASSES, SMOOTHING, WEIGHT = 4, 2, 0.1, 0.7


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), classes=CLASSES, training=5, validation=1)


def setting(root: Path) -> tuple[BackboneConfig, ImageSet, ResNet, ResNet]:
    values = parse_yaml(BACKBONE)
    config = build(BackboneConfig, values, source="tiny")
    config.dataset_params.data_root, config.dataset_params.batch_size = str(root), 8
    torch.manual_seed(0)
    new, old = (build_backbone(**to_dict(config.arch_params)) for _ in range(2))
    training = open_images(config.dataset_params, "training", World(), seed=0)
    return config, training, new, old.eval().requires_grad_(False)


def smoothed_cross_entropy(logits: torch.Tensor, label: int) -> float:
    exponentials = [math.exp(value) for value in logits.tolist()]
    share = SMOOTHING / len(exponentials)
    targets = [share + (1 - SMOOTHING) * (i == label) for i in range(len(exponentials))]
    return -sum(t * math.log(e / sum(exponentials)) for t, e in zip(targets, exponentials, strict=True))


@pytest.mark.parametrize("old_classes", [OLD_CLASSES, CLASSES])
def test_the_loss_is_its_own_and_that_of_the_old_classifier(root: Path, old_classes: int) -> None:
    config, training, new, old = setting(root)
    before = old.fc.weight.clone()
    rows = completed_classifier(OldModel(old, old_classes), training, 8, "fp32", World())
    assert rows.shape == (CLASSES, 16)
    assert torch.equal(rows[:old_classes], old.fc.weight[:old_classes].flatten(1))
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
    assert new.conv1.weight.grad is not None
    assert old.fc.weight.grad is None
    assert torch.equal(old.fc.weight, before)


def test_classes_that_the_old_model_has_not_seen_get_rows_of_their_mean_embedding(root: Path) -> None:
    _, training, _, old = setting(root)
    rows = completed_classifier(OldModel(old, OLD_CLASSES), training, 8, "fp32", World())
    (everything,) = training.view_batches(0, 100)
    with torch.no_grad():
        embeddings = old(everything.images)[1].flatten(1)
    means = torch.stack([embeddings[everything.labels == label].mean(0) for label in range(CLASSES)])
    learned = old.fc.weight[:OLD_CLASSES].flatten(1)
    for label in range(OLD_CLASSES, CLASSES):
        direction = means[label] - means.mean(0)
        expected = direction / direction.norm() * (learned[0].norm() + learned[1].norm()) / 2
        torch.testing.assert_close(rows[label], expected, rtol=1e-3, atol=1e-4)


def test_synthesised_rows_do_not_move_with_what_all_embeddings_share() -> None:
    generator = torch.Generator().manual_seed(0)
    learned, means = torch.randn(3, 8, generator=generator), torch.rand(5, 8, generator=generator)
    rows = synthesised_rows(learned, means)
    assert rows.shape == (2, 8)
    torch.testing.assert_close(synthesised_rows(learned, means + 100), rows, rtol=0, atol=1e-3)
    torch.testing.assert_close(synthesised_rows(2 * learned, means), 2 * rows)


def test_a_class_without_images_has_the_mean_zero() -> None:
    images = torch.tensor([1.0, 3.0, 5.0]).view(3, 1, 1, 1)
    batches = [
        Batch(images[:2], torch.tensor([0, 2]), torch.arange(2)),
        Batch(images[2:], torch.tensor([2]), torch.ones(1)),
    ]
    assert mean_embeddings(nn.Identity(), batches, 4, "fp32", World()).tolist() == [[1.0], [0.0], [4.0], [0.0]]
