"""Several seeds: which stages are repeated, on what, into which files; and parts of a suite."""

import json
from pathlib import Path
from typing import Any

import pytest

from suites.planning import PlannedStage, plan
from suites.stages import content_of, run_stage
from tests.suites import fake_suite
from tests.suites.fake_suite import calls, read_suite, suite_values
from utils.errors import UserError

ONCE = ("old", "new")


def seeded(*once: str, seeds: Any = (0, 1, 2), **others: Any) -> dict[str, Any]:
    """The fake suite with seeds and with the stages `once` marked so."""
    values = suite_values() | {"seeds": list(seeds), **others}
    for name in once:
        values["stages"][name]["once"] = True
    return values


def planned(root: Path, values: dict[str, Any]) -> dict[str, PlannedStage]:
    return {stage.label: stage for stage in plan(read_suite(values), root)}


def run(root: Path, values: dict[str, Any]) -> list[str]:
    """Run the suite's stages in turn; return the labels of those that did run."""
    ran = []
    content_of.cache_clear()
    for stage in plan(read_suite(values), root):
        run_stage(stage, heading=stage.label)
        ran += [stage.label] * len(calls(root))
    return ran


def test_one_seed_is_the_seed_of_every_stage_and_changes_no_path(root: Path) -> None:
    alone, seeded_stages = planned(root, suite_values()), planned(root, seeded(seeds=[7]))
    assert list(alone) == list(seeded_stages)
    for name, stage in seeded_stages.items():
        assert (stage.inputs, stage.outputs, stage.record) == (
            alone[name].inputs,
            alone[name].outputs,
            alone[name].record,
        )
        assert stage.config is None or stage.config.seed == 7


def test_every_training_is_repeated_and_read_by_the_stages_of_its_seed(root: Path) -> None:
    stages = planned(root, seeded(seeds=[5, 3]))
    repeated = list(fake_suite.CONFIGS)
    assert list(stages) == ["data", *(f"{name}_seed_{seed}" for seed in (5, 3) for name in repeated)]
    h = stages["h_seed_3"]
    assert h.config.seed == 3
    assert h.inputs["old_model_path"] == "checkpoints/quality0.2_seed_3.pt"
    assert h.outputs == ["checkpoints/h_seed_3.pt", "checkpoints/quality0.4_seed_3.pt"]
    evaluation = stages["eval_new_old_seed_3"]
    assert evaluation.inputs["gallery_model_path"] == "checkpoints/quality0.4_seed_3.pt"
    assert evaluation.config.output == "results/fake/stages/eval_new_old_seed_3.json"
    assert evaluation.config.eval_params.embeddings_output_dir == "results/fake/embeddings/eval_new_old_seed_3"
    assert 'gallery_model_path="checkpoints/quality0.4_seed_3.pt"' in evaluation.command
    outputs = [path for stage in stages.values() for path in (*stage.outputs, str(stage.record))]
    assert len(set(outputs)) == len(outputs)


def test_an_evaluation_of_items_that_are_drawn_runs_for_each_seed(root: Path) -> None:
    values = seeded("old", "new")
    values["stages"]["eval_new_new"]["overrides"] = {"eval_params": {"subset": {"imbalance": 3}}}
    planned = [(stage.name, stage.seed) for stage in plan(read_suite(values), root)]
    assert [seed for name, seed in planned if name == "eval_new_new"] == [0, 1, 2]
    assert [seed for name, seed in planned if name == "eval_old_old"] == [None]


def test_what_is_marked_once_and_evaluations_of_it_serve_all_seeds(root: Path) -> None:
    stages = planned(root, seeded(*ONCE, seeds=[5, 3]))
    shared = ["data", "old", "new", "eval_old_old", "eval_new_new"]
    assert [label for label, stage in stages.items() if stage.seed is None] == shared
    assert stages["old"].config.seed == 5
    assert stages["h_seed_3"].inputs["old_model_path"] == fake_suite.OLD
    assert sorted(stages) == sorted([*shared, *(f"{name}_seed_{s}" for s in (5, 3) for name in ("h", "eval_new_old"))])


def test_an_evaluation_that_draws_at_random_is_repeated(root: Path) -> None:
    values = seeded(*ONCE, "h", seeds=[0, 1])
    values["stages"]["eval_new_new"]["overrides"] = {"eval_params": {"interval_level": 0.9}}
    repeated = {stage.name for stage in planned(root, values).values() if stage.seed is not None}
    assert repeated == {"eval_new_new", "eval_new_old"}  # bootstrap; random order


def test_seeds_run_and_run_again_only_where_something_changed(root: Path) -> None:
    everything = run(root, seeded(*ONCE, seeds=[0, 1]))
    assert everything == list(planned(root, seeded(*ONCE, seeds=[0, 1])))
    assert json.loads(Path("checkpoints/h_seed_1.pt").read_text()) == [2, 1]  # epochs, seed
    assert run(root, seeded(*ONCE, seeds=[0, 1])) == []
    assert run(root, seeded(*ONCE, seeds=[0, 1, 2])) == ["h_seed_2", "eval_new_old_seed_2"]
    Path("checkpoints/h_seed_1.pt").unlink()
    assert run(root, seeded(*ONCE, seeds=[0, 1, 2])) == ["h_seed_1"]


def test_an_interrupted_seed_goes_on(root: Path) -> None:
    run(root, seeded(*ONCE, seeds=[0], only=["data", "old", "new"]))
    (root / "train_transformation.fails").write_text("130")
    with pytest.raises(KeyboardInterrupt):
        run(root, seeded(*ONCE, seeds=[0, 1]))
    (root / "train_transformation.fails").unlink()
    calls(root)
    for stage in plan(read_suite(seeded(*ONCE, seeds=[0, 1], only=["h"])), root):
        run_stage(stage, heading=stage.label)
    first, second = calls(root)
    assert "resume=false" not in first
    assert "resume=false" in second


def test_parts_of_a_suite(root: Path) -> None:
    values = seeded(*ONCE, seeds=[0, 1])
    assert run(root, values | {"only": ["data", "new"]}) == ["data", "new"]
    with pytest.raises(
        UserError, match=r"^stage h_seed_0: old_model_path: .*quality0\.2\.pt, and stage old, which `only`"
    ):
        plan(read_suite(values | {"only": ["h"]}), root)
    assert run(root, values | {"only": ["old"]}) == ["old"]
    assert run(root, values | {"only": ["h"]}) == ["h_seed_0", "h_seed_1"]
    evaluations = ["eval_old_old", "eval_new_new", "eval_new_old_seed_0", "eval_new_old_seed_1"]
    assert run(root, values) == evaluations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, r"seeds: should be one or more different whole numbers from 0 on, got \[\]"),
        ({"seeds": [1, 1]}, r"seeds: should be one or more different"),
        ({"seeds": [-1]}, r"seeds: should be one or more different"),
        ({"seeds": ["a"]}, r"seeds\[0\]: should be a whole number"),
        ({"overrides": {"seed": 1}}, r"seeds: contradicts overrides\.seed"),
        ({"only": ["hh"]}, r"only: unknown 'hh'; did you mean h\?"),
    ],
)
def test_bad_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_suite(seeded() | changes)


def test_a_stage_with_a_seed_of_its_own_runs_once() -> None:
    values = seeded()
    values["stages"]["old"]["overrides"] = {"seed": 9}
    with pytest.raises(UserError, match=r"stages\.old\.overrides\.seed: contradicts seeds; mark the stage `once"):
        read_suite(values)
    values["stages"]["old"]["once"] = True
    read_suite(values)


def test_once_on_what_is_repeated_is_refused(root: Path) -> None:
    with pytest.raises(
        UserError, match=r"stages\.h\.once: old_model_path: checkpoints/quality0\.2\.pt is made for each"
    ):
        plan(read_suite(seeded("h")), root)
