"""Suites: what is checked before the first stage runs, and which stages run again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from suites.planning import SuiteConfig, plan
from suites.stages import StageFailed, content_of, run_stage
from tests.suites import fake_suite
from tests.suites.fake_suite import calls, read_suite, suite_values, write_config, write_suite
from utils.config import build, read_yaml
from utils.errors import UserError

SUITES = Path(__file__).parents[2] / "configs" / "suites"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the fake suite, which is the current directory too."""
    write_suite(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished_suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    write_suite(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(folder)
    return folder


@pytest.fixture
def finished(root: Path, finished_suite: Path) -> Path:
    """The fake suite after a run, in a folder of its own."""
    shutil.copytree(finished_suite, root, dirs_exist_ok=True)
    return root


def run(root: Path, values: dict[str, Any] | None = None) -> list[str]:
    """Run the suite's stages in turn; return the scripts that were called, with `resume=false` noted."""
    content_of.cache_clear()  # as in a fresh process
    for stage in plan(read_suite(values or suite_values()), root):
        run_stage(stage, heading=stage.name)
    return [f"{call[0]} afresh" if "resume=false" in call else call[0] for call in calls(root)]


def record_of(stage: str) -> dict[str, Any]:
    return json.loads(Path(f"results/fake/stages/{stage}.record.json").read_text())


TRAINING = ["train_backbone afresh", "train_backbone afresh", "train_transformation afresh"]
EVERY_STAGE = ["prepare_dataset", *TRAINING, "eval", "eval", "eval"]


def test_a_second_run_skips_every_stage(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(root) == EVERY_STAGE
    assert "old: running\n" in capfd.readouterr().out
    assert run(root) == []
    assert capfd.readouterr().out.count(": up to date\n") == 7


def test_a_changed_override_runs_the_stage_and_what_depends_on_it(finished: Path) -> None:
    values = suite_values()
    values["stages"]["h"]["overrides"] = {"epochs": 5}
    assert run(finished, values) == ["train_transformation afresh", "eval"]


def test_a_suite_override_reaches_every_stage_that_has_the_key(finished: Path) -> None:
    values = suite_values()
    values["overrides"] = {"epochs": 7}
    values["stages"]["h"]["overrides"] = {"epochs": 5}  # wins
    run(finished, values)
    assert json.loads(Path(fake_suite.OLD).read_text())[0] == 7
    assert json.loads(Path(fake_suite.H_OLD).read_text())[0] == 5


@pytest.mark.parametrize("neutral", [{"dataset_params": {"num_workers": 0}}, {"eval_params": {"verbose": False}}])
def test_keys_that_cannot_change_a_result_run_nothing(finished: Path, neutral: dict[str, Any]) -> None:
    assert run(finished, suite_values() | {"overrides": neutral}) == []


def test_changed_data_runs_every_stage_that_reads_it(finished: Path) -> None:
    (finished / "data_store" / "fake" / "training" / "0" / "more.png").write_bytes(b"an image")
    assert run(finished) == EVERY_STAGE


def test_files_beside_the_splits_are_no_data(finished: Path) -> None:
    (finished / "data_store" / "fake" / "packed.npy").write_bytes(b"a cache")
    (finished / "data_store" / "fake" / "training" / ".stamp").write_bytes(b"hidden")
    assert run(finished) == []


def test_a_changed_input_file_runs_what_reads_it(root: Path) -> None:
    values = suite_values()
    del values["stages"]["old"]  # the user's own model
    Path(fake_suite.OLD).parent.mkdir()
    Path(fake_suite.OLD).write_text("a model")
    assert run(root, values) == ["prepare_dataset", *TRAINING[1:], "eval", "eval", "eval"]
    Path(fake_suite.OLD).write_text("A model")  # of the same size
    assert run(root, values) == ["train_transformation afresh", "eval"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("something else")])
def test_a_lost_or_changed_output_is_made_again(finished: Path, damage: Any) -> None:
    damage(Path("checkpoints/h.pt"))
    assert run(finished) == ["train_transformation afresh"]  # the same content as before: the evaluations stand


def test_an_interrupted_stage_goes_on_from_its_checkpoint(root: Path) -> None:
    (root / "train_transformation.fails").write_text("130")
    with pytest.raises(KeyboardInterrupt):
        run(root)
    assert record_of("h")["status"] == "started"
    seconds = record_of("h")["seconds"]
    assert seconds > 0
    (root / "train_transformation.fails").unlink()
    calls(root)
    assert run(root) == ["train_transformation", "eval", "eval", "eval"]
    assert record_of("h")["status"] == "finished"
    assert record_of("h")["seconds"] > seconds  # of both attempts


def test_an_interrupted_stage_with_another_config_starts_afresh(root: Path) -> None:
    (root / "train_transformation.fails").write_text("130")
    with pytest.raises(KeyboardInterrupt):
        run(root)
    (root / "train_transformation.fails").unlink()
    calls(root)
    values = suite_values()
    values["stages"]["h"]["overrides"] = {"epochs": 5}
    assert run(root, values)[0] == "train_transformation afresh"


def test_a_record_that_cannot_be_read_counts_as_none(finished: Path) -> None:
    Path("results/fake/stages/old.record.json").write_text("{")
    Path("results/fake/stages/new.record.json").write_text('{"version": 99}')
    assert run(finished)[:2] == ["train_backbone afresh", "train_backbone afresh"]


@pytest.mark.parametrize("code", [1, 2])
def test_a_failing_stage_is_named_and_ends_the_suite_with_its_code(root: Path, code: int) -> None:
    (root / "train_transformation.fails").write_text(str(code))
    with pytest.raises(StageFailed, match=rf"^stage h failed \(exit code {code}\)") as failure:
        run(root)
    assert failure.value.code == code
    assert [call[0] for call in calls(root)][-1] == "train_transformation"  # nothing after it


def test_a_stage_that_writes_nothing_is_an_error(root: Path) -> None:
    (root / "eval.py").write_text("")
    with pytest.raises(UserError, match=r"^stage eval_old_old: eval\.py ended without having written \S*eval_old_old"):
        run(root)
    assert record_of("eval_old_old")["status"] == "started"


def test_data_that_no_stage_reads_is_not_prepared(root: Path) -> None:
    (root / "mine").mkdir()
    values = suite_values() | {"overrides": {"dataset_params": {"data_root": "mine"}}}
    assert run(root, values) == EVERY_STAGE[1:]


def test_several_processes_run_by_torchrun(root: Path) -> None:
    commands = {stage.name: stage.command for stage in plan(read_suite(suite_values() | {"processes": 2}), root)}
    assert "--nproc_per_node=2" in commands["old"]
    assert "torch.distributed.run" not in commands["data"]


def test_a_suite_override_leaves_out_sections_that_a_stage_goes_without(root: Path) -> None:
    fastfill = fake_suite.CONFIGS["h"] | {
        "objective_params": {"uncertainty_loss": {}},
        "output_transformation_path": "checkpoints/f.pt",
        "output_transformed_old_model_path": "checkpoints/f_old.pt",
    }
    write_config(root, "f", fastfill)
    values = suite_values()
    values["stages"]["f"] = {"script": "train_transformation.py", "config": "configs/f.yaml"}
    values["overrides"] = {"objective_params": {"uncertainty_loss": {"mu_uncertainty": 0.25}}}
    configs = {stage.name: stage.config for stage in plan(read_suite(values), root)}
    assert configs["f"].objective_params.uncertainty_loss.mu_uncertainty == 0.25
    assert configs["h"].objective_params.uncertainty_loss is None


def stage_override(values: dict[str, Any]) -> None:
    values["stages"]["eval_new_old"]["overrides"] = {"eval_params": {"compute_mapp": False}}


def suite_override(values: dict[str, Any]) -> None:
    values["overrides"] = {"dataset_params": {"data_rot": "x"}}


def suite_override_of_a_wrong_type(values: dict[str, Any]) -> None:
    values["overrides"] = {"epochs": "many"}


def missing_config(values: dict[str, Any]) -> None:
    values["stages"]["eval_new_old"]["config"] = "configs/none.yaml"


def missing_input(values: dict[str, Any]) -> None:
    del values["stages"]["new"]


def missing_data(values: dict[str, Any]) -> None:
    values["overrides"] = {"dataset_params": {"data_root": "nowhere"}}


def order_not_evaluated(values: dict[str, Any]) -> None:
    values["tables"]["backfilling"][0]["order"] = "sigma"


def same_output(values: dict[str, Any]) -> None:
    values["stages"]["new"]["config"] = "configs/old.yaml"
    values["stages"]["h"]["overrides"] = {"new_model_path": fake_suite.OLD}


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (stage_override, r"eval_new_old\.yaml \(stage eval_new_old\): unknown key `eval_params\.compute_mapp`"),
        (
            suite_override,
            r"suite fake: overrides\.dataset_params\.data_rot: .*did you mean `overrides\.dataset_params\.d",
        ),
        (suite_override_of_a_wrong_type, r"old\.yaml \(stage old\): epochs: should be a whole number"),
        (missing_config, r"none\.yaml: there is no such config file"),
        (missing_input, r"stage h: new_model_path: there is no checkpoints/quality0\.6\.pt, and no earlier stage"),
        (missing_data, r"stage old: dataset_params\.data_root: there is no nowhere"),
        (order_not_evaluated, r"tables\.backfilling\[0\]\.order: stage eval_new_old does not evaluate .*'sigma'"),
        (same_output, r"stage new: writes checkpoints/quality0\.2\.pt, which stage old writes too"),
    ],
)
def test_mistakes_show_before_the_first_stage_runs(root: Path, mistake: Any, message: str) -> None:
    values = suite_values()
    mistake(values)
    with pytest.raises(UserError, match=message):
        run(root, values)
    assert calls(root) == []


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["new_new"], "eval_new_ne", r"new_new: unknown 'eval_new_ne'; did you mean eval_new_new\?"),
        (["old_old"], "old", r"old_old: unknown 'old'"),  # a training is no evaluation
        (["tables", "no_backfilling", 0, "stage"], "x", r"tables\.no_backfilling\[0\]\.stage: unknown 'x'"),
        (["tables", "no_backfilling", 0, "order"], "random", r"tables\.no_backfilling\[0\]\.order"),
        (["tables", "backfilling", 0, "order"], None, r"tables\.backfilling\[0\]\.order"),
        (["tables", "no_backfilling", 0, "published"], [1, 2], r"published: should be three figures"),
        (["stages", "old", "config"], None, r"stages\.old\.config: is missing"),
        (["stages", "old", "output"], "x", r"stages\.old\.script: train_backbone\.py takes `config`"),
        (["stages", "data", "output"], None, r"stages\.data\.script: prepare_dataset\.py takes"),
    ],
)
def test_a_suite_that_contradicts_itself_is_refused(keys: list[Any], value: Any, message: str) -> None:
    values = part = suite_values()
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    with pytest.raises(UserError, match=message):
        read_suite(values)


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_suites_here_are_read(path: Path) -> None:
    suite = build(SuiteConfig, read_yaml(path), source=path)
    assert suite.name == path.stem
    assert suite.output_dir == f"results/{path.stem}"
    assert f"configs/suites/{path.name}" in path.read_text().splitlines()[0]


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_stages_of_the_suites_here_fit_together(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = read_yaml(path) | {"overrides": {"dataset_params": {"data_root": str(tmp_path)}}}
    stages = plan(build(SuiteConfig, values, source=path), root=SUITES.parents[1])
    assert len(stages) == 8  # without the data stage, as no stage reads what it would make
    values = read_yaml(path)
    if "data" in values["stages"]:
        assert plan(build(SuiteConfig, values, source=path), root=SUITES.parents[1])[0].name == "data"
