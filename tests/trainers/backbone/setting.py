"""The tiny backbone and its images, and the training of it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data.datasets import open_images
from data.images import ImageSet
from models.backbones import Backbone, build_backbone
from tests.tiny import BACKBONE
from trainers.backbone.config import BackboneConfig
from trainers.backbone.training import train_backbone
from utils.config import build, merge, parse_yaml, to_dict
from utils.distributed import World
from utils.preemption import Preemption
from utils.runs import Run


class Setting(NamedTuple):
    config: BackboneConfig
    model: Backbone
    training: ImageSet
    validation: ImageSet


def setting_of(root: Path, world: World | None = None, **values: Any) -> Setting:
    """A backbone and the images in `root`, by the tiny config with other values."""
    given = {"precision": "fp32", "dataset_params": {"data_root": str(root)}}
    config = build(BackboneConfig, merge(merge(parse_yaml(BACKBONE), given), values), source="tiny")
    torch.manual_seed(0)
    model = build_backbone(**to_dict(config.arch_params))
    training, validation = (
        open_images(config.dataset_params, split, world or World(), seed=0) for split in ("training", "validation")
    )
    return Setting(config, model, training, validation)


def train(folder: Path, setting: Setting, world: World | None = None) -> list[dict[str, Any]]:
    """Train the model of `setting` to its end, or on from its checkpoint in `folder` -> its log."""
    config, world = setting.config, world or World()
    run = Run(str(folder / config.output_model_path), config, world)
    train_backbone(setting.model, config, setting.training, setting.validation, run, world, Preemption())
    run.finish()
    return [json.loads(line) for line in run.log_path.read_text().splitlines()]
