"""A run goes on only from its own checkpoint."""

import json
import os
import re
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.config import DatasetParams
from evaluation.config import EvalParams
from trainers.transformation.config import ObjectiveParams
from utils.config import build, key, read_yaml
from utils.data_roots import Contents
from utils.distributed import World
from utils.errors import UserError
from utils.precision import Precision
from utils.runs import Run, decisive_values, fingerprint


@dataclass
class Config:
    model: str = key(doc="input", path="input")
    output: str = key(doc="output", path="output")
    lr: float = key(0.1, doc="rate")
    num_workers: int = key(4, doc="neutral")
    verbose: bool = key(True, doc="neutral")
    resume: bool = key(True, doc="neutral")
    dataset_params: DatasetParams | None = key(None, doc="images")
    precision: Precision = key("fp32", doc="arithmetic")


HISTORY: list[dict[str, Any]] = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "in.pt").write_text("a model")
    return Config(model=str(tmp_path / "in.pt"), output=str(tmp_path / "runs" / "my.model.pt"))


def start(config: Config) -> Run:
    return Run(config.output, config, World())


@pytest.fixture
def interrupted(config: Config) -> Run:
    run = start(config)
    run.save({"weights": torch.arange(3.0), "step": 7}, HISTORY)
    return run


def test_a_run_writes_its_files_beside_its_output(config: Config, interrupted: Run) -> None:
    folder = Path(config.output).parent
    files = {path.name for path in folder.iterdir()}
    assert files == {"my.model.config.yaml", "my.model.log.jsonl", "my.model.checkpoint.pt"}
    assert build(Config, read_yaml(folder / "my.model.config.yaml"), source="resolved") == config
    lines = (folder / "my.model.log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == HISTORY
    interrupted.finish()
    assert {path.name for path in folder.iterdir()} == files - {"my.model.checkpoint.pt"}


def test_outputs_that_differ_behind_a_dot_have_files_of_their_own(config: Config) -> None:
    folder = Path(config.output).parent
    runs = {name: start(replace(config, output=str(folder / name))) for name in ("fct_v1.0", "fct_v1.1")}
    runs["fct_v1.0"].save({"step": 7}, HISTORY)
    assert start(runs["fct_v1.1"].config).restore() is None
    restored = start(runs["fct_v1.0"].config).restore()
    assert restored is not None
    assert restored[0] == {"step": 7}
    assert {path.name for path in folder.iterdir()} == {
        "fct_v1.0.config.yaml",
        "fct_v1.1.config.yaml",
        "fct_v1.0.log.jsonl",
        "fct_v1.0.checkpoint.pt",
    }


def test_a_run_whose_other_output_cannot_be_written_does_not_begin(tmp_path: Path) -> None:
    (tmp_path / "in.pt").write_text("a model")
    (tmp_path / "file").touch()
    config = Config(model=str(tmp_path / "in.pt"), output=str(tmp_path / "file" / "below.pt"))
    with pytest.raises(UserError, match=rf"output: {config.output} cannot be written: {tmp_path}/file is no folder"):
        Run(str(tmp_path / "mine.pt"), config, World())
    assert {path.name for path in tmp_path.iterdir()} == {"in.pt", "file"}


def test_the_same_run_goes_on(config: Config, interrupted: Run) -> None:
    restored = start(config).restore()
    assert restored is not None
    state, history = restored
    assert state["weights"].tolist() == [0.0, 1.0, 2.0]
    assert state["step"] == 7
    assert history == HISTORY


def test_a_fresh_run_has_nothing_to_go_on_from(config: Config) -> None:
    assert start(config).restore() is None


def test_resume_off_starts_again(config: Config, interrupted: Run) -> None:
    assert start(replace(config, resume=False)).restore() is None
    assert not interrupted.checkpoint_path.exists()


def test_neutral_keys_do_not_make_another_run(config: Config, interrupted: Run) -> None:
    assert start(replace(config, num_workers=0, verbose=False)).restore() is not None


def test_a_run_keeps_the_precision_that_it_began_with(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, precision="auto")
    monkeypatch.setattr("utils.runs.resolve_precision", lambda choice, device: "bf16")
    start(config).save({}, HISTORY)
    monkeypatch.setattr("utils.runs.resolve_precision", lambda choice, device: "fp32")  # another machine
    assert start(config).precision == "bf16"
    assert start(replace(config, resume=False)).precision == "fp32"


def test_a_run_keeps_what_the_machine_decided_when_it_began(config: Config) -> None:
    begun = start(config)
    assert begun.decide("micro_batch", lambda: 8) == 8
    begun.save({}, HISTORY)
    assert start(config).decide("micro_batch", lambda: 16) == 8  # another machine
    assert start(replace(config, resume=False)).decide("micro_batch", lambda: 16) == 16


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
        start(replace(config, lr=0.2)).restore()
    resolved = interrupted.config_path.read_text()
    Path(config.model).write_text("another model")
    with pytest.raises(UserError, match=belongs):
        start(replace(config, num_workers=0)).restore()
    assert interrupted.config_path.read_text() == resolved  # what was refused has written nothing


def test_a_run_goes_on_with_the_images_that_it_began_with_alone(config: Config) -> None:
    config = replace(config, dataset_params=DatasetParams("cifar100", data_root="store", batch_size=2))
    began: Contents = {"training": {"cat": (5, "a"), "dog": (5, "b")}, "validation": {"cat": (1, "c")}}
    changed: Contents = {**began, "training": {"cat": (5, "a"), "dog": (4, "d")}}

    def start_with(images: Contents | None, **changes: Any) -> Run:
        return Run(config.output, replace(config, **changes), World(), images)

    start_with(began).save({"step": 7}, HISTORY)
    assert start_with(began).restore() is not None
    checkpoint = re.escape(str(Path(config.output).with_suffix(".checkpoint.pt")))
    with pytest.raises(UserError) as refused:
        start_with(changed)
    assert re.fullmatch(
        rf"{checkpoint}: store does not hold the images that the run began with: "
        r"training images 10 then and 9 now \(class dog\);\nput those back, or pass resume=False to start again",
        str(refused.value),
    )
    assert start_with(began).restore() is not None  # what was refused has changed nothing
    assert start_with(None).restore() is not None  # a process that is not the main one does not look at them
    assert start_with(changed, resume=False).restore() is None


def test_a_checkpoint_that_says_nothing_of_images_goes_on(config: Config) -> None:
    """As earlier versions wrote them."""
    run = Run(config.output, config, World(), {"training": {"cat": (5, "a")}})
    run.save({"step": 7}, HISTORY)
    checkpoint = torch.load(run.checkpoint_path, weights_only=True)
    assert checkpoint.pop("images") == {"training": {"cat": (5, "a")}}
    torch.save(checkpoint, run.checkpoint_path)
    assert Run(config.output, config, World(), {"training": {"dog": (9, "z")}}).restore() is not None


def test_the_identity_looks_into_nested_sections_and_input_files(config: Config) -> None:
    before = fingerprint(config)
    assert fingerprint(replace(config)) == before
    Path(config.output).parent.mkdir()
    Path(config.output).write_text("outputs do not matter")
    assert fingerprint(config) == before
    Path(config.model).write_text("a Model")
    assert fingerprint(config) != before


def test_a_key_that_a_later_version_adds_at_its_default_makes_no_other_run(config: Config) -> None:
    later = make_dataclass("Later", [("momentum", float, field(default=0.9))], bases=(Config,))
    values = {name.name: getattr(config, name.name) for name in fields(config)}
    assert fingerprint(later(**values)) == fingerprint(config)
    assert fingerprint(later(**values, momentum=0.8)) != fingerprint(config)


def test_only_values_away_from_their_defaults_decide() -> None:
    loss = {"similarity_loss": {"name": "l1"}, "uncertainty_loss": {}}
    built = build(ObjectiveParams, loss, source="losses")
    assert decisive_values(built) == {"similarity_loss": {"name": "l1"}, "uncertainty_loss": {}}
    assert decisive_values(build(ObjectiveParams, {"similarity_loss": {}}, source="losses")) == {}
    assert decisive_values(EvalParams(verbose=False)) == decisive_values(EvalParams()) == {}


def test_a_key_that_has_another_name_now_makes_no_other_run() -> None:
    assert decisive_values(EvalParams(interval_level=0.95)) == {"confidence": 0.95}  # as finished suites hashed it


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b".", b"PK\x03\x04torn"])
def test_a_damaged_checkpoint_is_named(config: Config, interrupted: Run, content: bytes) -> None:
    interrupted.checkpoint_path.write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint\.pt: the checkpoint cannot be read; delete it, or pass resume="):
        start(config).restore()


def test_a_truncated_or_foreign_checkpoint_is_refused(config: Config, interrupted: Run) -> None:
    path = interrupted.checkpoint_path
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        start(config).restore()
    for foreign in ({"epoch": 3}, torch.zeros(2), None):
        torch.save(foreign, path)
        with pytest.raises(UserError, match="belongs to another"):
            start(config).restore()


def test_only_the_main_process_writes(config: Config) -> None:
    run = Run(config.output, config, World(rank=1, size=2))
    run.save({}, HISTORY)
    run.finish()
    assert not Path(config.output).parent.exists()
