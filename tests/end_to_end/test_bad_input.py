"""What bad input gets: one or two lines that name the file and the key, exit code 2, and nothing half-written."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.model_files import describe_backbone, save_model
from models.resnet import build_backbone
from tests.end_to_end.conftest import LONG, OUTPUT
from tests.tiny import REPOSITORY, fail, files_in, run_script, write_images, write_torchscript

CONFIGS = {
    "train_backbone.py": "backbone.yaml",
    "train_transformation.py": "transformation.yaml",
    "eval.py": "eval.yaml",
}


def refuse(script: str, *arguments: str, cwd: Path, leaves: tuple[str, ...] = ()) -> str:
    """The error of a script that must refuse `arguments` after its config; it runs within this process."""
    return fail(script, "--config", CONFIGS[script], *arguments, cwd=cwd, processes=None, leaves=leaves)


def write_backbone(path: Path, *, num_classes: int = 6, embedding_dim: int = 16) -> None:
    """An untrained model file of ours."""
    arguments: dict[str, Any] = {
        "arch": "ResNet18",
        "num_classes": num_classes,
        "embedding_dim": embedding_dim,
        "width": 0.125,
    }
    save_model(path, describe_backbone(build_backbone(**arguments), arguments), config={}, seed=0)


# --------------------------------------------------------------------------------------------------------- the configs


@pytest.mark.parametrize(
    ("script", "override", "message"),
    [
        ("train_backbone.py", "epochs=many", "backbone.yaml: epochs: should be a whole number, got 'many'"),
        ("train_backbone.py", "epochs=0", "backbone.yaml: epochs: should be at least 1"),
        ("train_backbone.py", "label_smoothing=7", "backbone.yaml: label_smoothing: should be at most 1.0, got 7"),
        ("train_backbone.py", "lr_policy_params.epochs=1", "lr_policy_params.epochs: is 1, fewer than the 2 epochs of"),
        (
            "train_backbone.py",
            "arch_params.arch=ResNet19",
            "arch_params.arch: unknown 'ResNet19'; did you mean ResNet18",
        ),
        ("train_backbone.py", "optimizer_params.algorithm=sdg", "algorithm: unknown 'sdg'; did you mean sgd?"),
        ("train_transformation.py", "arch_params.arch=mlp", "arch_params.arch: unknown 'mlp'; (choices: fct, fastfill"),
        ("train_transformation.py", "switch_mode_to_eval=7", "switch_mode_to_eval: should be true or false, got 7"),
        ("train_transformation.py", "optimizer_params=3", "optimizer_params: should be a section of keys, got 3"),
        (
            "eval.py",
            "eval_params.backfilling_list=sigma",
            "eval_params.backfilling_list: should be a list, got 'sigma'",
        ),
        ("eval.py", "eval_params.backfilling_list=[sgima]", "unknown 'sgima'; did you mean sigma?"),
        ("eval.py", "eval_params.recall_at=[5, 0]", "eval_params.recall_at: should be 1 or more each, got [5, 0]"),
        ("eval.py", "eval_params.precision_at=10", "eval_params.precision_at: should be a list, got 10"),
        ("eval.py", "eval_params.interval_level=95", "interval_level: should be between 0 and 1, as 0.95, got 95"),
        ("eval.py", "query_model_path=null", "all three, or embeddings_params"),
        ("eval.py", "embeddings_params.query=a.npz", "embeddings_params.gallery: is missing"),
    ],
)
def test_a_value_that_a_key_does_not_take(work: Path, script: str, override: str, message: str) -> None:
    assert message in refuse(script, override, cwd=work)


@pytest.mark.parametrize("script", CONFIGS)
def test_a_misspelt_key_and_a_missing_config(work: Path, script: str) -> None:
    key = "dataset_params.batchsize=8"
    assert "unknown key `dataset_params.batchsize`; did you mean `dataset_params.batch_size`?" in refuse(
        script, key, cwd=work
    )
    error = fail(script, "--config", "nowhere.yaml", cwd=work, processes=None)
    assert error == "error: nowhere.yaml: there is no such config file"
    assert "the following arguments are required: --config" in fail(script, cwd=work, processes=None)


def test_a_script_of_its_own_ends_the_same_way(work: Path) -> None:
    """One real start, for the exit code and the streams of the process."""
    done = run_script("train_backbone.py", "--config", "backbone.yaml", "optimizer_params.momentun=0.9", cwd=work)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: backbone.yaml: unknown key `optimizer_params.momentun`; did you mean `optimizer_params.momentum`?"
    )


# ------------------------------------------------------------------------------------------------------------ the data


def test_classes_that_are_not_there(work: Path) -> None:
    error = refuse("train_backbone.py", "dataset_params.num_classes=7", cwd=work)
    assert "dataset_params.num_classes: 7 classes asked for, data/training has 6" in error
    error = refuse("train_backbone.py", "arch_params.num_classes=5", cwd=work)
    assert "arch_params.num_classes: the classifier has 5 outputs, the training set 6 classes" in error


def remove_training(data: Path) -> None:
    shutil.rmtree(data / "training")


def empty_a_class(data: Path) -> None:
    for path in (data / "training" / "1").iterdir():
        path.unlink()


def truncate_images(data: Path) -> None:
    for path in (data / "training" / "1").iterdir():
        path.write_bytes(path.read_bytes()[:60])


def mix_sizes(data: Path) -> None:
    write_images(data / "other", classes=1, training=1, validation=0, size=20)
    (data / "other" / "training" / "0" / "000.png").replace(data / "training" / "1" / "000.png")
    shutil.rmtree(data / "other")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_training, "dataset_params.data_root: data has no folder `training`; prepare_dataset.py makes it"),
        (empty_a_class, "dataset_params.data_root: the class folder data/training/1 holds no image"),
        (
            truncate_images,
            "of 4 images are unreadable, more than the share of 0.001 that dataset_params.max_unreadable",
        ),
        (mix_sizes, "data/training/1/000.png: is (20, 20) pixels, others (16, 16)"),
    ],
)
def test_a_damaged_data_set(work: Path, damage: Callable[[Path], None], message: str) -> None:
    (work / "data").unlink()
    damage(write_images(work / "data", classes=2, training=2, validation=2))
    assert message in refuse("train_backbone.py", cwd=work)
    assert message in refuse("train_transformation.py", cwd=work)


# ---------------------------------------------------------------------------------------------------------- the models


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "there is no checkpoints/old.pt"),
        (lambda path: path.write_bytes(b""), "checkpoints/old.pt is no model file (it is empty)"),
        (lambda path: path.write_text("a text"), "checkpoints/old.pt is no model file (neither written by torch.save"),
        (
            truncated,
            "checkpoints/old.pt is no model file (neither written by torch.save nor TorchScript, or cut short)",
        ),
        (
            lambda path: torch.save({"weight": torch.zeros(2)}, path),
            "checkpoints/old.pt is no model file of ours (a dict",
        ),
        (lambda path: torch.save([1], path), "checkpoints/old.pt is no model file of ours (a list saved by torch)"),
        (lambda path: np.savez(path.open("wb"), a=1), "(a zip archive without a model's plain values)"),
    ],
)
def test_a_file_that_is_no_model(work: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(work / "checkpoints" / "old.pt")
    error = refuse("train_transformation.py", cwd=work)
    assert "old_model_path: " in error
    assert message in error
    error = refuse("eval.py", "gallery_model_path=checkpoints/old.pt", cwd=work)
    assert "gallery_model_path: " in error
    assert message in error


def test_a_transformation_where_an_embedding_model_is_needed(work: Path) -> None:
    error = refuse("train_transformation.py", "old_model_path=checkpoints/transformation.pt", cwd=work)
    assert "old_model_path: checkpoints/transformation.pt" in error
    error = refuse("eval.py", "gallery_model_path=checkpoints/transformation.pt", cwd=work)
    assert "gallery_model_path: checkpoints/transformation.pt" in error


def test_a_new_model_without_the_classifier_that_the_loss_needs(work: Path) -> None:
    write_torchscript(work / "archive.pt", dim=16)
    error = refuse("train_transformation.py", "new_model_path=archive.pt", cwd=work)
    assert "new_model_path: archive.pt is a TorchScript archive; this place needs a model file written here" in error
    error = refuse("train_transformation.py", "new_model_path=checkpoints/old_transformed.pt", cwd=work)
    assert "objective_params.discriminative_loss: needs a new model with a classifier" in error
    write_backbone(work / "few.pt", num_classes=4)
    error = refuse("train_transformation.py", "new_model_path=few.pt", cwd=work)
    assert "new_model_path: the new model's classifier has 4 classes, the training set 6" in error


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["arch_params.old_embedding_dim=99"], "arch_params.old_embedding_dim: says 99, the old model has 16"),
        (["arch_params.new_embedding_dim=99"], "arch_params.new_embedding_dim: says 99, the new model has 16"),
        (["arch_params.side_info_dim=99"], "side_info_dim: says 99, the old embedding that stands in for it has 16"),
        (
            ["arch_params.side_info_dim=16", "side_info_model_path=side.pt"],
            "arch_params.side_info_dim: says 16, the side-information model has 24",
        ),
        (["arch_params.sigma_dim=5"], "arch_params.sigma_dim: should be 1 or new_embedding_dim 16, got 5"),
        (["arch_params.arch=fct"], "objective_params.uncertainty_loss: needs a transformation with uncertainty"),
        (["objective_params=null"], "objective_params.uncertainty_loss: is missing"),
        (
            ["side_info_model_path=side.pt", "export_formats=[pt2]"],
            "export_formats: a model with a TorchScript archive in it can be exported as torchscript only",
        ),
    ],
)
def test_dimensions_and_losses_that_do_not_go_together(work: Path, overrides: list[str], message: str) -> None:
    write_torchscript(work / "side.pt", dim=24)
    assert message in refuse("train_transformation.py", *overrides, cwd=work)


# ------------------------------------------------------------------------------------------------------ the evaluation


def test_embeddings_of_two_dimensions(work: Path) -> None:
    write_backbone(work / "small.pt", embedding_dim=8)
    assert "dimensional" in refuse("eval.py", "gallery_model_path=small.pt", "eval_params.backfilling=null", cwd=work)
    assert "dimensional" in refuse(
        "eval.py", "gallery_model_path=small.pt", "eval_params.backfilling_list=[random]", cwd=work
    )


def test_sigma_order_without_sigma(work: Path) -> None:
    error = refuse("eval.py", "gallery_model_path=checkpoints/old.pt", "--output", "result.json", cwd=work)
    assert "order `sigma` needs a gallery with sigma" in error


def test_no_query_with_a_relevant_item(work: Path) -> None:
    (work / "data").unlink()
    write_images(work / "data", classes=6, training=1, validation=1)
    error = refuse("eval.py", "--output", "result.json", cwd=work)
    assert "none of the 6 queries has an item of its label in the gallery but itself" in error


GOOD = {"embeddings": np.eye(4, dtype=np.float32), "labels": np.array([0, 0, 1, 1])}


@pytest.mark.parametrize(
    ("gallery", "message"),
    [
        (None, "embeddings_params.gallery: there is no gallery.npz"),
        ("a text", "embeddings_params.gallery: gallery.npz is no embedding file"),
        ({"labels": GOOD["labels"]}, "embeddings_params.gallery: gallery.npz has no array `embeddings`"),
        (
            GOOD | {"labels": np.zeros(3, dtype=int)},
            "embeddings_params.gallery: gallery.npz: labels is (3,), embeddings (4, 4)",
        ),
        (GOOD | {"embeddings": np.zeros(4)}, "gallery.npz: embeddings should be (n, d) float16 or float32"),
        ({"embeddings": GOOD["embeddings"]}, "needs `labels`"),
        (
            GOOD | {"embeddings": GOOD["embeddings"] * np.nan},
            "query.npz, gallery.npz: transformed: 4 of 4 rows hold NaN or infinity, the first is row 0",
        ),
        (GOOD | {"embeddings": GOOD["embeddings"][:, :3]}, "query.npz, gallery.npz: transformed: embeddings are 3-dim"),
        (
            GOOD | {"embeddings": GOOD["embeddings"][:0], "labels": GOOD["labels"][:0]},
            "embeddings_params.gallery: gallery.npz is empty, its embeddings are (0, 4)",
        ),
        (GOOD | {"ids": np.array([0, 7, 7, 1])}, "gallery.npz: 1 ids occur more than once, the first is 7"),
        (
            GOOD | {"ids": np.array([3, 2, 1, 0])},
            "embeddings_params.gallery: gallery.npz has `ids` and embeddings_params.query: query.npz has none",
        ),
        (GOOD, "order `sigma` needs a gallery with sigma"),
    ],
)
def test_embedding_files_that_do_not_do(
    tmp_path: Path, gallery: dict[str, np.ndarray] | str | None, message: str
) -> None:
    np.savez(tmp_path / "query.npz", **GOOD)  # type: ignore[arg-type]
    if isinstance(gallery, dict):
        np.savez(tmp_path / "gallery.npz", **gallery)  # type: ignore[arg-type]
    elif gallery is not None:
        (tmp_path / "gallery.npz").write_text(gallery)
    (tmp_path / "eval.yaml").write_text(
        "embeddings_params: {query: query.npz, gallery: gallery.npz}\n"
        "eval_params: {backfilling: 1, backfilling_list: [sigma]}\n"
    )
    assert message in refuse("eval.py", "--output", "result.json", cwd=tmp_path)


def test_ids_that_occur_twice_and_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "eval.yaml").write_text("embeddings_params: {query: query.npz, gallery: query.npz}\n")
    np.savez(tmp_path / "query.npz", **GOOD, ids=np.array([0, 7, 7, 1]))  # type: ignore[arg-type]
    error = refuse("eval.py", "--output", "result.json", cwd=tmp_path)
    assert error == "error: embeddings_params.query: query.npz: 1 ids occur more than once, the first is 7"
    np.savez(tmp_path / "query.npz", **{name: array[:0] for name, array in GOOD.items()})  # type: ignore[arg-type]
    error = refuse("eval.py", cwd=tmp_path)
    assert error == "error: embeddings_params.query: query.npz is empty, its embeddings are (0, 4)"


# -------------------------------------------------------------------------------------------- the outputs and the disk


@pytest.mark.parametrize("script", CONFIGS)
def test_an_output_that_cannot_be_written(work: Path, script: str) -> None:
    """A file stands where its folder should be, and a folder where the file should be."""
    outputs = {
        "train_backbone.py": "output_model_path={}",
        "train_transformation.py": "output_transformation_path={}",
        "eval.py": "output={}",
    }
    error = refuse(script, outputs[script].format("eval.yaml/below.pt"), cwd=work)
    assert "eval.yaml/below" in error
    assert "cannot be written" in error


@pytest.mark.parametrize(
    ("script", "arguments", "key"),
    [
        ("train_backbone.py", ["--config", "backbone.yaml", "output_model_path=sealed/x.pt"], "output_model_path"),
        (
            "train_transformation.py",
            ["--config", "transformation.yaml", "output_transformed_old_model_path=sealed/x.pt"],
            "output_transformed_old_model_path",
        ),
        ("eval.py", ["--config", "eval.yaml", "--output", "sealed/x.json"], "output"),
        (
            "eval.py",
            ["--config", "eval.yaml", "eval_params.embeddings_output_dir=sealed/x"],
            "eval_params.embeddings_output_dir",
        ),
        ("embed.py", ["--config", "embed.yaml", "output_embeddings_path=sealed/x/y.npz"], "output_embeddings_path"),
        ("prepare_dataset.py", ["--dataset", "glyphs", "--output", "sealed/x"], ""),
        ("reproduce.py", ["--config", str(REPOSITORY / "configs/suites/quickstart.yaml"), "output_dir=sealed/x"], ""),
    ],
)
def test_a_folder_that_may_not_be_written_to_shows_before_any_work(
    work: Path, script: str, arguments: list[str], key: str
) -> None:
    (work / "sealed").mkdir(mode=0o555)
    data = "dataset_params: {name: cifar100, data_root: data, batch_size: 32, image_size: 16}\n"
    (work / "embed.yaml").write_text(f"model_path: checkpoints/new.pt\n{data}")
    error = fail(script, *arguments, cwd=work)
    assert error.startswith(f"error: {key}: sealed/x" if key else "error: "), error
    assert "sealed/x" in error
    assert ("may not be written to" if key else "Permission denied") in error


def test_images_that_may_not_be_read(work: Path) -> None:
    (work / "data").unlink()
    write_images(work / "data", classes=6, training=2, validation=2)
    (work / "data" / "training" / "1").chmod(0)
    error = fail("train_backbone.py", "--config", "backbone.yaml", cwd=work)
    assert error == "error: data/training/1: cannot be used (Permission denied)"


def test_a_file_name_that_is_no_utf_8_on_a_strict_terminal(work: Path) -> None:
    """The folder is read before the models, and holds no image that can be read."""
    (work / "data").unlink()
    write_images(work / "data", classes=6, training=3, validation=2)
    (work / "data" / "training" / "1" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no image")
    arguments = ["--config", "backbone.yaml", "dataset_params.max_unreadable=0.5", "epochs=1"]
    for encoding in ("utf-8:strict", "ascii"):
        done = run_script("train_backbone.py", *arguments, cwd=work, PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        assert "data/training/1/caf\\udce9.png" in done.stdout + done.stderr


def fill_disk(folder: Path, file: str) -> Path:
    """What this process writes to `file` meets a full disk from now on: the kernel's own, /dev/full."""
    path = folder / file
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.symlink_to("/dev/full")
    return temporary


needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")


@needs_dev_full
def test_a_full_disk_leaves_the_last_good_checkpoint(interrupted: tuple[str, Path], tmp_path: Path) -> None:
    script, folder = interrupted
    work = tmp_path / "work"
    shutil.copytree(folder, work, symlinks=True)
    checkpoint = work / f"{OUTPUT[script]}.checkpoint.pt"
    before = checkpoint.read_bytes()
    temporary = fill_disk(work, f"{OUTPUT[script]}.checkpoint.pt")
    leaves = (f"{OUTPUT[script]}.config.yaml", str(temporary.relative_to(work)))  # written again, and removed
    error = fail(script, *LONG[script], cwd=work, processes=None, leaves=leaves)
    assert error.startswith(f"error: {OUTPUT[script]}.checkpoint.pt: no space left on the disk")
    assert checkpoint.read_bytes() == before


@needs_dev_full
@pytest.mark.parametrize(
    ("script", "file", "overrides"),
    [
        ("train_backbone.py", "checkpoints/full.config.yaml", ["output_model_path=checkpoints/full.pt"]),
        ("train_backbone.py", "checkpoints/full.pt", ["output_model_path=checkpoints/full.pt", "epochs=1"]),
        (
            "train_backbone.py",
            "checkpoints/full.torchscript.pt",
            ["output_model_path=checkpoints/full.pt", "epochs=1", "export_formats=[torchscript]"],
        ),
        (
            "train_backbone.py",
            "checkpoints/full.pt2",
            ["output_model_path=checkpoints/full.pt", "epochs=1", "export_formats=[pt2]"],
        ),
        ("eval.py", "result.json", ["output=result.json"]),
        ("eval.py", "curves.npy", ["eval_params.backfilling_result_path=curves.npy"]),
        ("eval.py", "query.npz", ["eval_params.embeddings_output_dir=."]),
        ("eval.py", "queries.npz", ["eval_params.per_query=queries.npz"]),
    ],
)
def test_a_full_disk_at_any_file(work: Path, script: str, file: str, overrides: list[str]) -> None:
    fill_disk(work, file)
    done = run_script(script, "--config", CONFIGS[script], *overrides, cwd=work, processes=None)
    assert done.returncode == 2
    assert f"error: {file}: no space left on the disk" in done.stderr
    assert file not in files_in(work)
    assert not list(work.rglob("*.tmp"))


# ------------------------------------------------------------------------------------------------------------ the loss


def test_a_loss_that_is_not_finite(work: Path) -> None:
    leaves: tuple[str, ...] = ("checkpoints/x.config.yaml",)
    overrides = ["output_model_path=checkpoints/x.pt", "optimizer_params.lr=1e30"]
    error = refuse("train_backbone.py", *overrides, cwd=work, leaves=leaves)
    assert "error: the loss is not finite by step " in error
    assert " of epoch 1; no checkpoint yet; lower the learning rate" in error
    whole = "dataset_params.batch_size=144"  # one step an epoch: its loss is that of the weights before it
    leaves = (*leaves, "checkpoints/x.log.jsonl", "checkpoints/x.checkpoint.pt")
    (work / "checkpoints" / "x.config.yaml").unlink()
    error = refuse("train_backbone.py", *overrides, whole, cwd=work, leaves=leaves)
    assert "the loss is not finite by step 1 of epoch 2" in error
    assert "the last good checkpoint is checkpoints/x.checkpoint.pt (epoch 1)" in error
