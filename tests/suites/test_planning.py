"""Plans: what a suite's stages become, and which mistakes show before the first of them runs."""

from pathlib import Path
from typing import Any

import pytest

from suites.config import SuiteConfig
from suites.methods import expand
from suites.planning import PlannedStage, plan
from tests.suites.fake_suite import CONFIGS, EVERY_STAGE, OLD, read_suite, write_config
from utils.config import build, read_config
from utils.errors import UserError
from utils.runs import decisive_values

SUITES = Path(__file__).parents[2] / "configs" / "suites"
ONCE = {"stages.old.once": True, "stages.new.once": True}


def planned(root: Path, changes: dict[str, Any]) -> dict[str, PlannedStage]:
    """The planned stages of the changed suite, by label."""
    return {stage.label: stage for stage in plan(read_suite(changes), root)}


def test_data_that_no_stage_reads_is_not_prepared(root: Path) -> None:
    (root / "mine").mkdir()
    assert list(planned(root, {"overrides.dataset_params.data_root": "mine"})) == EVERY_STAGE[1:]


def test_reports_that_differ_behind_a_dot_have_pictures_of_their_own() -> None:
    reports = ("docs/v1.0", "docs/v1.1", "docs/v1.2.md")
    pictures = [str(read_suite({"report": report}).picture("a.png")) for report in reports]
    assert pictures == ["docs/v1.0_a.png", "docs/v1.1_a.png", "docs/v1.2_a.png"]


def test_homes_and_variables_in_a_suite(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the plan reads and writes is where the stages, which get some of it as it is written, look for it."""
    monkeypatch.setenv("HOME", str(root / "home"))
    monkeypatch.setenv("DATA", "data_store")
    h = {"output_transformation_path": "~/h.pt", "dataset_params": {"data_root": "$DATA/fake"}}
    changes = {"output_dir": "~/results", "stages.data.output": "$DATA/fake", "stages.h.overrides": h}
    stages = planned(root, changes)
    assert stages["data"].outputs == ["data_store/fake"]
    assert stages["h"].inputs["dataset_params.data_root"] == "data_store/fake"
    assert stages["h"].outputs[0] == f"{root}/home/h.pt"
    assert stages["eval_old_old"].config.output == f"{root}/home/results/stages/eval_old_old.json"
    assert stages["eval_old_old"].record == root / "home/results/stages/eval_old_old.record.json"


def test_several_processes_for_every_stage_that_can_have_them(root: Path) -> None:
    stages = planned(root, {"processes": 2})
    assert "processes=2" in stages["old"].command
    assert "processes=2" not in stages["data"].command
    assert [stages[name].processes for name in ("data", "old", "eval_old_old")] == [1, 2, 2]
    ours = planned(root, {"processes": 2, "stages.old.overrides.processes": 3})
    assert [ours[name].processes for name in ("old", "eval_old_old")] == [3, 2]


def test_all_gpus_are_no_other_stage_than_one_process(root: Path) -> None:
    """What `auto` finds is this machine's: a finished stage stays finished on another, and from before there was it."""
    alone, auto, two = (planned(root, change) for change in ({"processes": 1}, {}, {"processes": 2}))
    for name in ("old", "eval_old_old"):
        assert auto[name].processes == 1
        assert decisive_values(alone[name].config) == decisive_values(auto[name].config)
        assert decisive_values(two[name].config) == decisive_values(auto[name].config)


def test_a_suite_override_leaves_out_sections_that_a_stage_goes_without(root: Path) -> None:
    outputs = {"output_transformation_path": "f.pt", "output_transformed_old_model_path": "f_old.pt"}
    write_config(root, "f", CONFIGS["h"] | outputs | {"objective_params": {"uncertainty_loss": {}}})
    changes = {
        "stages.f": {"script": "train_transformation.py", "config": "configs/f.yaml"},
        "overrides.objective_params.uncertainty_loss.mu_uncertainty": 0.25,
    }
    losses = [planned(root, changes)[name].config.objective_params.uncertainty_loss for name in ("f", "h")]
    assert losses[0].mu_uncertainty == 0.25
    assert losses[1] is None


@pytest.mark.parametrize("spelling", ["interval_level", "confidence"])
def test_a_suite_override_may_be_spelt_in_two_ways(root: Path, spelling: str) -> None:
    stages = planned(root, {f"overrides.eval_params.{spelling}": 0.5})
    assert [stage.config.eval_params.interval_level for stage in list(stages.values())[-3:]] == [0.5, 0.5, 0.5]


def test_one_seed_is_the_seed_of_every_stage_and_changes_no_path(root: Path) -> None:
    alone, seeded = planned(root, {}), planned(root, {"seeds": [7]})
    assert list(alone) == list(seeded)
    for stage, other in zip(seeded.values(), alone.values(), strict=True):
        assert (stage.inputs, stage.outputs, stage.record) == (other.inputs, other.outputs, other.record)
        assert stage.config is None or stage.config.seed == 7


def test_every_training_is_repeated_and_read_by_the_stages_of_its_seed(root: Path) -> None:
    stages = planned(root, {"seeds": [5, 3]})
    assert list(stages) == ["data", *(f"{name}_seed_{seed}" for seed in (5, 3) for name in EVERY_STAGE[1:])]
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


def test_what_is_marked_once_serves_all_seeds(root: Path) -> None:
    stages = planned(root, ONCE | {"seeds": [5, 3], "stages.new.overrides.seed": 9})
    assert (stages["old"].config.seed, stages["new"].config.seed) == (5, 9)
    assert stages["h_seed_3"].inputs["old_model_path"] == OLD
    assert {"eval_old_old", "eval_new_old_seed_5", "eval_new_old_seed_3"} < stages.keys()


@pytest.mark.parametrize("drawn", [{"interval_level": 0.9}, {"subset": {"imbalance": 3}}, {"backfilling": 1}])
def test_an_evaluation_that_draws_at_random_is_repeated(root: Path, drawn: dict[str, Any]) -> None:
    stages = planned(root, ONCE | {"seeds": [0, 1], "stages.eval_new_new.overrides.eval_params": drawn})
    repeated = {f"eval_new_new_seed_{seed}" for seed in (0, 1)}
    assert {label for label in stages if label.startswith("eval_new_new")} == repeated
    assert "eval_old_old" in stages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages.eval_new_old.overrides.eval_params.mapp": 1}, "(stage eval_new_old): unknown key `eval_params.mapp`"),
        (
            {"overrides.epocs": 1},
            "suite fake: overrides.epocs: no stage's config has this key; did you mean `overrides.e",
        ),
        ({"overrides.epochs": "many"}, "configs/backbone.yaml (stage old): epochs: should be a whole number"),
        ({"stages.eval_new_old.config": "configs/none.yaml"}, "none.yaml: there is no such config file"),
        (
            {"overrides.dataset_params.data_root": "x"},
            "stage old: dataset_params.data_root: there is no x, and no earlier",
        ),
        ({"stages.new.overrides.output_model_path": OLD}, f"stage new: writes {OLD}, which stage old writes too"),
        ({"tables.backfilling.0.order": "sigma"}, "[0].order: stage eval_new_old does not evaluate the order 'sigma'"),
        ({"demo": "demo.gif"}, "suite fake: demo: stage eval_new_old does not evaluate the order 'sigma'"),
        ({"new_new": "eval_new_ne"}, "new_new: unknown 'eval_new_ne'; did you mean eval_new_new?"),
        ({"old_old": "old"}, "old_old: unknown 'old'"),  # a training is no evaluation
        ({"tables.no_backfilling.0.stage": "x"}, "tables.no_backfilling[0].stage: unknown 'x'"),
        ({"tables.no_backfilling.0.order": "random"}, "tables.no_backfilling[0].order: every row with backfilling has"),
        ({"tables.backfilling.0.order": None}, "tables.backfilling[0].order: every row with backfilling has"),
        ({"tables.backfilling.0.new_new": "new"}, "tables.backfilling[0].new_new: unknown 'new'"),
        ({"tables.no_backfilling.0.published": [1, 2]}, "tables.no_backfilling[0].published: should be three figures"),
        ({"demo": "demo.gif", "examples": None}, "demo: needs `examples`"),
        ({"stages.old.config": None}, "stages.old.config: is missing"),
        ({"stages.old.output": "x"}, "stages.old.script: train_backbone.py takes `config`"),
        ({"stages.data.output": None}, "stages.data.script: prepare_dataset.py takes"),
        ({"seeds": []}, "seeds: should be one or more different whole numbers from 0 on, got []"),
        ({"seeds": [1, 1]}, "seeds: should be one or more different"),
        ({"seeds": [-1]}, "seeds: should be one or more different"),
        ({"seeds": [0, 1], "overrides.seed": 1}, "seeds: contradicts overrides.seed"),
        ({"seeds": [0, 1], "stages.old.overrides.seed": 9}, "overrides.seed: contradicts seeds; mark the stage `once"),
        ({"seeds": [0, 1], "stages.h.once": True}, f"stages.h.once: old_model_path: {OLD} is made for each seed"),
        (
            {"only": ["h"]},
            f"stage h: old_model_path: there is no {OLD}, and stage old, which `only` leaves out, makes it",
        ),
        ({"only": ["hh"]}, "only: unknown 'hh'; did you mean h?"),
    ],
)
def test_a_mistake_shows_before_the_first_stage_runs(root: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        planned(root, changes)
    assert message in str(error.value)


# What suites read that none of their stages makes.
MADE_ELSEWHERE = {
    "cifar100_32px_ablations": (
        *("checkpoints/cifar100_32px_old.pt", "checkpoints/cifar100_32px_new.pt"),
        "data_store/cifar-100-python",
    ),
    "cifar100_32px_generations": tuple(f"checkpoints/cifar100_32px_{name}.pt" for name in ("old", "new", "side_info")),
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
