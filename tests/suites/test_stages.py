"""Running stages: which run again, and how they end."""

import json
from pathlib import Path
from typing import Any

import pytest

from suites.stages import StageFailed
from tests.suites.fake_suite import EVERY_STAGE, H_OLD, OLD, run
from utils.errors import UserError
from utils.preemption import Preempted

EVALUATIONS = EVERY_STAGE[-3:]
SEEDED = {"seeds": [0, 1], "stages.old.once": True, "stages.new.once": True}


def stop(root: Path, code: int = 75, changes: dict[str, Any] | None = None) -> BaseException:
    """Run the suite while its transformation ends with this exit code -> what that raises."""
    file = root / "train_transformation.fails"
    file.write_text(str(code))
    with pytest.raises((KeyboardInterrupt, Preempted, StageFailed)) as end:
        run(root, changes)
    file.unlink()
    return end.value


def path_of_record(stage: str) -> Path:
    return Path(f"results/fake/stages/{stage}.record.json")


def record_of(stage: str) -> dict[str, Any]:
    return json.loads(path_of_record(stage).read_text())


def test_a_stage_runs_again_only_where_its_result_may_change(root: Path) -> None:
    assert run(root) == EVERY_STAGE
    assert run(root) == []
    data = root / "data_store" / "fake"
    (data / ".decoded").mkdir()
    for file in ("notes.txt", ".decoded/a.npy", "training/.stamp"):  # no images of a split
        (data / file).write_bytes(b"something")
    assert run(root, {"overrides.dataset_params.num_workers": 0, "overrides.eval_params.verbose": False}) == []
    assert run(root, {"stages.h.overrides.epochs": 5}) == ["h", "eval_new_old"]
    (data / "training" / "0" / "more.png").write_bytes(b"an image")
    assert run(root) == EVERY_STAGE


def test_a_suite_override_reaches_every_stage_that_has_the_key_unless_that_has_its_own(root: Path) -> None:
    run(root, {"overrides.epochs": 7, "stages.h.overrides.epochs": 5})
    assert [json.loads(Path(path).read_text())[0] for path in (OLD, H_OLD)] == [7, 5]


def test_a_changed_input_file_runs_what_reads_it(root: Path) -> None:
    mine = {"stages.h.overrides.old_model_path": "mine.pt"}
    Path("mine.pt").write_text("a model")
    assert run(root, mine) == EVERY_STAGE
    Path("mine.pt").write_text("A model")  # of the same size
    assert run(root, mine) == ["h"]  # and the same comes out: the evaluations stand


def test_a_lost_or_changed_output_is_made_again_and_so_is_one_without_a_readable_record(root: Path) -> None:
    run(root)
    Path(H_OLD).unlink()
    assert run(root) == ["h"]
    Path(H_OLD).write_text("something else")
    assert run(root) == ["h"]
    path_of_record("old").write_text("{")
    path_of_record("new").write_text('{"version": 99}')
    assert run(root) == ["old", "new"]


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (130, KeyboardInterrupt, ""),
        (75, Preempted, "stage h was stopped by SIGTERM; run the same command again"),
        (143, Preempted, "stage h was stopped by SIGTERM; run the same command again"),
        (1, StageFailed, "stage h failed (exit code 1)"),
    ],
)
def test_a_stage_that_ends_early_ends_the_suite_and_goes_on_from_its_checkpoint(
    root: Path, code: int, error: type, message: str
) -> None:
    end = stop(root, code)
    assert type(end) is error
    assert str(end).startswith(message)
    assert getattr(end, "code", code) == code
    before = record_of("h")
    assert before["status"] == "started"
    assert before["seconds"] > 0
    assert run(root) == ["h goes on", *EVALUATIONS]
    assert record_of("h")["status"] == "finished"
    assert record_of("h")["seconds"] > before["seconds"]  # of both attempts


def test_an_interrupted_stage_with_another_config_starts_afresh(root: Path) -> None:
    stop(root)
    assert run(root, {"stages.h.overrides.epochs": 5}) == ["h", *EVALUATIONS]


@pytest.mark.parametrize("known", [True, False])  # as an older version left it
def test_a_record_keeps_the_revisions_that_ran_its_stage_and_makes_none_up(
    root: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    monkeypatch.setattr("suites.stages.git_revision", lambda: "first")
    stop(root)
    for name in () if known else ("old", "h"):
        record = record_of(name)
        del record["environment"]["git_revisions"]
        path_of_record(name).write_text(json.dumps(record))
    monkeypatch.setattr("suites.stages.git_revision", lambda: "second")
    assert run(root) == ["h goes on", *EVALUATIONS]
    revisions = [record_of(name)["environment"].get("git_revisions") for name in ("old", "h", "eval_new_old")]
    assert revisions == [["first"] if known else None, ["first" if known else None, "second"], ["second"]]


@pytest.mark.parametrize(("script", "stage"), [("train_backbone.py", "old"), ("eval.py", "eval_old_old")])
def test_a_stage_that_ends_well_without_its_output_is_an_error(root: Path, script: str, stage: str) -> None:
    (root / script).write_text("")
    with pytest.raises(UserError, match=rf"^stage {stage}: {script} ended without having written \S+"):
        run(root)
    assert record_of(stage)["status"] == "started"


def test_seeds_run_and_run_again_only_where_something_changed(root: Path) -> None:
    shared, evaluations = ["data", "old", "new"], ["eval_old_old", "eval_new_new", "eval_new_old_seed_0"]
    of_second_seed = ["h_seed_1", "eval_new_old_seed_1"]
    assert run(root, SEEDED) == [*shared, "h_seed_0", *evaluations, *of_second_seed]
    assert json.loads(Path("checkpoints/h_seed_1.pt").read_text()) == [2, 1]  # epochs, seed
    assert run(root, SEEDED) == []
    assert run(root, SEEDED | {"seeds": [0, 1, 2]}) == ["h_seed_2", "eval_new_old_seed_2"]
    Path("checkpoints/h_seed_1.pt").unlink()
    assert run(root, SEEDED) == ["h_seed_1"]


def test_an_interrupted_seed_goes_on(root: Path) -> None:
    stop(root, 130, SEEDED)
    assert run(root, SEEDED | {"only": ["h"]}) == ["h_seed_0 goes on", "h_seed_1"]


def test_parts_of_a_suite(root: Path) -> None:
    assert run(root, SEEDED | {"only": ["data", "new"]}) == ["data", "new"]
    assert run(root, SEEDED | {"only": ["old"]}) == ["old"]
    assert run(root, SEEDED | {"only": ["h"]}) == ["h_seed_0", "h_seed_1"]
    assert run(root, SEEDED) == ["eval_old_old", "eval_new_new", "eval_new_old_seed_0", "eval_new_old_seed_1"]
