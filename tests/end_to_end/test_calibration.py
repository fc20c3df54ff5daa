"""A transformation is calibrated when it is fitted, and its mixed galleries are judged with that."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retrieval import Calibration, backfilling_curve, backfilling_order, cutoffs, two_field_curve
from tests.end_to_end.conftest import evaluate
from tests.retrieval.test_calibration import clusters
from tests.tiny import fail, succeed, write_images

FIT = "{old: old.npz, new: new.npz, method: ridge, held_out: 0.4, output: h.pt}"
EVALUATION = """
embeddings_params: {query: new.npz, gallery: old.npz, transformation: h.pt}
eval_params: {backfilling: 3}
output: result.json
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    new, known, labels = clusters()
    for name, embeddings in (("new", new), ("old", known[:, :8] @ torch.randn(8, 6, generator=torch.manual_seed(1)))):
        np.savez(tmp_path / f"{name}.npz", embeddings=embeddings.numpy(), labels=labels.numpy())
    (tmp_path / "fit.yaml").write_text(FIT)
    (tmp_path / "eval.yaml").write_text(EVALUATION)
    return tmp_path


def result(folder: Path, *arguments: str) -> dict[str, Any]:
    succeed("eval.py", "--config", "eval.yaml", *arguments, cwd=folder, processes=None)
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_curves_are_those_of_the_calibrated_gallery_and_say_so(folder: Path, distance: str) -> None:
    printed = succeed("fit_embeddings.py", "--config", "fit.yaml", cwd=folder)
    value = torch.load(folder / "h.pt", weights_only=True)["calibration"][distance]["value"]
    assert f"calibration, {distance}: {value:.4g};" in printed
    metric = f"eval_params.distance_metric_name={distance}"
    calibrated = result(folder, metric, "eval_params.embeddings_output_dir=kept")
    assert calibrated["calibration"] == {"distance": distance, "value": value}

    new, h = (torch.from_numpy(np.load(folder / f"kept/{name}.npz")["embeddings"]) for name in ("query", "gallery"))
    calibration = Calibration(distance, value)
    curve = backfilling_curve(
        calibration.exact(new),
        calibration.transformed(h),
        calibration.exact(new),
        torch.from_numpy(np.load(folder / "new.npz")["labels"]),
        orders={"random": backfilling_order("random", transformed=h, new=new)},
        cutoffs=cutoffs(len(new), 3),
        distance=distance,
    )["random"]
    assert calibrated["backfilling"]["random"]["map"] == pytest.approx(curve.to_json()["map"])

    plain = result(folder, metric, "eval_params.calibration=off")
    assert "calibration" not in plain
    of_plain, of_calibrated = (found["backfilling"]["random"]["map"] for found in (plain, calibrated))
    assert of_calibrated[0] == pytest.approx(of_plain[0])
    assert of_calibrated[-1] == pytest.approx(of_plain[-1])
    assert sum(of_calibrated) > sum(of_plain)
    assert result(folder, metric, f"eval_params.calibration={value}")["backfilling"] == calibrated["backfilling"]
    assert "calibration" not in result(folder, metric, "eval_params.backfilling=null")  # nothing is mixed


@pytest.mark.parametrize(
    ("distance", "value", "allowed"),
    [("l2", "-1", "a constant of 0 or more"), ("cosine", "1.5", "a factor on cosines"), ("cosine", "0", "a factor")],
)
def test_a_number_that_is_no_calibration_is_refused_before_any_work(
    folder: Path, distance: str, value: str, allowed: str
) -> None:
    arguments = (f"eval_params.distance_metric_name={distance}", f"eval_params.calibration={value}")
    error = fail("eval.py", "--config", "eval.yaml", *arguments, cwd=folder)  # h.pt is not there: nothing was read
    assert f"eval.yaml: eval_params.calibration: should be auto, off or {allowed}" in error


@pytest.mark.parametrize("merge", ["reciprocal_ranks", "standardised"])
def test_two_fields_of_other_dimensions_are_searched_by_a_query_each(folder: Path, merge: str) -> None:
    files = "embeddings_params={query: new.npz, gallery: old.npz}"
    arguments = (f"eval_params.two_fields={merge}", "eval_params.backfilling_list=[random]", "seed=2")
    curve = result(folder, files, *arguments)["backfilling"]["random"]
    new, old = (torch.from_numpy(np.load(folder / f"{name}.npz")["embeddings"]) for name in ("new", "old"))
    labels = torch.from_numpy(np.load(folder / "new.npz")["labels"])
    order = backfilling_order("random", transformed=new, new=new, seed=2)
    expected = two_field_curve(new, old, labels, order=order, cutoffs=cutoffs(len(new), 3), merge=merge)
    assert curve == json.loads(json.dumps(expected.to_json()))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("eval_params.backfilling_list=[random,sigma]", "two_fields: needs `backfilling`, and a backfilling_list of"),
        ("eval_params.per_class=true", "two_fields: goes without per_class"),
        ("eval_params.representatives=on", "two_fields: goes without representatives"),
        ("embeddings_params.transformation=h.pt", "two_fields: is for the old embeddings as they are"),
    ],
)
def test_what_two_fields_go_without_is_named(folder: Path, argument: str, message: str) -> None:
    files = "embeddings_params={query: new.npz, gallery: old.npz}"
    arguments = ("eval_params.two_fields=standardised", "eval_params.backfilling_list=[random]", argument)
    assert message in fail("eval.py", "--config", "eval.yaml", files, *arguments, cwd=folder, processes=None)


def test_two_fields_refuse_a_model_that_transforms(work: Path) -> None:
    orders = "eval_params={backfilling: 3, backfilling_list: [random], two_fields: standardised}"
    arguments = ("--config", "eval.yaml", "gallery_model_path=checkpoints/old_transformed.pt", orders)
    assert "two_fields: is for the old model as it is" in fail("eval.py", *arguments, cwd=work, processes=None)


def test_where_little_is_held_out_nothing_is_calibrated_and_that_is_said(folder: Path) -> None:
    printed = succeed("fit_embeddings.py", "--config", "fit.yaml", "held_out=0.1", cwd=folder, processes=None)
    assert "not calibrated: 60 pairs are held out" in printed
    assert "calibration" not in torch.load(folder / "h.pt", weights_only=True)


def test_a_model_of_images_brings_the_calibration_of_its_transformation(work: Path) -> None:
    write_images(work / "more", classes=6, training=40, validation=5)
    arguments = ("dataset_params.data_root=more", "arch_params={arch: ridge}", "objective_params={}")
    command = ("train_transformation.py", "--config", "transformation.yaml", *arguments)
    outputs = ("output_transformation_path=h.pt", "output_transformed_old_model_path=calibrated.pt")
    succeed(*command, *outputs, "calibration_held_out=0.5", cwd=work)
    value = torch.load(work / "h.pt", weights_only=True)["calibration"]["l2"]["value"]
    found = evaluate(work, "gallery_model_path=calibrated.pt", "eval_params.backfilling_list=[random]")
    assert found["calibration"] == {"distance": "l2", "value": value}
    assert "calibration" not in torch.load(work / "checkpoints/transformation.pt", weights_only=True)  # not asked for
