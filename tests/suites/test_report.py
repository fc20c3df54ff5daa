"""The report: figures of the right stage in the right cells, beside the published ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suites.config import SuiteConfig
from suites.planning import plan
from suites.report import report, tables
from suites.results import collect_results, gain_recovered
from suites.stages import Record
from suites.summary import over_seeds, summarise
from tests.suites.fake_suite import CONFIGS, read_suite, suite_values, write_suite
from utils.errors import UserError

MACHINE = {"python": "3.11", "torch": "2.11", "device": "a GPU", "cpu": "a CPU", "cores": 2}
ORDERS = ("random", "distance")
FIGURES = {"eval_old_old": 0.2, "eval_new_new": 0.6, "eval_new_old": 0.4}


def evaluation(quality: float, orders: tuple[str, ...] = ()) -> dict[str, Any]:
    metrics = {"cmc_top1": quality, "cmc_top5": quality + 0.1, "map": quality - 0.1}
    auc = {name: value + 0.1 for name, value in metrics.items()}
    curve = {"fractions": [0.0, 0.5, 1.0], **{name: [value] * 3 for name, value in metrics.items()}, "auc": auc}
    return {"distance_metric": "l2", "metrics": metrics, "backfilling": {order: dict(curve) for order in orders}}


def results_of(values: dict[str, Any], evaluations: dict[str, Any]) -> list[dict[str, Any]]:
    """Results for each seed, from the results of evaluations by the stages' labels."""
    suite: SuiteConfig = read_suite(values)
    stages = plan(suite, root=Path.cwd())
    suite.stages_dir.mkdir(parents=True)
    for name, result in evaluations.items():
        (suite.stages_dir / f"{name}.json").write_text(json.dumps(result))
    records = {stage.label: Record("", "finished", 61.0, {}, dict(MACHINE)) for stage in stages}
    command = "python reproduce.py --config configs/suite.yaml"
    return collect_results(suite, stages, records, command=command, data={"data_store/fake": STAMP})


STAMP = {
    "dataset": "cifar100",
    "source": "copy.tar.gz",
    "split": "local, split not verified",
    "images": {"training": 50000, "validation": 10000},
    "resized": None,
}


@pytest.fixture
def evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    write_suite(tmp_path)
    monkeypatch.chdir(tmp_path)
    return {name: evaluation(quality, ORDERS) for name, quality in FIGURES.items()}


def cells(text: str, heading: str) -> list[list[str]]:
    """The rows of the table below a heading, the header first, without the rule."""
    lines = text.partition(f"## {heading}\n")[2].partition("\n#")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [rows[0], *rows[2:]]


def test_rows_without_backfilling(evaluations: dict[str, Any]) -> None:
    header, old, new, side_info = cells(
        report(results_of(suite_values(), evaluations), {}), "Retrieval without backfilling"
    )
    assert header == ["case", "side-info", "CMC-1", "published", "CMC-5", "published", "mAP", "published"]
    assert old == ["old/old", "-", "20.0", "34.2", "30.0", "60.6", "10.0", "16.5"]
    assert new == ["new/new", "-", "60.0", "-", "70.0", "-", "50.0", "-"]
    assert side_info == ["FCT new/old", "yes", "not run", "50.2", "not run", "73.7", "not run", "32.2"]


def test_rows_with_backfilling(evaluations: dict[str, Any]) -> None:
    evaluations["eval_new_old"]["backfilling"]["distance"]["auc"] = {"cmc_top1": 0, "cmc_top5": 0, "map": 0}  # no row's
    _, fct, side_info = cells(report(results_of(suite_values(), evaluations), {}), "Area under the backfilling curve")
    # Gain: (0.5 - 0.2) / (0.6 - 0.2) for CMC-1; (0.4 - 0.1) / (0.5 - 0.1) for mAP.
    assert fct == ["FCT new/old", "no", "random", "50.0", "-", "60.0", "-", "40.0", "-", "75.0", "75.0"]
    assert side_info[2:] == ["random", "not run", "64.7", "not run", "82.4", "not run", "42.6", "-", "-"]


@pytest.mark.parametrize(
    ("revisions", "line"),
    [
        ({}, "Git revision: unknown"),
        ({name: ["a1"] for name in ("data", *CONFIGS)}, "Git revision: a1"),
        (
            {name: ["a1"] for name in CONFIGS} | {"h": ["b2"], "eval_new_old": ["b2"], "new": ["a1", "b2"]},
            "Git revision: a1; unknown (data); a1 and b2 (new); b2 (h, eval_new_old)",
        ),
        ({name: ["a1"] for name in CONFIGS} | {"data": [None]}, "Git revision: a1; unknown (data)"),
    ],
)
def test_the_revisions_are_those_that_ran_the_stages(
    evaluations: dict[str, Any], revisions: dict[str, list[str | None]], line: str
) -> None:
    (result,) = results_of(suite_values(), evaluations)
    for name, known in revisions.items():
        result["stages"][name]["environment"] = MACHINE | {"git_revisions": known}
    assert f"- {line}\n" in report([result], {})


def test_seeds_that_ran_at_different_revisions(evaluations: dict[str, Any]) -> None:
    results = results_of(suite_values(), evaluations) * 2
    results = [json.loads(json.dumps(result)) for result in results]
    for result, revision in zip(results, ("a1", "b2"), strict=True):
        for name, stage in result["stages"].items():
            stage["environment"] = MACHINE | {"git_revisions": [revision if name == "h" else "a1"]}
    assert "- Git revision: a1; a1 and b2 (h)\n" in report(results, {})


def test_columns_of_published_figures_only_where_there_are_any(evaluations: dict[str, Any]) -> None:
    values = suite_values()
    for rows in values["tables"].values():
        for row in rows:
            row.pop("published", None)
    assert "published" not in tables(summarise(results_of(values, evaluations)))


def test_without_map(evaluations: dict[str, Any]) -> None:
    for result in evaluations.values():
        result["metrics"]["map"] = None
        for curve in result["backfilling"].values():
            curve["auc"]["map"] = None
    _, fct, _ = cells(tables(summarise(results_of(suite_values(), evaluations))), "Area under the backfilling curve")
    assert fct[7] == "-"
    assert fct[9:] == ["75.0", "-"]


@pytest.mark.parametrize(
    ("auc", "old", "new", "share"),
    [(0.2, 0.2, 0.6, 0.0), (0.6, 0.2, 0.6, 1.0), (0.7, 0.2, 0.6, 1.25), (0.1, 0.2, 0.6, -0.25), (0.5, 0.6, 0.6, None)],
)
def test_gain_recovered(auc: float, old: float, new: float, share: float | None) -> None:
    assert gain_recovered(auc, old, new) == (None if share is None else pytest.approx(share))


def test_a_row_with_baselines_of_its_own(evaluations: dict[str, Any]) -> None:
    values = suite_values()
    values["tables"]["backfilling"][0] |= {"old_old": "eval_new_old", "new_new": "eval_old_old"}
    evaluations["eval_new_old"]["metrics"] = {"cmc_top1": 0.1, "cmc_top5": 0.2, "map": 0.0}
    evaluations["eval_old_old"]["metrics"] = {"cmc_top1": 0.9, "cmc_top5": 0.9, "map": 0.8}
    results = results_of(values, evaluations)
    _, fct, side_info = cells(tables(summarise(results)), "Area under the backfilling curve")
    assert (fct[3], fct[7]) == ("50.0", "40.0")
    assert fct[9:] == ["50.0", "50.0"]  # of 10 to 90, and of 0 to 80
    assert side_info[9:] == ["-", "-"]
    (row, _) = summarise(results).backfilling
    assert row.new_new is not None
    assert row.new_new["cmc_top1"] == over_seeds([0.9])
    values["tables"]["backfilling"][0]["new_new"] = "new"
    with pytest.raises(UserError, match=r"tables\.backfilling\[0\]\.new_new: unknown 'new'; .*eval_new_new"):
        read_suite(values)


def test_the_report_says_how_it_was_made(evaluations: dict[str, Any]) -> None:
    results = results_of(suite_values() | {"notes": ["Mind the gap."]}, evaluations)
    text = report(results, {"curves": "my_backfilling.png"})
    assert text.startswith("# A fake suite\n\n    python reproduce.py --config configs/suite.yaml\n")
    known = ("a GPU", "2 CPU cores", "torch 2.11", "Seed: 0", "copy.tar.gz", "split not verified", "50,000 training")
    for part in (*known, "7 min 7 s in all", "\nMind the gap.\n", "(my_backfilling.png)"):
        assert part in text
    assert "Retrieval examples" not in text  # not drawn
    assert ["eval_new_old", "1 min 1 s"] in cells(text, "Time of each stage")
    assert "stand in for" not in text
    results[0]["data"]["data_store/fake"] = STAMP | {"held_out": 0.2, "resized": 256}
    text = report(results, {})
    assert "reduced to 256 pixels, and 20% of the former stand in for the latter" in text


def test_a_seed_for_each_stage_is_told(evaluations: dict[str, Any]) -> None:
    values = suite_values()
    values["stages"]["old"]["overrides"] = {"seed": 3}
    assert "- Seed: 0; old ran with seed 3\n" in report(results_of(values, evaluations), {})


def test_results_are_plain_values_with_all_that_was_measured(evaluations: dict[str, Any]) -> None:
    (results,) = results_of(suite_values(), evaluations)
    assert json.loads(json.dumps(results)) == results
    assert list(results["stages"]) == ["data", *CONFIGS]
    assert results["evaluations"] == evaluations
    assert results["no_backfilling"][0]["measured"] == evaluations["eval_old_old"]["metrics"]
    assert results["no_backfilling"][0]["published"] == {"cmc_top1": 34.2, "cmc_top5": 60.6, "map": 16.5}
    assert results["baselines"]["new_new"]["cmc_top1"] == 0.6
    assert {"python", "torch", "device", "cores"} <= results["environment"].keys()


def seeded_values() -> dict[str, Any]:
    """Two seeds of the transformation, on models that were trained once."""
    values = suite_values() | {"seeds": [3, 5]}
    for name in ("old", "new"):
        values["stages"][name]["once"] = True
    return values


def test_figures_over_seeds(evaluations: dict[str, Any]) -> None:
    once = {name: evaluations[name] for name in ("eval_old_old", "eval_new_new")}
    of_seeds = {f"eval_new_old_seed_{seed}": evaluation(quality, ORDERS) for seed, quality in ((3, 0.4), (5, 0.44))}
    text = report(results_of(seeded_values(), once | of_seeds), {})
    assert cells(text, "Retrieval without backfilling")[1][2] == "20.0"  # it ran once
    _, fct, _ = cells(text, "Area under the backfilling curve")
    # CMC-1 of 50 and 54: their deviation is the root of 8; of the gain, 75 and 85, the root of 50.
    assert fct[3] == "52.0 ± 2.8"
    assert fct[9] == "80.0 ± 7.1"
    once_stages = "data, old, new, eval_old_old, eval_new_new"
    assert f"- Seeds: 3, 5; once, with seed 3, for all: {once_stages}\n" in text
    assert "mean ± standard deviation (n - 1) over 2 seeds" in text
    assert ["h", "1 min 1 s, 1 min 1 s"] in cells(text, "Time of each stage")
    assert ["old", "1 min 1 s"] in cells(text, "Time of each stage")
    assert "- Time: 9 min 9 s in all\n" in text


def test_each_seed_has_results_of_its_own(evaluations: dict[str, Any]) -> None:
    once = {name: evaluations[name] for name in ("eval_old_old", "eval_new_new")}
    of_seeds = {f"eval_new_old_seed_{seed}": evaluation(quality, ORDERS) for seed, quality in ((3, 0.4), (5, 0.44))}
    first, second = results_of(seeded_values(), once | of_seeds)
    assert (first["seed"], second["seed"]) == (3, 5)
    assert second["evaluations"] == once | {"eval_new_old": of_seeds["eval_new_old_seed_5"]}
    assert second["stages"]["h"]["seed"] == 5
    assert second["stages"]["old"]["seed"] == 3


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{"), lambda path: path.write_text("[]")])
def test_a_result_that_cannot_be_read_is_named(evaluations: dict[str, Any], damage: Any) -> None:
    def collect() -> list[dict[str, Any]]:
        return results_of(suite_values(), evaluations)

    collect()
    path = Path("results/fake/stages/eval_new_new.json")
    damage(path)
    suite = read_suite(suite_values())
    stages = plan(suite, root=Path.cwd())
    with pytest.raises(UserError, match=rf"^{path}: is no result of eval\.py; delete it and run the command again"):
        collect_results(suite, stages, {}, command="", data={})


def test_curves_of_different_points_have_no_mean(evaluations: dict[str, Any]) -> None:
    once = {name: evaluations[name] for name in ("eval_old_old", "eval_new_new")}
    of_seeds = {f"eval_new_old_seed_{seed}": evaluation(0.4, ORDERS) for seed in (3, 5)}
    of_seeds["eval_new_old_seed_5"]["backfilling"]["random"]["fractions"] = [0.0, 0.4, 1.0]
    with pytest.raises(UserError, match="stage eval_new_old: its curves have different points"):
        summarise(results_of(seeded_values(), once | of_seeds))


def risk(kept: float, correlation: float) -> dict[str, Any]:
    return {
        "spearman": correlation,
        "coverages": [0.5, 1.0],
        "kept": [kept, 0.2],
        "oracle": [0.05, 0.2],
        "random": 0.2,
        "aurc": {"kept": kept, "oracle": 0.125, "random": 0.2},
    }


def test_how_good_each_order_is(evaluations: dict[str, Any]) -> None:
    orders = ("sigma", "distance", "confidence", "random")
    values = seeded_values()
    values["stages"]["eval_new_old"]["overrides"] = {"eval_params": {"backfilling_list": list(orders)}}
    row = values["tables"]["backfilling"][0]
    values["tables"]["backfilling"] = [row | {"order": order, "curve": order != "distance"} for order in orders]
    once = {name: evaluations[name] for name in ("eval_old_old", "eval_new_new")}
    of_seeds = {f"eval_new_old_seed_{seed}": evaluation(0.4, orders) for seed in (3, 5)}
    unjudged = report(results_of(values, once | of_seeds), {})
    assert "How good each order is" not in unjudged  # results of an earlier version
    for seed, correlation in ((3, 0.5), (5, 0.6)):
        judged = {
            order: {"alignment_error": risk(kept, correlation), "average_precision": risk(kept, correlation - 0.2)}
            for order, kept in (("sigma", 0.15), ("distance", 0.125), ("confidence", 0.175))
        }
        path = Path(f"results/fake/stages/eval_new_old_seed_{seed}.json")
        path.write_text(json.dumps(of_seeds[path.stem] | {"risk_coverage": judged}))
    suite = read_suite(values)
    stages = plan(suite, root=Path.cwd())
    records = {stage.label: Record("", "finished", 61.0, {}, dict(MACHINE)) for stage in stages}
    results = collect_results(suite, stages, records, command="", data={})
    header, *rows = cells(report(results, {}), "How good each order is")
    assert header[2:] == ["risk", "order", "rank correlation", "AURC", "AURC, random", "AURC, oracle"]
    bounds = ("0.200 ± 0.000", "0.125 ± 0.000")
    assert rows == [  # one risk after the other; neither the random order nor a row without a curve
        ["FCT new/old", "no", "alignment error", "sigma", "0.550 ± 0.071", "0.150 ± 0.000", *bounds],
        ["FCT new/old", "no", "alignment error", "confidence", "0.550 ± 0.071", "0.175 ± 0.000", *bounds],
        ["FCT new/old", "no", "1 - AP", "sigma", "0.350 ± 0.071", "0.150 ± 0.000", *bounds],
        ["FCT new/old", "no", "1 - AP", "confidence", "0.350 ± 0.071", "0.175 ± 0.000", *bounds],
    ]


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=6))
def test_mean_and_deviation_are_numpys(values: list[float]) -> None:
    figure = over_seeds(values)
    assert figure is not None
    assert figure.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert figure.deviation == pytest.approx(np.std(values, ddof=1), abs=1e-9)


def test_a_figure_that_one_seed_lacks_is_none() -> None:
    assert over_seeds([0.5, None]) is None
