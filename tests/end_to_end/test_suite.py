"""The ImageNet suite from photographs to report, changed by overrides on the command line alone."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from suites.scripts import SCHEMAS
from suites.stages import content_of
from tests.tiny import ENVIRONMENT, REPOSITORY, command_of, same_bits, succeed
from upgrade.config import UpgradeConfig
from utils.config import build, read_config, read_yaml

CONFIGS = REPOSITORY / "configs"
DATA = (
    *("dataset_params.data_root=images", "dataset_params.image_size=64", "dataset_params.batch_size=5"),
    *("dataset_params.num_workers=0", "dataset_params.max_unreadable=0.1"),
)
BACKBONE = ("arch_params.arch=ResNet18", "arch_params.num_classes=4", "arch_params.width=0.125", "epochs=1")
BACKBONES = {name: (*BACKBONE, f"dataset_params.num_classes={n}") for name, n in (("old", 2), ("new", 4))}
SUITE = tuple(
    f"overrides.{override}"
    for override in (*DATA, "dataset_params.num_classes=4", "arch_params.inner_dim=64", "epochs=1")
)


def write_photographs(root: Path) -> None:
    """JPEGs of about 500 x 375: 4 classes of 5 for training, 3 for validation; one of each split is cut short."""
    rng = np.random.default_rng(0)
    patterns = rng.uniform(0, 255, (4, 5, 4, 3))
    for split, count in (("training", 5), ("validation", 3)):
        for label in range(4):
            folder = root / split / f"n0{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(patterns[label] + rng.normal(0, 30, (5, 4, 3)), 0, 255).astype(np.uint8)
                size = (500 - 7 * i, 375) if i % 2 else (375, 500 + 3 * i)
                mode = {(0, 1): "L", (1, 1): "CMYK"}.get((label, i), "RGB")
                path = folder / f"{i}.JPEG"
                Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path, "JPEG")
                if (label, i) == (3, 2):
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_core_of_suite(path: Path, *without: str) -> None:
    """The ImageNet suite by FastFill alone: the other methods' stages only repeat what its stages do."""
    suite = read_config(CONFIGS / "suites" / "imagenet.yaml")
    suite["use"] = ["old_old", "new_new", "fastfill"]
    suite["stages"] |= dict.fromkeys(["backbone_side_info", *without])
    path.write_text(json.dumps(suite))


def reproduce(folder: Path, suite: str, *overrides: str) -> str:
    """Run a suite, whose stages are processes of their own, within this process, whose signals are not its own."""
    content_of.cache_clear()  # as in a fresh process
    with mock.patch("signal.signal"):
        return succeed("reproduce.py", "--config", suite, *overrides, cwd=folder, processes=None)


def test_the_imagenet_suite_end_to_end(tmp_path: Path) -> None:
    """The two models are trained within this process, by their configs; what follows, by the suite."""
    write_photographs(tmp_path / "images")
    write_core_of_suite(tmp_path / "suite.yaml", "backbone_old", "backbone_new")
    output = ""
    for name, own in BACKBONES.items():
        arguments = ("--config", str(CONFIGS / f"imagenet_backbone_{name}.yaml"), *DATA, *own)
        output += succeed("train_backbone.py", *arguments, cwd=tmp_path, processes=None)
    assert "unreadable image, left out (1 of 20 so far): images/training/n03/2.JPEG" in output
    assert "unreadable image, left out (1 of 12 so far): images/validation/n03/2.JPEG" in output
    assert reproduce(tmp_path, "suite.yaml", *SUITE).count(": done in ") == 4
    results = tmp_path / "results" / "imagenet"
    report = (results / "report.md").read_text()
    for case in ("old/old", "new/new", "FastFill new/old", "46.4", "66.5"):
        assert case in report
    evaluations = json.loads((results / "seed_0.json").read_text())["evaluations"]
    assert {name: evaluation["num_gallery"] for name, evaluation in evaluations.items()} == dict.fromkeys(
        ["eval_old_old", "eval_new_new", "eval_old_new_fastfill"], 11
    )
    for plot in ("backfilling.png", "retrieval_examples.png"):
        with Image.open(results / plot) as image:
            image.verify()
    assert reproduce(tmp_path, "suite.yaml", *SUITE).count(": up to date\n") == 4


def test_many_kills_of_a_suite(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """reproduce.py and whatever stage runs, training or evaluation, killed together at any moment."""
    kills = request.config.getoption("--kills")
    if not kills:
        pytest.skip("a stress test: pytest tests/end_to_end -k many_kills --kills 20")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        write_photographs(folder / "images")
        write_core_of_suite(folder / "suite.yaml")
    draw, moments = random.Random(0), []
    own = [f"stages.backbone_{name}.overrides.{key}" for name, keys in BACKBONES.items() for key in keys]
    command = command_of("reproduce.py", "--config", "suite.yaml", *SUITE, *own)
    for _ in range(kills):
        process = subprocess.Popen(
            command, cwd=killed, env=os.environ | ENVIRONMENT, stdout=subprocess.DEVNULL, start_new_session=True
        )
        moments.append(draw.uniform(0.5, 15))
        time.sleep(moments[-1])
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    results = []
    for folder in (whole, killed):
        reproduce(folder, "suite.yaml", *SUITE, *own)
        results.append(json.loads((folder / "results" / "imagenet" / "seed_0.json").read_text())["evaluations"])
        assert not list((folder / "results").rglob("*.tmp"))
    assert results[0] == results[1]
    print(f"killed after {', '.join(f'{moment:.1f}' for moment in moments)} s; then the figures of the whole run")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_is_read_by_the_script_that_its_comment_names(path: Path) -> None:
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    commands = [line.removeprefix("#").split()[1:] for line in comment if "python " in line]
    assert commands
    for script, *rest in commands:
        step = {} if rest[0] == "--config" else {"step": rest.pop(0)}
        assert rest[:2] == ["--config", f"configs/{path.name}"]
        build(UpgradeConfig if step else SCHEMAS[script], read_config(path) | step, source=path)


def test_trainings_of_two_seeds_share_the_embeddings_of_models_that_are_there(work: Path) -> None:
    for name in ("old", "new"):
        (work / "checkpoints" / f"{name}.pt").rename(work / "checkpoints" / f"glyphs_{name}.pt")
    embeddings = work / "checkpoints" / "embeddings"
    before = len(list(embeddings.iterdir()))
    overrides = (
        *("overrides.dataset_params.data_root=data", "overrides.dataset_params.num_classes=6", "overrides.epochs=2"),
        *("overrides.dataset_params.image_size=16", "overrides.dataset_params.batch_size=32"),
        *(f"overrides.arch_params.{name}_dim=16" for name in ("old_embedding", "new_embedding", "side_info")),
        *("overrides.arch_params.inner_dim=32", "seeds=[0,1]", "only=[sim_unc]"),
    )
    output = reproduce(work, str(CONFIGS / "suites" / "glyphs_ablations.yaml"), *overrides)
    assert output.count(": done in ") == 2
    models = [torch.load(work / "checkpoints" / f"glyphs_ablation_sim_unc_seed_{seed}.pt") for seed in (0, 1)]
    assert [model["provenance"]["seed"] for model in models] == [0, 1]
    assert not same_bits(models[0]["state_dict"], models[1]["state_dict"])
    config = read_yaml(work / "checkpoints" / "glyphs_ablation_sim_unc_seed_1.config.yaml")
    assert config["objective_params"]["discriminative_loss"] is None
    assert len(list(embeddings.iterdir())) == before + 2  # old and new, for both seeds
