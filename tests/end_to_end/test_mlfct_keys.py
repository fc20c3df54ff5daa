"""Config files written for ml-fct, with its keys alone, run unchanged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import succeed, write_images
from utils.config import build, read_yaml
from utils.schema import BackboneConfig, EvalConfig, TransformationConfig

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = {"old": BACKBONE_OLD, "new": BACKBONE_NEW, "transformation": TRANSFORMATION, "eval": EVALUATION}
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
