"""Config files written for ml-fct, with the keys of its two releases alone, run unchanged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.config import EvalConfig
from tests.retrieval.oracle import evaluate_slowly, rank_slowly
from tests.tiny import fail, succeed, write_images, write_torchscript
from trainers.backbone.config import BackboneConfig
from trainers.transformation.config import TransformationConfig
from utils.config import build, parse_yaml, read_yaml

BACKBONE_OLD = """
arch_params:
  arch: ResNet18
  num_classes: 4
  embedding_dim: 128
  last_nonlin: True

optimizer_params:
  algorithm: sgd
  lr: 1.024e-1
  weight_decay: 0.000030517578125
  no_bn_decay: False
  momentum: 0.875
  nesterov: False

dataset_params:
  name: cifar100
  data_root: data_store/images
  num_classes: 2
  num_workers: 2
  batch_size: 4

lr_policy_params:
  algorithm: cosine_lr
  warmup_length: 5
  epochs: 1
  lr: 1.024e-1

epochs: 1
label_smoothing: 0.1
output_model_path: checkpoints/old.pt
"""

BACKBONE_NEW = BACKBONE_OLD.replace("old.pt", "new.pt").replace("num_classes: 2", "num_classes: 4")

TRANSFORMATION = """
old_model_path: checkpoints/old.pt
new_model_path: checkpoints/new.pt

arch_params:
  arch: MLP_BN_SIDE_PROJECTION_SIGMA
  old_embedding_dim: 128
  new_embedding_dim: 128
  side_info_dim: 128
  inner_dim: 2048

optimizer_params:
  algorithm: adam
  lr: 5e-4
  weight_decay: 0.000030517578125

dataset_params:
  name: cifar100
  data_root: data_store/images
  num_classes: 4
  num_workers: 2
  batch_size: 4

lr_policy_params:
  algorithm: cosine_lr
  warmup_length: 5
  epochs: 2
  lr: 5e-4

objective_params:
  similarity_loss:
    name: mse
  discriminative_loss:
    name: LabelSmoothing
    label_smoothing: 0.1
    mu_disc: 1
  uncertainty_loss:
    mu_uncertainty: 0.5

epochs: 2
switch_mode_to_eval: True
output_transformation_path: checkpoints/transformation.pt
output_transformed_old_model_path: checkpoints/old_transformed.pt
"""

EVALUATION = """
query_model_path: checkpoints/new.pt
gallery_model_path: checkpoints/old_transformed.pt

eval_params:
  distance_metric_name: l2
  verbose: True
  compute_map: True
  backfilling: 2
  backfilling_list: ["sigma", "random"]
  backfilling_result_path: checkpoints/backfilling.npy

dataset_params:
  name: cifar100
  data_root: data_store/images
  num_classes: 4
  num_workers: 2
  batch_size: 4
"""


# The first release, before FastFill.
FIRST_TRANSFORMATION = (
    TRANSFORMATION[: TRANSFORMATION.index("objective_params:")].replace("_SIGMA", "")
    + """
side_info_model_path: checkpoints/side_info.pt
epochs: 2
switch_mode_to_eval: True
output_transformation_path: checkpoints/first_transformation.pt
output_transformed_old_model_path: checkpoints/first_old_transformed.pt
"""
)

FIRST_EVALUATION = """
gallery_model_path: checkpoints/{gallery}.pt
query_model_path: checkpoints/{query}.pt

eval_params:
  distance_metric: l2
  verbose: True
  compute_map: True
  per_class: False

dataset_params:
  name: {data}
  data_root: data_store/images
  num_workers: 2
  batch_size: 4
"""
CASES = {"old_old": ("old", "old"), "new_new": ("new", "new"), "old_new": ("new", "first_old_transformed")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = {"old": BACKBONE_OLD, "new": BACKBONE_NEW, "transformation": TRANSFORMATION, "eval": EVALUATION}
    texts["first_transformation"] = FIRST_TRANSFORMATION
    for data in ("cifar100", "imagenet"):
        for case, (query, gallery) in CASES.items():
            texts[f"{data}_{case}"] = FIRST_EVALUATION.format(query=query, gallery=gallery, data=data)
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def test_every_key_is_read(folder: Path) -> None:
    def load(schema: type, name: str) -> Any:
        path = folder / f"{name}.yaml"
        return build(schema, read_yaml(path), source=path)

    old, new = load(BackboneConfig, "old"), load(BackboneConfig, "new")
    assert (old.dataset_params.num_classes, new.dataset_params.num_classes) == (2, 4)
    assert (old.lr_policy_params.lr, old.optimizer_params.momentum) == (0.1024, 0.875)
    transformation = load(TransformationConfig, "transformation")
    assert transformation.optimizer_params.lr == 5e-4
    assert transformation.switch_mode_to_eval
    assert transformation.objective_params.discriminative_loss.mu_disc == 1.0
    assert transformation.objective_params.uncertainty_loss.mu_uncertainty == 0.5
    params = load(EvalConfig, "eval").eval_params
    assert (params.backfilling, params.backfilling_list) == (2, ["sigma", "random"])
    first = load(TransformationConfig, "first_transformation")
    assert first.side_info_model_path == "checkpoints/side_info.pt"
    assert (first.objective_params.discriminative_loss, first.objective_params.uncertainty_loss) == (None, None)
    for data in ("cifar100", "imagenet"):
        for case, (query, gallery) in CASES.items():
            config = load(EvalConfig, f"{data}_{case}")
            assert (config.query_model_path, config.gallery_model_path) == (
                f"checkpoints/{query}.pt",
                f"checkpoints/{gallery}.pt",
            )
            assert (config.eval_params.distance_metric_name, config.eval_params.per_class) == ("l2", False)
            assert (config.eval_params.backfilling, config.dataset_params.num_classes) == (None, None)
    unfilled = EVALUATION.replace("backfilling: 2", "backfilling: null")
    assert build(EvalConfig, parse_yaml(unfilled), source="eval").eval_params.backfilling is None


def test_they_run_from_the_backbones_to_the_curve(folder: Path) -> None:
    write_images(folder / "data_store" / "images", classes=4, training=2, validation=2, size=32)
    for script, name in (
        ("train_backbone.py", "old"),
        ("train_backbone.py", "new"),
        ("train_transformation.py", "transformation"),
    ):
        succeed(script, "--config", f"{name}.yaml", cwd=folder, processes=None)
    table = succeed("eval.py", "--config", "eval.yaml", "--output", "result.json", cwd=folder, processes=None)
    assert "AUC, sigma order" in table
    curves = np.load(folder / "checkpoints" / "backfilling.npy")  # (orders, points, figures)
    backfilling = json.loads((folder / "result.json").read_text())["backfilling"]
    assert curves[:, :, 0].tolist() == [backfilling[order]["cmc_top1"] for order in ("sigma", "random")]


def kept(folder: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The embeddings that an evaluation kept: queries, gallery and their labels."""
    query, gallery = (np.load(folder / "kept" / f"{name}.npz") for name in ("query", "gallery"))
    return tuple(map(torch.from_numpy, (query["embeddings"], gallery["embeddings"], query["labels"])))  # type: ignore[return-value]


def test_the_first_release_runs_from_the_transformation_to_its_six_evaluations(folder: Path) -> None:
    """On models as ml-fct writes them, TorchScript."""
    write_images(folder / "data_store" / "images", classes=4, training=2, validation=4, size=32)
    (folder / "checkpoints").mkdir()
    for name in ("old", "new", "side_info"):
        write_torchscript(folder / "checkpoints" / f"{name}.pt", dim=128)
    succeed("train_transformation.py", "--config", "first_transformation.yaml", cwd=folder, processes=None)
    for data in ("cifar100", "imagenet"):
        for case in CASES:
            arguments = [
                "--config",
                f"{data}_{case}.yaml",
                "--output",
                "r.json",
                "eval_params.embeddings_output_dir=kept",
            ]
            processes = 1 if case == "old_new" else None  # a process of its own, as a user starts it
            assert "mAP" in succeed("eval.py", *arguments, cwd=folder, processes=processes)
            result = json.loads((folder / "r.json").read_text())
            assert result["metrics"] == pytest.approx(evaluate_slowly(*kept(folder)), abs=1e-6)
            assert "per_class" not in result
    cosine = "eval_params.distance_metric=cosine"
    succeed("eval.py", *arguments, cosine, cwd=folder, processes=None)
    found = json.loads((folder / "r.json").read_text())
    assert found["distance_metric"] == "cosine"
    assert found["metrics"] == pytest.approx(evaluate_slowly(*kept(folder), distance="cosine"), abs=1e-6)
    assert found["metrics"] != result["metrics"]


def test_both_spellings_of_the_distance_only_if_they_agree(folder: Path) -> None:
    (folder / "both.yaml").write_text(EVALUATION.replace("distance_metric_name: l2", "distance_metric: cosine"))
    error = fail("eval.py", "--config", "both.yaml", "eval_params.distance_metric_name=l2", cwd=folder, processes=None)
    assert "both.yaml: eval_params.distance_metric_name: is 'l2', and distance_metric" in error
    error = fail(
        "eval.py", "--config", "both.yaml", "eval_params.distance_metric_name=cosine", cwd=folder, processes=None
    )
    assert "there is no checkpoints/new.pt" in error


def test_quiet_it_prints_the_figures_unless_a_file_has_them(folder: Path) -> None:
    write_images(folder / "data_store" / "images", classes=4, training=1, validation=2, size=16)
    (folder / "checkpoints").mkdir()
    write_torchscript(folder / "checkpoints" / "new.pt", dim=4)
    arguments = ["--config", "cifar100_new_new.yaml", "eval_params.verbose=False"]
    assert "mAP" in succeed("eval.py", *arguments, cwd=folder, processes=None)
    assert succeed("eval.py", *arguments, "--output", "result.json", cwd=folder, processes=None) == ""


@pytest.mark.parametrize("processes", [1, 2])
def test_per_class(folder: Path, processes: int) -> None:
    write_images(folder / "data_store" / "images", classes=12, training=1, validation=4, size=16)
    (folder / "checkpoints").mkdir()
    for name in ("new", "first_old_transformed"):
        write_torchscript(folder / "checkpoints" / f"{name}.pt", dim=4)
    keep = "eval_params.embeddings_output_dir=kept"
    arguments = ["--config", "cifar100_old_new.yaml", "--output", "result.json", "eval_params.per_class=true", keep]
    table = succeed("eval.py", *arguments, cwd=folder, processes=processes)
    query, gallery, labels = kept(folder)
    figures: dict[str, list[tuple[float, int, int]]] = {}
    for index, average_precision, ranks in rank_slowly(query, gallery, labels):
        row = (average_precision, min(ranks) <= 1, min(ranks) <= 5)
        figures.setdefault(str(int(labels[index])), []).append(row)
    per_class = json.loads((folder / "result.json").read_text())["per_class"]
    assert list(per_class) == [str(label) for label in range(12)]
    names = [of_class["name"] for of_class in per_class.values()]
    assert names == ["0", "1", "10", "11", *"23456789"]  # folders sort as strings
    for label, rows in figures.items():
        means = dict(zip(("map", "cmc_top1", "cmc_top5"), np.mean(rows, axis=0), strict=True))
        expected = {"name": per_class[label]["name"], "num_queries": len(rows), **means}
        assert per_class[label] == pytest.approx(expected, abs=1e-6)
    best = max(per_class, key=lambda label: per_class[label]["map"])
    lines = table[table.index("best and worst classes") :].splitlines()
    assert lines[1].startswith(f"class {best} ({per_class[best]['name']}) ")
    assert lines[1].split()[-1] == f"{100 * per_class[best]['map']:.2f}"
