"""What the quickstart computes, counted: it should end soon on any laptop, whatever that multiplies fast."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from data.datasets import PRESETS
from data.glyphs import NUM_CLASSES
from models.backbones import build_backbone
from models.transformations import build_transformation, transformation_arguments
from prepare_dataset import GLYPHS_PARAMETERS
from suites.config import SuiteConfig
from suites.methods import expand
from suites.planning import resolve
from utils.config import build, read_config

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "suites" / "quickstart.yaml"
BATCH = 4


def operations(model: nn.Module, inputs: Tensor, *, training: bool) -> float:
    """Floating point operations an item, of a training step or of the forward pass alone."""
    with FlopCounterMode(display=False) as counter:
        outputs = model(inputs)
        if training:
            sum(output.sum() for output in outputs if output is not None).backward()
    return counter.get_total_flops() / len(inputs)


def test_the_trainings_take_at_most_sixteen_trillion_operations() -> None:
    suite = build(SuiteConfig, expand(read_config(QUICKSTART), str(QUICKSTART)), source=QUICKSTART)
    items_per_class, total, dims = GLYPHS_PARAMETERS["train_per_class"], 0.0, {}
    stages = [stage for stage in resolve(suite, ROOT) if stage.script.startswith("train_")]
    assert [stage.name.partition("_")[0] for stage in stages] == ["backbone", "backbone", "fct", "fastfill"]
    for stage in stages:
        config = stage.config
        if stage.script == "train_backbone.py":
            size = config.dataset_params.image_size or PRESETS["glyphs"].image_size
            backbone = build_backbone(
                **{k: v for k, v in dataclasses.asdict(config.arch_params).items() if v is not None}
            )
            images = torch.zeros(BATCH, 3, size, size)
            classes = config.dataset_params.num_classes
            total += config.epochs * classes * items_per_class * operations(backbone, images, training=True)
            total += NUM_CLASSES * items_per_class * operations(backbone, images, training=False)  # embedded once
            dims[stage.name.removeprefix("backbone_")] = config.arch_params.embedding_dim
        else:
            h = build_transformation(**transformation_arguments(config.arch_params, dims))
            step = operations(h, torch.zeros(BATCH, dims["old"]), training=True)
            total += config.epochs * NUM_CLASSES * items_per_class * step
    assert 1e13 < total <= 1.6e13
