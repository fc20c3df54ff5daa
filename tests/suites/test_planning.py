"""Plans: what a suite's stages become, and which mistakes show before the first of them runs."""

from pathlib import Path
from typing import Any

import pytest

from suites.config import SuiteConfig
from suites.methods import expand
from suites.planning import plan
from tests.suites import fake_suite
from tests.suites.fake_suite import read_suite, suite_values, write_config
from utils.config import build, read_config
from utils.errors import UserError

SUITES = Path(__file__).parents[2] / "configs" / "suites"


def test_data_that_no_stage_reads_is_not_prepared(root: Path) -> None:
    (root / "mine").mkdir()
    values = suite_values() | {"overrides": {"dataset_params": {"data_root": "mine"}}}
    assert [stage.name for stage in plan(read_suite(values), root)] == list(fake_suite.CONFIGS)


def test_reports_that_differ_behind_a_dot_have_pictures_of_their_own() -> None:
    reports = ("docs/v1.0", "docs/v1.1", "docs/v1.2.md")
    pictures = [str(read_suite(suite_values() | {"report": report}).picture("a.png")) for report in reports]
    assert pictures == ["docs/v1.0_a.png", "docs/v1.1_a.png", "docs/v1.2_a.png"]


def test_homes_and_variables_in_a_suite(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the plan reads and writes is where the stages, which get some of it as it is written, look for it."""
    monkeypatch.setenv("HOME", str(root / "home"))
    monkeypatch.setenv("DATA", "data_store")
    values = suite_values() | {"output_dir": "~/results"}
    values["stages"]["data"]["output"] = "$DATA/fake"
    values["stages"]["h"]["overrides"] = {
        "output_transformation_path": "~/h.pt",
        "dataset_params": {"data_root": "$DATA/fake"},
    }
    stages = {stage.name: stage for stage in plan(read_suite(values), root)}
    assert stages["data"].outputs == ["data_store/fake"]
    assert stages["h"].inputs["dataset_params.data_root"] == "data_store/fake"
    assert stages["h"].outputs[0] == f"{root}/home/h.pt"
    assert stages["eval_old_old"].config.output == f"{root}/home/results/stages/eval_old_old.json"
    assert stages["eval_old_old"].record == root / "home/results/stages/eval_old_old.record.json"


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


@pytest.mark.parametrize("spelling", ["interval_level", "confidence"])
def test_a_suite_override_may_be_spelt_in_two_ways(root: Path, spelling: str) -> None:
    values = suite_values() | {"overrides": {"eval_params": {spelling: 0.5}}}
    levels = [
        stage.config.eval_params.interval_level for stage in plan(read_suite(values), root) if "eval" in stage.name
    ]
    assert levels == [0.5, 0.5, 0.5]


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


def demo_without_sigma(values: dict[str, Any]) -> None:
    values["demo"] = "demo.gif"


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
        (demo_without_sigma, r"suite fake: demo: stage eval_new_old does not evaluate the order 'sigma'"),
        (same_output, r"stage new: writes checkpoints/quality0\.2\.pt, which stage old writes too"),
    ],
)
def test_a_mistake_shows_in_the_plan(root: Path, mistake: Any, message: str) -> None:
    values = suite_values()
    mistake(values)
    with pytest.raises(UserError, match=message):
        plan(read_suite(values), root)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["new_new"], "eval_new_ne", r"new_new: unknown 'eval_new_ne'; did you mean eval_new_new\?"),
        (["old_old"], "old", r"old_old: unknown 'old'"),  # a training is no evaluation
        (["tables", "no_backfilling", 0, "stage"], "x", r"tables\.no_backfilling\[0\]\.stage: unknown 'x'"),
        (["tables", "no_backfilling", 0, "order"], "random", r"tables\.no_backfilling\[0\]\.order"),
        (["tables", "backfilling", 0, "order"], None, r"tables\.backfilling\[0\]\.order"),
        (["tables", "no_backfilling", 0, "published"], [1, 2], r"published: should be three figures"),
        (["examples"], None, r"demo: needs `examples`"),
        (["stages", "old", "config"], None, r"stages\.old\.config: is missing"),
        (["stages", "old", "output"], "x", r"stages\.old\.script: train_backbone\.py takes `config`"),
        (["stages", "data", "output"], None, r"stages\.data\.script: prepare_dataset\.py takes"),
    ],
)
def test_a_suite_that_contradicts_itself_is_refused(keys: list[Any], value: Any, message: str) -> None:
    values = part = suite_values() | ({"demo": "demo.gif"} if keys == ["examples"] else {})
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    with pytest.raises(UserError, match=message):
        read_suite(values)


# What suites read that none of their stages makes.
MADE_ELSEWHERE = {
    "cifar100_32px_ablations": (
        *("checkpoints/cifar100_32px_old.pt", "checkpoints/cifar100_32px_new.pt"),
        "data_store/cifar-100-python",
    ),
    "cifar100_files": (
        *(f"embeddings/cifar100_{model}_{split}" for model in ("old", "new") for split in ("training", "validation")),
        "embeddings/cifar100_new_classifier.npy",
    ),
    "glyphs_ablations": ("checkpoints/glyphs_old.pt", "checkpoints/glyphs_new.pt", "data_store/glyphs"),
    "imagenet": ("data_store/imagenet-1.0.2/data/raw",),
}


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_suites_here_are_read_and_their_stages_fit_together(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = build(SuiteConfig, expand(read_config(path), str(path)), source=path)
    assert suite.name == path.stem
    assert suite.output_dir == f"results/{path.stem}"
    assert path.read_text().startswith(f"# python reproduce.py --config configs/suites/{path.name}")
    monkeypatch.chdir(tmp_path)
    for file in MADE_ELSEWHERE.get(path.stem, ()):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    assert [stage.name for stage in plan(suite, root=SUITES.parents[1])] == list(suite.stages)
