"""Folders as people have them: hidden ones, classes that a split lacks or has beyond the other, images deeper down."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny import same_bits, state_of, succeed, write_configs

SHADES = {"ant": (220, 30, 30), "bee": (30, 220, 30), "cat": (30, 30, 220), "dog": (200, 200, 30)}
TRAINING = ("--config", "backbone.yaml", "arch_params.num_classes=4", "dataset_params.batch_size=8", "epochs=10")
EMBED = """
model_path: checkpoints/new.pt
dataset_params: {name: cifar100, data_root: data, batch_size: 32, image_size: 16}
output_embeddings_path: embedded.npz
"""


def write_class(folder: Path, name: str, count: int) -> None:
    """Images of a class: its shade, with noise."""
    rng = np.random.default_rng(sum(name.encode()))
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = np.array(SHADES.get(name, (128, 128, 128))) + rng.normal(0, 30, (16, 16, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, configs and a model trained on it; not to be written to."""
    folder = tmp_path_factory.mktemp("plain")
    for name in SHADES:
        write_class(folder / "data" / "training" / name, name, 20)
        write_class(folder / "data" / "validation" / name, name, 4)
    write_configs(folder)
    output = succeed("train_backbone.py", *TRAINING, cwd=folder, processes=None)
    assert "data/" not in output  # there is nothing to say of the folders
    assert accuracy(folder) == 1
    return folder


@pytest.fixture
def littered(plain: Path, tmp_path: Path) -> Path:
    """The same with what does not belong to it, without validation images of a class and with some of another."""
    write_configs(tmp_path)
    (tmp_path / "embed.yaml").write_text(EMBED)
    shutil.copytree(plain / "data", tmp_path / "data")
    for split in ("training", "validation"):
        folder = tmp_path / "data" / split
        for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", "bee/.ipynb_checkpoints"):
            write_class(folder / name, "dog", 1)
        for name in SHADES:
            (folder / name / "._0.png").write_bytes(b"\0\5\x16\7")
        (folder / "cat" / "images").mkdir()
        for path in (folder / "cat").glob("[0-9]*.png"):
            path.rename(folder / "cat" / "images" / path.name)
        (folder / "dog" / "all").symlink_to("..")
    shutil.rmtree(tmp_path / "data" / "validation" / "ant")
    write_class(tmp_path / "data" / "validation" / "aye", "aye", 2)
    return tmp_path


def accuracy(folder: Path) -> float:
    """The last validation accuracy of a training."""
    return json.loads((folder / "checkpoints" / "new.log.jsonl").read_text().splitlines()[-1])["validation_accuracy"]


def test_the_labels_of_both_splits_mean_the_same_classes(plain: Path, littered: Path) -> None:
    output = succeed("train_backbone.py", *TRAINING, cwd=littered, processes=None)
    assert accuracy(littered) == 1
    assert same_bits(*(state_of(folder / "checkpoints" / "new.pt") for folder in (plain, littered)))
    for line in (
        "data/training: left out hidden images: 4 (ant/._0.png, bee/._0.png, cat/._0.png, ...); hidden, tool or "
        "circular folders: 5 (.ipynb_checkpoints, @eaDir, __MACOSX, ...)",
        "data/validation: no image of some of the 4 classes: 1 (ant)",
        "data/validation: class folders that the training split lacks, left out: 1 (aye)",
    ):
        assert output.splitlines().count(line) == 1, output
    for split, labels in (("training", [0, 1, 2, 3] * 20), ("validation", [1, 2, 3] * 4 + [4] * 2)):
        succeed("embed.py", "--config", "embed.yaml", f"split={split}", cwd=littered, processes=None)
        assert np.load(littered / "embedded.npz")["labels"].tolist() == sorted(labels)
    two = ("split=validation", "dataset_params.num_classes=2")
    output = succeed("embed.py", "--config", "embed.yaml", *two, cwd=littered, processes=None)
    assert np.load(littered / "embedded.npz")["labels"].tolist() == [1] * 4
    same = ("gallery_model_path=checkpoints/new.pt", "eval_params.backfilling=null", "output=result.json")
    output = succeed("eval.py", "--config", "eval.yaml", *same, cwd=littered, processes=None)
    assert "lacks, numbered after its classes: 1 (aye)" in output
    assert json.loads((littered / "result.json").read_text())["num_queries"] == 14
