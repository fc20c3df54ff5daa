"""The report: figures of the right stage in the right cells, beside the published ones."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suites.planning import plan
from suites.report import report, tables
from suites.results import METRICS, collect_results
from suites.stages import Record
from suites.summary import over_seeds, summarise
from tests.suites.fake_suite import EVERY_STAGE, evaluation, read_suite
from utils.errors import UserError

MACHINE = {"python": "3.11", "torch": "2.11", "device": "a GPU", "cpu": "a CPU", "cores": 2}
STAMP = {
    "dataset": "cifar100",
    "source": "copy.tar.gz",
    "split": "local, split not verified",
    "images": {"training": 50000, "validation": 10000},
    "resized": None,
}
# Two seeds of the transformation, on models that were trained once.
SEEDED = {"seeds": [3, 5], "stages.old.once": True, "stages.new.once": True}
ORDERS = ("random", "distance")
AREAS = "Area under the backfilling curve"


@pytest.fixture
def once(root: Path) -> dict[str, Any]:
    """What the evaluations of the models found, which are trained once; in the folder of the fake suite."""
    return {"eval_old_old": evaluation(0.2, ()), "eval_new_new": evaluation(0.6, ())}


@pytest.fixture
def evaluations(once: dict[str, Any]) -> dict[str, Any]:
    return once | {"eval_new_old": evaluation(0.4, ORDERS)}


def results_of(evaluations: dict[str, Any], changes: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Results for each seed of the changed suite, from the results of evaluations by the stages' labels."""
    suite = read_suite(changes)
    stages = plan(suite, root=Path.cwd())
    suite.stages_dir.mkdir(parents=True, exist_ok=True)
    for name, result in evaluations.items():
        (suite.stages_dir / f"{name}.json").write_text(result if isinstance(result, str) else json.dumps(result))
    records = {stage.label: Record("", "finished", 61.0, {}, dict(MACHINE)) for stage in stages}
    command = "python reproduce.py --config configs/suite.yaml"
    return collect_results(suite, stages, records, command=command, data={"data_store/fake": STAMP})


def cells(text: str, heading: str) -> list[list[str]]:
    """The rows of the table below a heading, the header first, without the rule."""
    lines = text.partition(f"## {heading}\n")[2].partition("\n#")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [rows[0], *rows[2:]]


def test_rows_have_the_figures_of_their_stage_beside_the_published_ones(evaluations: dict[str, Any]) -> None:
    evaluations["eval_new_old"]["backfilling"]["distance"]["auc"] = {"cmc_top1": 0, "cmc_top5": 0, "map": 0}  # no row's
    text = report(results_of(evaluations), {})
    assert cells(text, "Retrieval without backfilling") == [
        ["case", "side-info", "CMC-1", "published", "CMC-5", "published", "mAP", "published"],
        ["old/old", "-", "20.0", "34.2", "30.0", "60.6", "10.0", "16.5"],
        ["new/new", "-", "60.0", "-", "70.0", "-", "50.0", "-"],
        ["FCT new/old", "yes", "not run", "50.2", "not run", "73.7", "not run", "32.2"],
    ]
    _, fct, side_info = cells(text, AREAS)
    # Gain: (0.45 - 0.2) / (0.6 - 0.2) for CMC-1; (0.35 - 0.1) / (0.5 - 0.1) for mAP.
    assert fct == ["FCT new/old", "no", "random", "45.0", "-", "55.0", "-", "35.0", "-", "62.5", "62.5"]
    assert side_info[2:] == ["random", "not run", "64.7", "not run", "82.4", "not run", "42.6", "-", "-"]


def test_columns_of_published_figures_only_where_there_are_any(evaluations: dict[str, Any]) -> None:
    published = {"tables.no_backfilling.0.published": None, "tables.no_backfilling.2.published": None}
    results = results_of(evaluations, published | {"tables.backfilling.1.published": None})
    assert "published" not in tables(summarise(results))


def test_without_map(evaluations: dict[str, Any]) -> None:
    for result in evaluations.values():
        result["metrics"]["map"] = None
        for curve in result["backfilling"].values():
            curve["auc"]["map"] = None
    _, fct, _ = cells(tables(summarise(results_of(evaluations))), AREAS)
    assert fct[7] == "-"
    assert fct[9:] == ["62.5", "-"]


def test_regret_is_how_far_a_curve_falls_below_its_lower_end_and_its_line(evaluations: dict[str, Any]) -> None:
    curve = evaluations["eval_new_old"]["backfilling"]["random"]
    curve |= {"cmc_top1": [0.5, 0.4, 0.6], "cmc_top5": [0.5, 0.52, 0.6], "map": [0.5, 0.7, 0.6]}
    header, fct, side_info = cells(report(results_of(evaluations), {}), "Regret")
    assert header[3:] == [f"below {line}, {m}" for line in ("the lower end", "the line") for m in METRICS.values()]
    assert fct[3:] == ["10.0", "0.0", "0.0", "15.0", "3.0", "0.0"]
    assert side_info[3:] == ["-"] * 6


def test_a_row_with_baselines_of_its_own(evaluations: dict[str, Any]) -> None:
    evaluations["eval_new_old"]["metrics"] = {"cmc_top1": 0.1, "cmc_top5": 0.2, "map": 0.0}
    evaluations["eval_old_old"]["metrics"] = {"cmc_top1": 0.8, "cmc_top5": 0.9, "map": 0.4}
    own = {"tables.backfilling.0.old_old": "eval_new_old", "tables.backfilling.0.new_new": "eval_old_old"}
    summary = summarise(results_of(evaluations, own))
    _, fct, side_info = cells(tables(summary), AREAS)
    assert (fct[3], fct[7]) == ("45.0", "35.0")
    assert fct[9:] == ["50.0", "87.5"]  # of 10 to 80, and of 0 to 40
    assert side_info[9:] == ["-", "-"]
    new_new = summary.backfilling[0].new_new
    assert new_new is not None
    assert new_new["cmc_top1"] == over_seeds([0.8])


A1 = {name: ["a1"] for name in EVERY_STAGE}


@pytest.mark.parametrize(
    ("seeds", "line"),
    [
        ([{}], "Git revision: unknown"),
        (
            [A1 | {"data": [None], "h": ["b2"], "eval_new_old": ["b2"], "new": ["a1", "b2"]}],
            "Git revision: a1; unknown (data); a1 and b2 (new); b2 (h, eval_new_old)",
        ),
        ([A1, A1 | {"h": ["b2"]}], "Git revision: a1; a1 and b2 (h)"),
    ],
)
def test_the_revisions_are_those_that_ran_the_stages(
    evaluations: dict[str, Any], seeds: list[dict[str, list[str | None]]], line: str
) -> None:
    results = [copy.deepcopy(results_of(evaluations)[0]) for _ in seeds]
    for result, revisions in zip(results, seeds, strict=True):
        for name, known in revisions.items():
            result["stages"][name]["environment"] = MACHINE | {"git_revisions": known}
    assert f"- {line}\n" in report(results, {})


def test_the_report_says_how_it_was_made(evaluations: dict[str, Any]) -> None:
    results = results_of(evaluations, {"notes": ["Mind the gap."], "stages.old.overrides.seed": 3})
    text = report(results, {"curves": "my_backfilling.png"})
    assert text.startswith("# A fake suite\n\n    python reproduce.py --config configs/suite.yaml\n")
    known = ("a GPU", "2 CPU cores", "torch 2.11", "copy.tar.gz", "split not verified", "50,000 training")
    seeds = "- Seed: 0; old ran with seed 3\n"
    for part in (*known, seeds, "7 min 7 s in all", "\nMind the gap.\n", "(my_backfilling.png)"):
        assert part in text
    assert "Retrieval examples" not in text  # not drawn
    assert ["eval_new_old", "1 min 1 s"] in cells(text, "Time of each stage")
    assert "stand in for" not in text
    results[0]["data"]["data_store/fake"] = STAMP | {"held_out": 0.2, "resized": 256}
    assert "reduced to 256 pixels, and 20% of the former stand in for the latter" in report(results, {})


def test_figures_over_seeds(once: dict[str, Any]) -> None:
    of_seeds = {"eval_new_old_seed_3": evaluation(0.4, ORDERS), "eval_new_old_seed_5": evaluation(0.44, ORDERS)}
    results = results_of(once | of_seeds, SEEDED)
    seeds = [(each["seed"], each["stages"]["h"]["seed"], each["stages"]["old"]["seed"]) for each in results]
    assert seeds == [(3, 3, 3), (5, 5, 3)]
    assert results[1]["evaluations"] == once | {"eval_new_old": of_seeds["eval_new_old_seed_5"]}
    text = report(results, {})
    assert cells(text, "Retrieval without backfilling")[1][2] == "20.0"  # it ran once
    _, fct, _ = cells(text, AREAS)
    # CMC-1 of 45 and 49: their deviation is the root of 8; of the gain, 62.5 and 72.5, the root of 50.
    assert fct[3] == "47.0 ± 2.8"
    assert fct[9] == "67.5 ± 7.1"
    assert "mean ± standard deviation (n - 1) over 2 seeds" in text
    (row, _) = summarise(results).backfilling
    assert (row.curves["cmc_top1"][1].mean, row.curves["cmc_top1"][1].deviation) == pytest.approx((0.47, 0.0008**0.5))
    assert "- Seeds: 3, 5; once, with seed 3, for all: data, old, new, eval_old_old, eval_new_new\n" in text
    times = cells(text, "Time of each stage")
    assert ["h", "1 min 1 s, 1 min 1 s"] in times
    assert ["old", "1 min 1 s"] in times
    assert "- Time: 9 min 9 s in all\n" in text
    of_seeds["eval_new_old_seed_5"]["backfilling"]["random"]["fractions"] = [0.0, 0.4, 1.0]
    with pytest.raises(UserError, match="stage eval_new_old: its curves have different points"):
        summarise(results_of(once | of_seeds, SEEDED))


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_result_that_cannot_be_read_is_named(evaluations: dict[str, Any], content: str) -> None:
    message = r"^results/fake/stages/eval_new_new\.json: is no result of eval\.py; delete it and run the command again"
    with pytest.raises(UserError, match=message):
        results_of(evaluations | {"eval_new_new": content})


def risk(kept: float, correlation: float) -> dict[str, Any]:
    curves = {"coverages": [0.5, 1.0], "kept": [kept, 0.2], "oracle": [0.05, 0.2], "random": 0.2}
    return curves | {"spearman": correlation, "aurc": {"kept": kept, "oracle": 0.125, "random": 0.2}}


def test_how_good_each_order_is(once: dict[str, Any]) -> None:
    orders = ("sigma", "distance", "confidence", "random")
    row = {"case": "FCT new/old", "side_info": False, "stage": "eval_new_old"}
    rows = [row | {"order": order, "curve": order != "distance"} for order in orders]
    shown = {"tables.backfilling": rows, "stages.eval_new_old.overrides.eval_params.backfilling_list": list(orders)}
    of_seeds = {f"eval_new_old_seed_{seed}": evaluation(0.4, orders) for seed in (3, 5)}
    unjudged = report(results_of(once | of_seeds, SEEDED | shown), {})
    assert "How good each order is" not in unjudged  # results of an earlier version
    for result, correlation in zip(of_seeds.values(), (0.5, 0.6), strict=True):
        result["risk_coverage"] = {
            order: {"alignment_error": risk(kept, correlation), "average_precision": risk(kept, correlation - 0.2)}
            for order, kept in (("sigma", 0.15), ("distance", 0.125), ("confidence", 0.175))
        }
    results = results_of(once | of_seeds, SEEDED | shown)
    header, *body = cells(report(results, {}), "How good each order is")
    assert header[2:] == ["risk", "order", "rank correlation", "AURC", "AURC, random", "AURC, oracle"]
    bounds = ("0.200 ± 0.000", "0.125 ± 0.000")
    assert body == [  # one risk after the other; neither the random order nor a row without a curve
        ["FCT new/old", "no", "alignment error", "sigma", "0.550 ± 0.071", "0.150 ± 0.000", *bounds],
        ["FCT new/old", "no", "alignment error", "confidence", "0.550 ± 0.071", "0.175 ± 0.000", *bounds],
        ["FCT new/old", "no", "1 - AP", "sigma", "0.350 ± 0.071", "0.150 ± 0.000", *bounds],
        ["FCT new/old", "no", "1 - AP", "confidence", "0.350 ± 0.071", "0.175 ± 0.000", *bounds],
    ]
    curves = summarise(results).backfilling[0].risks["alignment_error"].curves
    means = {name: [point.mean for point in points] for name, points in curves.items()}
    assert means == {"kept": [0.15, 0.2], "oracle": [0.05, 0.2], "random": [0.2, 0.2]}


def with_groups(found: dict[str, Any], few: list[float], many: float) -> dict[str, Any]:
    """An evaluation with two groups of queries, whose CMC-1 along the curves is `few` and always `many`; no mAP."""
    figures = {"cmc_top1": few[0], "cmc_top5": 0.5, "map": None}
    found |= {"groups": {"few": figures, "many": figures | {"cmc_top1": many}}}
    found["gap"] = {"cmc_top1": many - few[0], "cmc_top5": 0.0}
    for curve in found["backfilling"].values():
        gaps = [many - value for value in few]
        closed = [1 - gap / gaps[0] for gap in gaps]
        of_few = {"cmc_top1": few, "cmc_top5": [0.5] * 3, "map": None, "auc": figures | {"cmc_top1": sum(few) / 3}}
        of_many = of_few | {"cmc_top1": [many] * 3, "auc": figures | {"cmc_top1": many}}
        curve["groups"] = {"few": of_few, "many": of_many}
        auc = {"cmc_top1": sum(gaps) / 3, "cmc_top5": 0.0}
        curve["gap"] = {"cmc_top1": gaps, "cmc_top5": [0.0] * 3, "auc": auc}
        auc_closed = {"cmc_top1": sum(closed) / 3, "cmc_top5": None}
        curve["gap_closed"] = {"cmc_top1": closed, "cmc_top5": None, "auc": auc_closed}
    return found


def test_groups_of_queries(once: dict[str, Any]) -> None:
    of_seeds = {f"eval_new_old_seed_{seed}": evaluation(0.4, ORDERS) for seed in (3, 5)}
    assert "Groups" not in report(results_of(once | of_seeds, SEEDED), {})
    once["eval_old_old"] = with_groups(once["eval_old_old"], [0.1, 0.1, 0.1], 0.5)
    for result, start in zip(of_seeds.values(), (0.2, 0.24), strict=True):
        with_groups(result, [start, 0.4, 0.5], 0.6)
    text = report(results_of(once | of_seeds, SEEDED), {})
    header, *body = cells(text, "Groups of queries")
    assert header == ["case", "side-info", "order", "group", "CMC-1", "CMC-5", "mAP"]
    assert body[:3] == [
        ["old/old", "-", "-", "few", "10.0", "50.0", "-"],
        ["old/old", "-", "-", "many", "50.0", "50.0", "-"],
        ["old/old", "-", "-", "gap", "40.0", "0.0", "-"],
    ]
    assert body[3:][-1] == ["FCT new/old", "no", "random", "gap", "22.7 ± 0.9", "0.0 ± 0.0", "-"]
    assert len(body) == 6  # new/new has no groups
    gaps = cells(text.replace("###", "##"), "The gap along the curves")
    assert gaps[0][3:] == ["figure", "0%", "10%", "25%", "50%", "75%", "100%", "mean"]
    first, last = "38.0 ± 2.8", "10.0 ± 0.0"  # at the nearest of three points; of two as near, the first
    assert gaps[1][3:] == ["CMC-1", first, first, first, "20.0 ± 0.0", "20.0 ± 0.0", last, "22.7 ± 0.9"]
    closed = cells(text.replace("###", "##"), "The share of the gap that is closed")
    assert [row[3] for row in closed[1:]] == ["CMC-1"]  # in CMC-5 there was none to close
    assert closed[1][4:6] == ["0.0 ± 0.0"] * 2
    assert closed[1][-2] == "73.6 ± 2.0"  # 1 - 10 / 40, 1 - 10 / 36


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=6))
def test_mean_and_deviation_are_numpys(values: list[float]) -> None:
    figure = over_seeds(values)
    assert figure is not None
    assert figure.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert figure.deviation == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert over_seeds([*values, None]) is None
