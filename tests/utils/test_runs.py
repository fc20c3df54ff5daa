"""A run goes on only from its own checkpoint."""

import json
import os
import re
import sys
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.config import DatasetParams
from evaluation.config import EvalParams
from trainers.transformation.config import ObjectiveParams
from utils.choices import Precision
from utils.config import build, key, read_yaml
from utils.data_roots import Contents
from utils.distributed import World
from utils.errors import UserError
from utils.runs import Run, decisive_values, fingerprint


@dataclass
class Config:
    model: str = key(doc="input", path="input")
    output: str = key(doc="output", path="output")
    lr: float = key(0.1, doc="rate")
    num_workers: int = key(4, doc="neutral")
    verbose: bool = key(True, doc="neutral")
    resume: bool = key(True, doc="neutral")
    tensorboard: bool = key(False, doc="neutral")
    dataset_params: DatasetParams | None = key(None, doc="images")
    precision: Precision = key("fp32", doc="arithmetic")


HISTORY: list[dict[str, Any]] = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "in.pt").write_text("a model")
    return Config(model=str(tmp_path / "in.pt"), output=str(tmp_path / "runs" / "my.model.pt"))


def start(config: Config, images: Contents | None = None, **changes: Any) -> Run:
    config = replace(config, **changes)
    return Run(config.output, config, World(), images)


@pytest.fixture
def interrupted(config: Config) -> Run:
    run = start(config)
    run.save({"weights": torch.arange(3.0), "step": 7}, HISTORY)
    return run


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_writes_its_files_beside_its_output(config: Config, interrupted: Run) -> None:
    folder = Path(config.output).parent
    assert names(folder) == {"my.model.config.yaml", "my.model.log.jsonl", "my.model.checkpoint.pt"}
    assert build(Config, read_yaml(folder / "my.model.config.yaml"), source="resolved") == config
    lines = (folder / "my.model.log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == HISTORY
    interrupted.finish()
    assert names(folder) == {"my.model.config.yaml", "my.model.log.jsonl"}


def test_event_files_say_what_the_log_says_once_though_the_run_was_interrupted(config: Config) -> None:
    history = [{"epoch": epoch, "lr": 0.1, "loss": 2.0 / epoch, "note": "no number"} for epoch in (1, 2, 3)]
    history[2]["accuracy"] = 0.5
    interrupted = start(config, tensorboard=True)
    for epochs in (1, 1, 2):  # a checkpoint in the middle of the second
        interrupted.save({}, history[:epochs])
    again = start(config, tensorboard=True)
    assert again.restore() is not None
    again.save({}, history)
    again.finish()
    written = EventAccumulator(str(Path(config.output).with_name("my.model.tensorboard")), {"scalars": 0})
    written.Reload()
    assert written.Tags()["scalars"] == ["lr", "loss", "accuracy"]
    logged = [json.loads(line) for line in again.log_path.read_text().splitlines()]
    for name in ("lr", "loss", "accuracy"):
        expected = [(record["epoch"], pytest.approx(record[name])) for record in logged if name in record]
        assert [(event.step, event.value) for event in written.Scalars(name)] == expected


def test_without_tensorboard_a_run_that_asks_for_it_does_not_begin(
    config: Config, interrupted: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    before = names(Path(config.output).parent)
    with pytest.raises(UserError, match="tensorboard: needs tensorboard, which is not here: pip install tensorboard"):
        start(config, tensorboard=True, resume=False)
    assert names(Path(config.output).parent) == before


def test_a_run_whose_other_output_cannot_be_written_does_not_begin(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = replace(config, output=str(tmp_path / "file" / "below.pt"))
    with pytest.raises(UserError, match=rf"output: {config.output} cannot be written: {tmp_path}/file is no folder"):
        Run(str(tmp_path / "mine.pt"), config, World())
    assert names(tmp_path) == {"in.pt", "file"}


def test_the_same_run_goes_on_whatever_its_neutral_keys_and_starts_again_if_told_to(
    config: Config, interrupted: Run
) -> None:
    restored = start(config, num_workers=0, verbose=False).restore()
    assert restored is not None
    state, history = restored
    assert (state["weights"].tolist(), state["step"], history) == ([0.0, 1.0, 2.0], 7, HISTORY)
    assert start(config, resume=False).restore() is None
    assert not interrupted.checkpoint_path.exists()


def test_a_run_keeps_what_the_machine_decided_when_it_began(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, precision="auto")
    monkeypatch.setattr("utils.runs.resolve_precision", lambda choice, device: "bf16")
    begun = start(config)
    assert begun.decide("micro_batch", lambda: 8) == 8
    begun.save({}, HISTORY)
    monkeypatch.setattr("utils.runs.resolve_precision", lambda choice, device: "fp32")  # another machine
    for resume, expected in ((True, ("bf16", 8)), (False, ("fp32", 16))):
        run = start(config, resume=resume)
        assert (run.precision, run.decide("micro_batch", lambda: 16)) == expected


def test_temporary_files_of_a_killed_run_are_removed(config: Config, interrupted: Run) -> None:
    folder = Path(config.output).parent
    torn = [folder / f".my.model.{name}.1.tmp" for name in ("checkpoint.pt", "log.jsonl", "pt")]
    others = [folder / ".other.pt.1.tmp", folder / f".my.model.pt.{os.getpid()}.tmp"]
    for path in (*torn, *others):
        path.write_text("torn")
    start(config)
    assert not any(path.exists() for path in torn)
    assert all(path.exists() for path in others)


def test_another_config_or_other_inputs_are_refused(config: Config, interrupted: Run) -> None:
    belongs = re.escape(f"{interrupted.checkpoint_path}: the checkpoint belongs to another config or other input")
    with pytest.raises(UserError, match=belongs):
        start(config, lr=0.2)
    resolved = interrupted.config_path.read_text()
    Path(config.model).write_text("another model")
    with pytest.raises(UserError, match=belongs):
        start(config, num_workers=0)
    assert interrupted.config_path.read_text() == resolved  # what was refused has written nothing


def test_a_run_goes_on_with_the_images_that_it_began_with_alone(config: Config) -> None:
    config = replace(config, dataset_params=DatasetParams("cifar100", data_root="store", batch_size=2))
    began: Contents = {"training": {"cat": (5, "a"), "dog": (5, "b")}, "validation": {"cat": (1, "c")}}
    changed: Contents = {**began, "training": {"cat": (5, "a"), "dog": (4, "d")}}
    run = start(config, began)
    run.save({"step": 7}, HISTORY)
    with pytest.raises(UserError) as refused:
        start(config, changed)
    assert str(refused.value) == (
        f"{run.checkpoint_path}: store does not hold the images that the run began with: "
        "training images 10 then and 9 now (class dog);\nput those back, or pass resume=False to start again"
    )
    assert start(config, began).restore() is not None  # what was refused has changed nothing
    assert start(config, None).restore() is not None  # a process that is not the main one does not look at them
    checkpoint = torch.load(run.checkpoint_path, weights_only=True)
    del checkpoint["images"]  # as earlier versions wrote it
    torch.save(checkpoint, run.checkpoint_path)
    assert start(config, changed).restore() is not None
    assert start(config, changed, resume=False).restore() is None


def test_the_identity_is_of_input_files_and_of_values_away_from_their_defaults(config: Config) -> None:
    before = fingerprint(config)
    Path(config.output).parent.mkdir()
    Path(config.output).write_text("outputs do not matter")
    assert fingerprint(config) == before
    later = make_dataclass("Later", [("momentum", float, field(default=0.9))], bases=(Config,))
    values = {name.name: getattr(config, name.name) for name in fields(config)}
    assert fingerprint(later(**values)) == before
    assert fingerprint(later(**values, momentum=0.8)) != before
    Path(config.model).write_text("a Model")
    assert fingerprint(config) != before


@pytest.mark.parametrize(
    ("config", "decisive"),
    [
        (
            build(ObjectiveParams, {"similarity_loss": {"name": "l1"}, "uncertainty_loss": {}}, source="losses"),
            {"similarity_loss": {"name": "l1"}, "uncertainty_loss": {}},  # of which the default is none
        ),
        (build(ObjectiveParams, {"similarity_loss": {}}, source="losses"), {}),
        (EvalParams(verbose=False), {}),
        (EvalParams(interval_level=0.95), {"confidence": 0.95}),  # as finished suites hashed it
    ],
)
def test_only_values_away_from_their_defaults_decide_by_their_former_names(config: Any, decisive: Any) -> None:
    assert decisive_values(config) == decisive


def test_a_checkpoint_that_is_none_is_refused(config: Config, interrupted: Run) -> None:
    path = interrupted.checkpoint_path
    for content in (b"", b"not a checkpoint", b".", b"PK\x03\x04torn", path.read_bytes()[:-100]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{path}: the checkpoint cannot be read; delete it, or pass resume="):
            start(config)
    for foreign in ({"epoch": 3}, torch.zeros(2), None):
        torch.save(foreign, path)
        with pytest.raises(UserError, match="belongs to another"):
            start(config)


def test_only_the_main_process_writes(config: Config) -> None:
    run = Run(config.output, config, World(rank=1, size=2))
    run.save({}, HISTORY)
    run.finish()
    assert not Path(config.output).parent.exists()
