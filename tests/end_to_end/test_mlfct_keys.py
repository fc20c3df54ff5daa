"""Config files written for ml-fct, with the keys of its two releases alone, run unchanged."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.config import EvalConfig
from tests.retrieval.oracle import evaluate_slowly
from tests.tiny import fail, succeed, write_images, write_torchscript
from trainers.backbone.config import BackboneConfig
from trainers.transformation.config import TransformationConfig
from utils.config import build, parse_yaml

DATA = "name: cifar100, data_root: data_store/images, num_workers: 2, batch_size: 4"
BACKBONE_OLD = f"""
arch_params: {{arch: ResNet18, num_classes: 4, embedding_dim: 128, last_nonlin: True}}
optimizer_params:
  algorithm: sgd
  lr: 1.024e-1
  weight_decay: 0.000030517578125
  no_bn_decay: False
  momentum: 0.875
  nesterov: False
dataset_params: {{{DATA}, num_classes: 2}}
lr_policy_params: {{algorithm: cosine_lr, warmup_length: 5, epochs: 1, lr: 1.024e-1}}
epochs: 1
label_smoothing: 0.1
output_model_path: checkpoints/old.pt
"""
FIRST_TRANSFORMATION = f"""
old_model_path: checkpoints/old.pt
new_model_path: checkpoints/new.pt
side_info_model_path: checkpoints/side_info.pt
arch_params:
  arch: MLP_BN_SIDE_PROJECTION
  old_embedding_dim: 128
  new_embedding_dim: 128
  side_info_dim: 128
  inner_dim: 2048
optimizer_params: {{algorithm: adam, lr: 5e-4, weight_decay: 0.000030517578125}}
dataset_params: {{{DATA}, num_classes: 4}}
lr_policy_params: {{algorithm: cosine_lr, warmup_length: 5, epochs: 2, lr: 5e-4}}
epochs: 2
switch_mode_to_eval: True
output_transformation_path: checkpoints/transformation.pt
output_transformed_old_model_path: checkpoints/old_transformed.pt
"""
TRANSFORMATION = (  # of the second release, FastFill
    FIRST_TRANSFORMATION.replace("PROJECTION", "PROJECTION_SIGMA").replace(
        "side_info_model_path: checkpoints/side_info.pt\n", ""
    )
    + """
objective_params:
  similarity_loss: {name: mse}
  discriminative_loss: {name: LabelSmoothing, label_smoothing: 0.1, mu_disc: 1}
  uncertainty_loss: {mu_uncertainty: 0.5}
"""
)
FIRST_EVALUATION = """
gallery_model_path: checkpoints/{gallery}.pt
query_model_path: checkpoints/{query}.pt
eval_params: {{distance_metric: l2, verbose: True, compute_map: True, per_class: False}}
dataset_params: {{name: {data}, data_root: data_store/images, num_workers: 2, batch_size: 4}}
"""
EVALUATION = f"""
query_model_path: checkpoints/new.pt
gallery_model_path: checkpoints/old_transformed.pt
eval_params:
  distance_metric_name: l2
  verbose: True
  compute_map: True
  backfilling: 2
  backfilling_list: ["sigma", "random"]
  backfilling_result_path: checkpoints/backfilling.npy
dataset_params: {{{DATA}, num_classes: 4}}
"""
CASES = {"old_old": ("old", "old"), "new_new": ("new", "new"), "old_new": ("new", "old_transformed")}
TEXTS = {
    "old": BACKBONE_OLD,
    "new": BACKBONE_OLD.replace("old.pt", "new.pt").replace("num_classes: 2", "num_classes: 4"),
    "transformation": TRANSFORMATION,
    "first_transformation": FIRST_TRANSFORMATION,
    "eval": EVALUATION,
} | {
    f"{data}_{case}": FIRST_EVALUATION.format(query=query, gallery=gallery, data=data)
    for data in ("cifar100", "imagenet")
    for case, (query, gallery) in CASES.items()
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in TEXTS.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def evaluate(folder: Path, name: str, *overrides: str, processes: int | None = None) -> str:
    """The table of an evaluation, whose figures are in result.json and whose embeddings are kept."""
    arguments = ("--config", f"{name}.yaml", "--output", "result.json", "eval_params.embeddings_output_dir=kept")
    return succeed("eval.py", *arguments, *overrides, cwd=folder, processes=processes)


def kept(folder: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The embeddings that an evaluation kept: queries, gallery and their labels."""
    query, gallery = (np.load(folder / "kept" / f"{name}.npz") for name in ("query", "gallery"))
    return tuple(map(torch.from_numpy, (query["embeddings"], gallery["embeddings"], query["labels"])))  # type: ignore[return-value]


def test_values_are_read_as_they_were_meant() -> None:
    old = build(BackboneConfig, parse_yaml(BACKBONE_OLD), source="old")
    assert (old.dataset_params.num_classes, old.lr_policy_params.lr, old.optimizer_params.momentum) == (
        2,
        0.1024,
        0.875,
    )
    first = build(TransformationConfig, parse_yaml(FIRST_TRANSFORMATION), source="first")
    assert (first.objective_params.discriminative_loss, first.objective_params.uncertainty_loss) == (None, None)
    for text in (TEXTS["imagenet_old_new"], EVALUATION.replace("backfilling: 2", "backfilling: null")):
        params = build(EvalConfig, parse_yaml(text), source="eval").eval_params
        assert (params.distance_metric_name, params.per_class, params.backfilling) == ("l2", False, None)


def test_they_run_from_the_backbones_to_the_curve(folder: Path) -> None:
    write_images(folder / "data_store" / "images", classes=4, training=2, validation=2, size=32)
    for script, name in (
        ("train_backbone.py", "old"),
        ("train_backbone.py", "new"),
        ("train_transformation.py", "transformation"),
    ):
        succeed(script, "--config", f"{name}.yaml", cwd=folder, processes=None)
    assert "AUC, sigma order" in evaluate(folder, "eval")
    curves = np.load(folder / "checkpoints" / "backfilling.npy")  # (orders, points, figures)
    backfilling = json.loads((folder / "result.json").read_text())["backfilling"]
    assert curves[:, :, 0].tolist() == [backfilling[order]["cmc_top1"] for order in ("sigma", "random")]


def test_the_first_release_runs_from_the_transformation_to_its_six_evaluations(folder: Path) -> None:
    """On models as ml-fct writes them, TorchScript."""
    write_images(folder / "data_store" / "images", classes=4, training=2, validation=4, size=32)
    for name in ("old", "new", "side_info"):
        write_torchscript(folder / "checkpoints" / f"{name}.pt", dim=128)
    succeed("train_transformation.py", "--config", "first_transformation.yaml", cwd=folder, processes=None)
    found = {}
    for data in ("cifar100", "imagenet"):
        for case in CASES:
            assert "mAP" in evaluate(folder, f"{data}_{case}")
            found = json.loads((folder / "result.json").read_text())
            assert found["metrics"] == pytest.approx(evaluate_slowly(*kept(folder)), abs=1e-6)
            assert "per_class" not in found
    evaluate(folder, "imagenet_old_new", "eval_params.distance_metric=cosine")
    cosine = json.loads((folder / "result.json").read_text())
    assert cosine["distance_metric"] == "cosine"
    assert cosine["metrics"] == pytest.approx(evaluate_slowly(*kept(folder), distance="cosine"), abs=1e-6)
    assert cosine["metrics"] != found["metrics"]


def test_both_spellings_of_the_distance_only_if_they_agree(folder: Path) -> None:
    (folder / "both.yaml").write_text(EVALUATION.replace("distance_metric_name: l2", "distance_metric: cosine"))
    for name, message in [
        ("l2", "both.yaml: eval_params.distance_metric_name: is 'l2', and distance_metric"),
        ("cosine", "there is no checkpoints/new.pt"),
    ]:
        arguments = ("--config", "both.yaml", f"eval_params.distance_metric_name={name}")
        assert message in fail("eval.py", *arguments, cwd=folder, processes=None)


def test_quiet_it_prints_the_figures_unless_a_file_has_them(folder: Path) -> None:
    write_images(folder / "data_store" / "images", classes=4, training=1, validation=2, size=16)
    write_torchscript(folder / "checkpoints" / "new.pt", dim=4)
    arguments = ("--config", "cifar100_new_new.yaml", "eval_params.verbose=False")
    assert "mAP" in succeed("eval.py", *arguments, cwd=folder, processes=None)
    assert succeed("eval.py", *arguments, "--output", "result.json", cwd=folder, processes=None) == ""


def test_per_class_by_two_processes_as_by_one(folder: Path) -> None:
    write_images(folder / "data_store" / "images", classes=12, training=1, validation=4, size=16)
    for name in ("new", "old_transformed"):
        write_torchscript(folder / "checkpoints" / f"{name}.pt", dim=4)
    tables, results = [], []
    for processes in (None, 2):
        tables.append(evaluate(folder, "cifar100_old_new", "eval_params.per_class=true", processes=processes))
        results.append(json.loads((folder / "result.json").read_text())["per_class"])
    one, two = results
    assert list(one) == list(two) == [str(label) for label in range(12)]
    assert [of_class["name"] for of_class in two.values()] == ["0", "1", "10", "11", *"23456789"]  # sorted as strings
    for label, of_class in one.items():
        assert two[label] == pytest.approx(of_class, abs=1e-6)
    best = max(one, key=lambda label: one[label]["map"])
    line = tables[0][tables[0].index("best and worst classes") :].splitlines()[1]
    assert line.startswith(f"class {best} ({one[best]['name']}) ")
    assert line.split()[-1] == f"{100 * one[best]['map']:.2f}"
