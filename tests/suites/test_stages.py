"""Running stages: which run again, and how they end."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from suites.planning import plan
from suites.stages import StageFailed, content_of, run_stage
from tests.suites import fake_suite
from tests.suites.fake_suite import calls, read_suite, suite_values, write_suite
from utils.errors import UserError
from utils.preemption import Preempted


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
    (finished / "data_store" / "fake" / "notes.txt").write_bytes(b"beside the splits")
    (finished / "data_store" / "fake" / ".decoded").mkdir()
    (finished / "data_store" / "fake" / ".decoded" / "a.npy").write_bytes(b"a cache")
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


@pytest.mark.parametrize("code", [75, 143])
def test_a_preempted_stage_is_no_failed_one_and_goes_on(root: Path, code: int) -> None:
    (root / "train_transformation.fails").write_text(str(code))
    with pytest.raises(Preempted, match="stage h was stopped by SIGTERM; run the same command again"):
        run(root)
    (root / "train_transformation.fails").unlink()
    calls(root)
    assert run(root) == ["train_transformation", "eval", "eval", "eval"]


def test_a_training_that_ends_well_without_its_model_is_an_error(root: Path) -> None:
    (root / "train_backbone.py").write_text("")
    with pytest.raises(UserError, match=r"^stage old: train_backbone\.py ended without having written \S*quality0\.2"):
        run(root)


def test_a_record_keeps_the_revisions_that_ran_its_stage(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def at(revision: str) -> None:
        monkeypatch.setattr("suites.stages.git_revision", lambda: revision)

    at("first")
    (root / "train_transformation.fails").write_text("75")
    with pytest.raises(Preempted):
        run(root)
    (root / "train_transformation.fails").unlink()
    at("second")
    run(root)
    at("third")
    run(root)  # nothing to do
    revisions = {name: record_of(name)["environment"]["git_revisions"] for name in ("old", "h", "eval_new_old")}
    assert revisions == {"old": ["first"], "h": ["first", "second"], "eval_new_old": ["second"]}


def test_the_revision_of_an_older_record_is_not_made_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suites.stages.git_revision", lambda: "now")
    (root / "train_transformation.fails").write_text("75")
    with pytest.raises(Preempted):
        run(root)
    for name in ("old", "h"):
        record = record_of(name)
        del record["environment"]["git_revisions"]
        Path(f"results/fake/stages/{name}.record.json").write_text(json.dumps(record))
    (root / "train_transformation.fails").unlink()
    calls(root)
    assert run(root)[0] == "train_transformation"
    assert "git_revisions" not in record_of("old")["environment"]
    assert record_of("h")["environment"]["git_revisions"] == [None, "now"]


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
