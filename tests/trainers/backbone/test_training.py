"""Training a backbone: it learns, and validates when it is asked to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data.datasets import open_images
from models.resnet import build_backbone
from tests.tiny import BACKBONE, same_bits, write_images
from tests.utils.processes import run_processes
from trainers.backbone.config import BackboneConfig
from trainers.backbone.training import synchronise_batch_norms, train_backbone
from utils.config import build, parse_yaml, to_dict
from utils.distributed import World
from utils.errors import UserError
from utils.preemption import Preemption
from utils.runs import Run


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


# ------------------------------------------------------------------------------------------------------- micro-batches


def train(folder: Path, **values: Any) -> dict[str, torch.Tensor]:
    """Train the tiny backbone on 32 images of `folder`/data, one batch an epoch -> its weights."""
    config = build(BackboneConfig, {**parse_yaml(BACKBONE), "precision": "fp32", **values}, source="tiny")
    config.dataset_params.data_root = str(folder / "data")
    torch.manual_seed(0)
    model = build_backbone(**to_dict(config.arch_params))
    training, validation = (
        open_images(config.dataset_params, split, World(), seed=0) for split in ("training", "validation")
    )
    run = Run(str(folder / config.output_model_path), config, World())
    train_backbone(model, config, training, validation, run, World(), Preemption())
    run.finish()
    return model.state_dict()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_images(tmp_path / "data", classes=4, training=8, validation=2)
    return tmp_path


def leave(monkeypatch: pytest.MonkeyPatch, mebibytes: float) -> None:
    monkeypatch.setattr("embedding.memory.free_bytes", lambda device: int(mebibytes * 2**20))


def test_a_batch_that_fits_is_not_cut(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert same_bits(train(pictures), train(pictures, micro_batch=None, output_model_path="whole.pt"))
    assert "micro_batch" not in capsys.readouterr().out


def test_a_batch_that_does_not_fit_is_cut_evenly_and_said_so(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = train(pictures, micro_batch=8, output_model_path="explicit.pt")
    leave(monkeypatch, 5.8)
    assert same_bits(train(pictures), expected)
    assert "micro_batch: 8 of 32 images fit at a time; batch statistics are theirs" in capsys.readouterr().out
    train(pictures, micro_batch=32, output_model_path="other.pt")
    assert "micro_batch: 32 images at a time may not fit into the memory; about " in capsys.readouterr().out


def test_a_run_goes_on_with_the_parts_that_it_began_with(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(pictures, micro_batch=8, epochs=3, output_model_path="explicit.pt")

    def stop(self: Run, state: dict[str, Any], history: list[dict[str, Any]]) -> None:
        save(self, state, history)
        if len(history) == 1:
            raise KeyboardInterrupt

    save = Run.save
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", stop)
        leave(patch, 5.8)
        with pytest.raises(KeyboardInterrupt):
            train(pictures, epochs=3)
    assert same_bits(train(pictures, epochs=3), expected)


def test_no_memory_for_a_single_image_or_for_the_views_that_are_compared(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(monkeypatch, 0.5)
    with pytest.raises(
        UserError, match=r"^dataset_params.image_size: not even one image of 16 px fits into the memory"
    ):
        train(pictures)
    simclr: dict[str, Any] = {"objective": "simclr", "label_smoothing": 0.0, "validate_every": 0}
    params = {**parse_yaml(BACKBONE)["dataset_params"]}
    del params["augmentation"]
    leave(monkeypatch, 12)
    message = (
        r"^dataset_params.batch_size: the 32 images of a process's batch do not fit into its memory, about \d+ would"
    )
    with pytest.raises(UserError, match=message):
        train(pictures, **simclr, dataset_params=params)
    leave(monkeypatch, 100)
    fitting = train(pictures, **simclr, dataset_params=params)
    leave(monkeypatch, 12)
    tried = train(pictures, **simclr, dataset_params=params, micro_batch=None, output_model_path="tried.pt")
    assert same_bits(tried, fitting)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"micro_batch": 31}, "micro_batch: parts of 31 of a process's 32 images leave one of a single image, and "),
        ({"micro_batch": 1}, "micro_batch: parts of 1 of a process's 32 images leave one of a single image, and "),
        ({"batch_size": 1}, "dataset_params.batch_size: 1 items a step over 1 processes leave one with 1, and "),
    ],
)
def test_a_single_image_where_batch_normalisation_needs_two(
    pictures: Path, values: dict[str, Any], message: str
) -> None:
    """Its last maps of 16 px images are 1 x 1 with the large stem; with the small one an image is enough."""
    given = parse_yaml(BACKBONE)
    if "batch_size" in values:
        values = {"dataset_params": {**given["dataset_params"], **values}}
    train(pictures, **values, epochs=1)
    with pytest.raises(UserError, match=f"^{message}batch normalisation needs 2"):
        train(pictures, **values, arch_params={**given["arch_params"], "stem": "imagenet"})
