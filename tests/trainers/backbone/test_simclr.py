"""SimCLR: NT-Xent against a plain loop, on one process and on two, and that training learns and validates."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.tiny import write_images
from tests.trainers.backbone.setting import setting_of, train
from tests.utils.processes import run_processes
from trainers.backbone.neighbours import knn_predict
from trainers.backbone.simclr import nt_xent
from utils.distributed import World


def naive_nt_xent(z: torch.Tensor, temperature: float) -> float:
    """Equation 1 of the paper, view by view, in float64."""
    z = z.double()
    n = len(z)
    total = 0.0
    for i in range(n):
        similarity = [float(z[i] @ z[k] / (z[i].norm() * z[k].norm())) / temperature for k in range(n)]
        others = sum(math.exp(similarity[k]) for k in range(n) if k != i)
        total -= math.log(math.exp(similarity[(i + n // 2) % n]) / others)
    return total / n


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("images", [1, 2, 5])
def test_nt_xent_is_the_papers_equation(images: int, temperature: float) -> None:
    z = torch.randn(2 * images, 4, generator=torch.Generator().manual_seed(images))
    assert nt_xent(z, temperature, World()).item() == pytest.approx(naive_nt_xent(z, temperature), rel=1e-5, abs=1e-6)
    assert nt_xent(3 * z, temperature, World()).item() == pytest.approx(nt_xent(z, temperature, World()).item())


def test_the_gradient_of_nt_xent_is_the_slope() -> None:
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(nt_xent(z, 0.5, World()), z)
    for row, column in [(0, 0), (2, 1), (5, 2)]:
        step = torch.zeros_like(z, dtype=torch.float64)
        step[row, column] = 1e-4
        slope = (naive_nt_xent(z.detach() + step, 0.5) - naive_nt_xent(z.detach() - step, 0.5)) / 2e-4
        assert gradient[row, column].item() == pytest.approx(slope, abs=1e-4)


def test_two_processes_have_the_loss_and_the_gradients_of_one() -> None:
    run_processes(compare_shares, 2)


def compare_shares(world: World) -> None:
    """The parameters of a linear layer get the same gradient from the shares of two processes as from the whole."""
    torch.manual_seed(0)
    for counts in ((4, 4), (3, 5)):
        model, views = nn.Linear(5, 3), torch.randn(2, 8, 5)
        loss = nt_xent(model(views.flatten(0, 1)), 0.5, World())
        (expected,) = torch.autograd.grad(loss, model.weight)
        share = slice(0, counts[0]) if world.is_main else slice(counts[0], 8)
        # Without equal shares a process's mean weighs as much as that of another; weigh it by its part of the views.
        weight = world.size * counts[world.rank] / 8
        parallel = DistributedDataParallel(model)
        own = nt_xent(parallel(views[:, share].flatten(0, 1)), 0.5, world) * weight
        own.backward()
        assert model.weight.grad is not None
        torch.testing.assert_close(model.weight.grad, expected)
        torch.testing.assert_close(world.sum(own.detach().clone()) / world.size, loss.detach())


def test_training_learns_without_labels_and_logs_the_accuracy_of_neighbours(tmp_path: Path) -> None:
    write_images(tmp_path / "data", classes=3, training=16, validation=4)
    head = {"projection_hidden_dim": 32, "projection_dim": 8}
    values: dict[str, Any] = {"objective": "simclr", "label_smoothing": 0.0, "epochs": 8, "validate_every": 4}
    values["dataset_params"] = {"augmentation": None, "batch_size": 16}
    values["optimizer_params"] = {"algorithm": "adam", "lr": 3e-3, "weight_decay": 0.0}
    values["simclr_params"] = {**head, "knn_items": 20, "min_area": 0.7, "jitter_strength": 0.1}
    setting = setting_of(tmp_path / "data", **values)
    model, training = setting.model, setting.training
    classifier, labels = model.fc.weight.clone(), training.labels.clone()
    training.labels.fill_(-1)  # nothing but the monitor may look at them, and that takes them from the batches
    records = train(tmp_path, setting)
    training.labels.copy_(labels)
    assert [record["epoch"] for record in records if "knn_accuracy" in record] == [4, 8]
    assert not any("accuracy" in record for record in records)
    assert records[-1]["loss"] < records[0]["loss"] - 0.1
    assert torch.equal(model.fc.weight, classifier)

    (bank,) = training.view_batches(0, 100, limit=20)
    assert bank.indices.tolist() == [i * 48 // 20 for i in range(20)]
    (queries,) = setting.validation.view_batches(0, 100)
    with torch.inference_mode():
        embedded, expected = (model.eval()(batch.images)[1].flatten(1) for batch in (queries, bank))
    right = knn_predict(embedded, expected, bank.labels) == queries.labels
    assert records[-1]["knn_accuracy"] == pytest.approx(right.double().mean().item())
