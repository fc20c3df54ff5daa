"""Groups of queries by eval.py, of files and of images; and models that saw little of some classes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.end_to_end.conftest import evaluate, result_of
from tests.retrieval.oracle import mean_figures, mixed_gallery, rank_slowly
from tests.tiny import fail, succeed

N = 48
ORDERS = ("eval_params.backfilling=2", "eval_params.backfilling_list=[random, sigma, density]")
CLASSES = "eval_params.groups.classes={few: [0, 2], many: [[2, 5], 5]}"
THINNED = "dataset_params.thinned={classes: [0, 2], share: 0.25}"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """New embeddings of items of six classes, and transformed ones, which are bad for the first two of them."""
    g = np.random.default_rng(0)
    labels = g.permutation(np.arange(N) % 6)
    new = (g.normal(size=(6, 5))[labels] + 0.7 * g.normal(size=(N, 5))).astype(np.float32)
    sigma = np.where(labels < 2, 1.0, -1.0).astype(np.float32)
    transformed = (new + np.exp(sigma)[:, None] * g.normal(size=(N, 5))).astype(np.float32)
    ids = np.array([f"item {i}" for i in range(N)])
    np.savez(tmp_path / "q.npz", embeddings=new, labels=labels, ids=ids)
    np.savez(tmp_path / "g.npz", embeddings=transformed, labels=labels, ids=ids, sigma=sigma)
    order = g.permutation(N)
    rows = [f"{ids[i]},{'few' if labels[i] < 2 else 'many'}\n" for i in order]
    (tmp_path / "groups.csv").write_text("ids,groups\n" + "".join(rows))
    (tmp_path / "e.yaml").write_text("embeddings_params: {query: q.npz, gallery: g.npz}\n")
    return tmp_path


def slowly(folder: Path, group: str, cutoff: int, distance: str) -> dict[str, float]:
    """The figures of a group's queries in the gallery backfilled by sigma, which takes the classes 0 and 1 first."""
    query, gallery = np.load(folder / "q.npz"), np.load(folder / "g.npz")
    new, old = torch.from_numpy(query["embeddings"]), torch.from_numpy(gallery["embeddings"])
    labels = torch.from_numpy(query["labels"])
    order = torch.from_numpy(np.argsort(-gallery["sigma"], kind="stable"))
    ranked = rank_slowly(new, mixed_gallery(old, new, order, cutoff), labels, distance=distance)
    return mean_figures([one for one in ranked if (int(labels[one[0]]) < 2) == (group == "few")])


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_groups_of_files_agree_with_a_loop(files: Path, distance: str) -> None:
    metric = f"eval_params.distance_metric_name={distance}"
    result = evaluate(files, CLASSES, *ORDERS, metric, config="e.yaml")
    assert {name: group["num_queries"] for name, group in result["groups"].items()} == {"few": 16, "many": 32}
    curve = result["backfilling"]["sigma"]
    for place, cutoff in ((0, 0), (1, 16), (3, N)):  # all of the first two classes are backfilled at 16
        few, many = (slowly(files, group, cutoff, distance) for group in ("few", "many"))
        for name in ("cmc_top1", "cmc_top5", "map"):
            assert curve["groups"]["few"][name][place] == pytest.approx(few[name])
            assert curve["groups"]["many"][name][place] == pytest.approx(many[name])
            assert curve["gap"][name][place] == pytest.approx(abs(many[name] - few[name]))
        if place == 0:
            assert result["groups"]["few"] == pytest.approx({"num_queries": 16, **few})
            assert result["gap"] == {name: curve["gap"][name][0] for name in result["gap"]}
    calibrated = evaluate(files, CLASSES, *ORDERS, metric, "eval_params.calibration=0.5", config="e.yaml")
    for at_end in (0, -1):  # where all items are of one kind
        assert calibrated["backfilling"]["random"]["gap"]["map"][at_end] == pytest.approx(
            result["backfilling"]["random"]["gap"]["map"][at_end]
        )
    assert calibrated["backfilling"]["random"]["gap"]["map"] != result["backfilling"]["random"]["gap"]["map"]
    ends = [result["backfilling"][order]["gap"]["map"][-1] for order in ("random", "sigma", "density")]
    assert ends == pytest.approx([ends[0]] * 3)  # of a full upgrade, whatever the order


def test_a_file_of_groups_by_two_processes_and_on_a_subset(files: Path) -> None:
    one = evaluate(files, CLASSES, *ORDERS, config="e.yaml")
    by_file = "eval_params.groups.file=groups.csv"
    command = ("eval.py", "--config", "e.yaml", "--output", "result.json", by_file, *ORDERS)
    table = succeed(*command, cwd=files, processes=2)
    assert result_of(files) == one
    lines = [line.split() for line in table[table.index("groups of queries") :].splitlines()]
    assert lines[1][:2] == ["few", "(16)"]
    gap = {name: f"{100 * value:.2f}" for name, value in one["gap"].items()}
    assert lines[3] == ["gap", *gap.values()]
    assert [line[:3] for line in lines[4:7]] == [["gap,", "AUC,", order] for order in ("random", "sigma", "density")]
    assert lines[7][:3] == ["gap,", "all", "backfilled"]
    part = evaluate(files, by_file, "eval_params.subset.classes=[1, 3]", config="e.yaml")
    assert [group["num_queries"] for group in part["groups"].values()] == [8, 8]


def refuse(folder: Path, *arguments: str, config: str = "e.yaml") -> str:
    return fail("eval.py", "--config", config, *arguments, cwd=folder, processes=None)


def test_groups_that_do_not_fit_are_refused(files: Path) -> None:
    (files / "short.json").write_text(json.dumps(["a", "b"]))
    for groups, message in {
        "{file: none.csv}": "e.yaml: eval_params.groups.file: there is no none.csv",
        "{file: short.json}": "eval_params.groups.file: short.json: has 2 rows and no `ids`, there are 48 queries",
        "{}": "e.yaml: eval_params.groups.classes, file, column: one of the three says which group a query is of",
        "{classes: {few: [0, 2], many: [2, 5]}}": "groups.classes: 8 of 48 queries are in no group, the first is id",
        "{classes: {few: [0, 3], many: [2, 6]}}": "e.yaml: eval_params.groups.classes.many: label 2 is in few already",
        "{classes: {few: [0, 2], many: [2, 7]}}": "many: no query has a label from 6 to 6; the largest is 5",
        "{classes: {all: [0, 6]}}": "e.yaml: eval_params.groups.classes: a gap needs two groups, got 1",
    }.items():
        assert message in refuse(files, f"eval_params.groups={groups}")
    lone = {"embeddings": np.ones((3, 2), np.float32), "labels": np.array([0, 0, 1])}
    np.savez(files / "lone.npz", **lone)  # type: ignore[arg-type]
    names = ("embeddings_params.query=lone.npz", "embeddings_params.gallery=lone.npz")
    message = "eval_params.groups: no query of the group b has a relevant item in the gallery"
    assert message in refuse(files, *names, "eval_params.groups.classes={a: [0], b: [1]}")


def test_groups_of_images_and_a_model_that_saw_few_of_some(work: Path) -> None:
    thinned = ("--config", "backbone.yaml", "epochs=1", THINNED)
    succeed("train_backbone.py", *thinned, "output_model_path=checkpoints/biased.pt", cwd=work, processes=None)
    both = ("query_model_path=checkpoints/biased.pt", "gallery_model_path=checkpoints/biased.pt", "eval_params={}")
    result = evaluate(work, *both, CLASSES, THINNED)
    queries: dict[str, Any] = {name: group["num_queries"] for name, group in result["groups"].items()}
    assert queries == {"few": 16, "many": 32}  # validation keeps all of its images
    (work / "rows.json").write_text(json.dumps(["few"] * 16 + ["many"] * 32))
    assert evaluate(work, *both, "eval_params.groups.file=rows.json") == result
    beyond = "dataset_params.thinned.classes=[0, 7]"
    message = fail("train_backbone.py", *thinned, beyond, cwd=work, processes=None)
    assert "dataset_params.thinned.classes: [0, 7] asked for, 6 classes are trained on" in message
    backwards = fail("train_backbone.py", *thinned, "dataset_params.thinned.classes=[2, 2]", cwd=work, processes=None)
    assert "backbone.yaml: dataset_params.thinned.classes: should be two rising labels" in backwards
