"""Folders as people have them: hidden ones, classes that a split lacks or has beyond the other, images deeper down."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.conftest import evaluate
from tests.tiny import same_bits, state_of, succeed, write_configs


@pytest.fixture
def littered(trained: Path, tmp_path: Path) -> Path:
    """The shared images among what does not belong to them, without those of a class for validation, with another's."""
    write_configs(tmp_path)
    shutil.copytree(trained / "data", tmp_path / "data")
    image = trained / "data" / "training" / "0" / "000.png"
    for split in ("training", "validation"):
        folder = tmp_path / "data" / split
        for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", "1/.ipynb_checkpoints"):
            (folder / name).mkdir()
            shutil.copy(image, folder / name)
        for name in "0123":
            (folder / name / "._000.png").write_bytes(b"\0\5\x16\7")
        (folder / "2" / "images").mkdir()
        for path in (folder / "2").glob("[0-9]*.png"):
            path.rename(folder / "2" / "images" / path.name)
        (folder / "3" / "all").symlink_to("..")
    shutil.rmtree(tmp_path / "data" / "validation" / "0")
    (tmp_path / "data" / "validation" / "00").mkdir()
    shutil.copy(image, tmp_path / "data" / "validation" / "00")
    return tmp_path


def test_the_labels_of_both_splits_mean_the_same_classes(trained: Path, littered: Path) -> None:
    output = succeed("train_backbone.py", "--config", "backbone.yaml", cwd=littered, processes=None)
    assert same_bits(*(state_of(folder / "checkpoints" / "new.pt") for folder in (trained, littered)))
    for line in (
        "data/training: left out hidden images: 4 (0/._000.png, 1/._000.png, 2/._000.png, ...); hidden, tool or "
        "circular folders: 5 (.ipynb_checkpoints, @eaDir, __MACOSX, ...)",
        "data/validation: no image of some of the 6 classes: 1 (0)",
        "data/validation: class folders that the training split lacks, left out: 1 (00)",
    ):
        assert output.splitlines().count(line) == 1, output
    of_validation = [label for label in range(1, 6) for _ in range(8)]
    for arguments, labels in (
        (("split=training",), [label for label in range(6) for _ in range(24)]),
        (("split=validation",), [*of_validation, 6]),  # the other's class comes after those of the training split
        (("split=validation", "dataset_params.num_classes=2"), [1] * 8),
    ):
        output = succeed("embed.py", "--config", "embed.yaml", *arguments, cwd=littered, processes=None)
        assert ("lacks, numbered after its classes: 1 (00)" in output) == (6 in labels)
        assert sorted(np.load(littered / "embeddings" / "new.npz")["labels"].tolist()) == labels
    result = evaluate(littered, "gallery_model_path=checkpoints/new.pt", "eval_params.backfilling=null")
    assert result["num_queries"] == len(of_validation)
