"""Training a backbone: it learns, validates what it saves, and takes as many images at once as fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.backbones import build_backbone
from tests.tiny import same_bits, write_images
from tests.trainers.backbone.setting import setting_of, train
from tests.utils.processes import run_processes
from trainers.backbone.classification import Classification
from trainers.backbone.training import synchronise_batch_norms
from utils.distributed import World
from utils.errors import UserError
from utils.runs import Run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data", classes=4, training=8, validation=2)


def train_a_share(world: World, folder: str) -> None:
    setting = setting_of(Path(folder) / "data", world, epochs=3, validate_every=1, dataset_params={"batch_size": 12})
    records = train(Path(folder), setting, world)
    torch.save((setting.model.state_dict(), records), f"{folder}/{world.rank}.pt")


def test_what_several_processes_validate_is_what_the_main_one_saves(tmp_path: Path) -> None:
    write_images(tmp_path / "data", classes=3, training=12, validation=20)
    run_processes(train_a_share, 2, str(tmp_path))
    (weights, records), (others, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert same_bits(weights, others)
    assert records[-1]["loss"] < records[0]["loss"]
    setting = setting_of(tmp_path / "data")
    setting.model.load_state_dict(weights)
    (batch,) = setting.validation.view_batches(0, 60)
    with torch.no_grad():
        right = setting.model.eval()(batch.images)[0].argmax(1) == batch.labels
    assert records[-1]["validation_accuracy"] == pytest.approx(float(right.double().mean()))


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


def leave(monkeypatch: pytest.MonkeyPatch, mebibytes: float) -> None:
    monkeypatch.setattr("embedding.memory.free_bytes", lambda device: int(mebibytes * 2**20))


def weights_of(pictures: Path, name: str = "new", **values: Any) -> dict[str, torch.Tensor]:
    """Those after a training on 32 images, one batch an epoch."""
    setting = setting_of(pictures, output_model_path=f"{name}.pt", **values)
    train(pictures.parent, setting)
    return setting.model.state_dict()


def test_a_batch_is_cut_evenly_only_where_it_does_not_fit_and_that_is_said(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert same_bits(weights_of(pictures, "fitting"), weights_of(pictures, "whole", micro_batch=None))
    expected = weights_of(pictures, "explicit", micro_batch=8)
    assert "micro_batch" not in capsys.readouterr().out
    leave(monkeypatch, 5.8)
    assert same_bits(weights_of(pictures), expected)
    assert "micro_batch: 8 of 32 images fit at a time; batch statistics are theirs" in capsys.readouterr().out
    weights_of(pictures, "other", micro_batch=32)
    assert "micro_batch: 32 images at a time may not fit into the memory; about " in capsys.readouterr().out


def test_a_run_goes_on_with_the_parts_that_it_began_with(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = weights_of(pictures, "explicit", micro_batch=8, epochs=3)

    def stop(self: Run, state: dict[str, Any], history: list[dict[str, Any]]) -> None:
        save(self, state, history)
        if len(history) == 1:
            raise KeyboardInterrupt

    save = Run.save
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", stop)
        leave(patch, 5.8)
        with pytest.raises(KeyboardInterrupt):
            weights_of(pictures, epochs=3)
    assert same_bits(weights_of(pictures, epochs=3), expected)


def test_no_memory_for_a_single_image_or_for_the_views_that_are_compared(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(monkeypatch, 0.5)
    with pytest.raises(UserError, match=r"^dataset_params.image_size: not even one image of 16 px fits into the"):
        weights_of(pictures)
    simclr: dict[str, Any] = {"objective": "simclr", "label_smoothing": 0.0, "validate_every": 0}
    simclr["dataset_params"] = {"augmentation": None}
    leave(monkeypatch, 12)
    message = r"^dataset_params.batch_size: the 32 images of a process's batch do not fit .*, about \d+ would"
    with pytest.raises(UserError, match=message):
        weights_of(pictures, **simclr)
    tried = weights_of(pictures, "tried", micro_batch=None, **simclr)
    leave(monkeypatch, 100)
    assert same_bits(tried, weights_of(pictures, **simclr))


def test_a_single_image_is_refused_where_batch_normalisation_needs_two(pictures: Path) -> None:
    """Its last maps of 16 px images are 1 x 1 with the large stem; with the small one an image is enough."""
    weights_of(pictures, micro_batch=31, epochs=1)
    with pytest.raises(UserError, match=r"^micro_batch: parts of 31 of a process's 32 images leave one of a single"):
        weights_of(pictures, micro_batch=31, arch_params={"stem": "imagenet"})


def test_what_a_network_draws_is_a_function_of_seed_epoch_and_step(pictures: Path) -> None:
    """Whatever was drawn before: dropout of a resumed run has the masks of one that was not interrupted."""

    def drawn(epoch: int, **values: Any) -> list[float]:
        setting = setting_of(pictures, dataset_params={"batch_size": 8}, **values)
        task = Classification(setting.config, setting.training, setting.validation, "fp32", World())
        return [float(torch.rand(5)[-1]) for _ in task.batches(epoch)]

    first = drawn(0)
    torch.rand(7)
    assert drawn(0) == first
    assert len({*first, *drawn(1), *drawn(0, seed=1)}) == 3 * len(first) == 12
