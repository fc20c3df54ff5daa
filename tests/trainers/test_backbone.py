"""Training a backbone: it learns, and validates when it is asked to."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from data.datasets import open_images
from models.resnet import build_backbone
from tests.tiny import BACKBONE, same_bits, write_images
from tests.utils.processes import run_processes
from trainers.backbone import synchronise_batch_norms, train_backbone
from utils.config import build, parse_yaml, to_dict
from utils.distributed import World
from utils.errors import UserError
from utils.preemption import Preemption
from utils.runs import Run
from utils.schema import BackboneConfig


@pytest.mark.parametrize(("every", "validated"), [(0, []), (2, [2, 3]), (10, [3])])
def test_accuracy_on_the_validation_split_is_logged_when_asked_for(
    tmp_path: Path, every: int, validated: list[int]
) -> None:
    write_images(tmp_path / "data", classes=3, training=12, validation=4)
    values = {**parse_yaml(BACKBONE), "epochs": 3, "validate_every": every, "precision": "fp32"}
    config = build(BackboneConfig, values, source="tiny")
    config.dataset_params.data_root, config.dataset_params.batch_size = str(tmp_path / "data"), 12
    torch.manual_seed(0)
    model = build_backbone(**to_dict(config.arch_params))
    training, validation = (
        open_images(config.dataset_params, split, World(), seed=0) for split in ("training", "validation")
    )
    train_backbone(
        model, config, training, validation, Run(str(tmp_path / "m.pt"), config, World()), World(), Preemption()
    )
    records = [json.loads(line) for line in (tmp_path / "m.log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records if "validation_accuracy" in record] == validated
    assert records[-1]["loss"] < records[0]["loss"]
    if validated:
        (batch,) = validation.view_batches(0, 12)
        with torch.inference_mode():
            right = model.eval()(batch.images)[0].argmax(1) == batch.labels
        assert records[-1]["validation_accuracy"] == pytest.approx(right.double().mean().item())


def train_two_epochs(world: World, root: str) -> None:
    """Train on this process's share, validating each epoch; every process saves its model."""
    config = build(BackboneConfig, {**parse_yaml(BACKBONE), "validate_every": 1, "precision": "fp32"}, source="tiny")
    config.dataset_params.data_root, config.dataset_params.batch_size = root, 12
    torch.manual_seed(0)
    model = build_backbone(**to_dict(config.arch_params))
    training, validation = (
        open_images(config.dataset_params, split, world, seed=0) for split in ("training", "validation")
    )
    run = Run(f"{root}/m.pt", config, world)
    train_backbone(model, config, training, validation, run, world, Preemption())
    torch.save(model.state_dict(), f"{root}/{world.rank}.pt")


def test_what_several_processes_validate_is_what_the_main_one_saves(tmp_path: Path) -> None:
    write_images(tmp_path, classes=3, training=12, validation=20)
    run_processes(train_two_epochs, 2, str(tmp_path))
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert same_bits(states[0], states[1])
    config = build(BackboneConfig, parse_yaml(BACKBONE), source="tiny")
    config.dataset_params.data_root = str(tmp_path)
    (batch, *others) = open_images(config.dataset_params, "validation", World(), seed=0).view_batches(0, 60)
    assert not others
    model = build_backbone(**to_dict(config.arch_params)).eval()
    model.load_state_dict(states[0])
    with torch.no_grad():
        right = model(batch.images)[0].argmax(1) == batch.labels
    last = json.loads((tmp_path / "m.log.jsonl").read_text().splitlines()[-1])
    assert last["validation_accuracy"] == pytest.approx(float(right.double().mean()))


def test_batch_norms_of_several_gpus_can_share_their_statistics() -> None:
    def kinds() -> set[type[nn.Module]]:
        return {type(module) for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}

    model = build_backbone("ResNet18", num_classes=3, width=0.0625)
    names = list(model.state_dict())
    with pytest.raises(UserError, match="sync_bn: needs GPUs"):
        synchronise_batch_norms(model, World(0, 2))
    for alone in (World(), World(device=torch.device("cuda"))):
        synchronise_batch_norms(model, alone)
        assert kinds() == {nn.BatchNorm2d}
    synchronise_batch_norms(model, World(0, 2, torch.device("cuda")))
    assert kinds() == {nn.SyncBatchNorm}
    assert list(model.state_dict()) == names
