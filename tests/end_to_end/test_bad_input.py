"""What bad input gets: one or two lines that name the file and the key, exit code 2, and nothing half-written.

A case of each kind of mistake; the tests of the rooms go through what there is of each.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.conftest import LONG, OUTPUT, write_backbone
from tests.tiny import REPOSITORY, fail, files_in, run_script, write_images, write_torchscript

BACKBONE, TRANSFORMATION, EVALUATION = "train_backbone.py", "train_transformation.py", "eval.py"
CONFIGS = {BACKBONE: "backbone.yaml", TRANSFORMATION: "transformation.yaml", EVALUATION: "eval.yaml"}


def refuse(script: str, *arguments: str, cwd: Path, leaves: tuple[str, ...] = ()) -> str:
    """The error of a script that must refuse `arguments` after its config; it runs within this process."""
    return fail(script, "--config", CONFIGS[script], *arguments, cwd=cwd, processes=None, leaves=leaves)


# --------------------------------------------------------------------------------------------------------- the configs


@pytest.mark.parametrize(
    ("script", "override", "message"),
    [
        (BACKBONE, "epochs=0", "backbone.yaml: epochs: should be at least 1"),
        (BACKBONE, "label_smoothing=7", "backbone.yaml: label_smoothing: should be at most 1.0, got 7"),
        (BACKBONE, "lr_policy_params.epochs=1", "lr_policy_params.epochs: is 1, fewer than the 2 epochs of"),
        (BACKBONE, "dataset_params.num_classes=7", "num_classes: 7 classes asked for, data/training has 6"),
        (BACKBONE, "arch_params.num_classes=5", "the classifier has 5 outputs, the training set 6 classes"),
        (TRANSFORMATION, "arch_params.arch=mlp", "arch_params.arch: unknown 'mlp'; (choices: fct, fastfill"),
        (TRANSFORMATION, "objective_params=null", "objective_params.uncertainty_loss: is missing"),
        (TRANSFORMATION, "arch_params.sigma_dim=5", "sigma_dim: should be 1 or new_embedding_dim 16, got 5"),
        (EVALUATION, "eval_params.backfilling_list=[sgima]", "unknown 'sgima'; did you mean sigma?"),
        (EVALUATION, "eval_params.recall_at=[5, 0]", "eval_params.recall_at: should be 1 or more each, got [5, 0]"),
        (EVALUATION, "eval_params.interval_level=95", "interval_level: should be between 0 and 1, as 0.95, got 95"),
        (EVALUATION, "gallery_model_path=checkpoints/old.pt", "order `sigma` needs a gallery with sigma"),
        (EVALUATION, "eval_params.same_items=true", "is for embeddings_params; models embed the same images"),
        (EVALUATION, "query_model_path=null", "all three, or embeddings_params"),
        (EVALUATION, "embeddings_params.query=a.npz", "embeddings_params.gallery: is missing"),
    ],
)
def test_a_value_that_a_key_does_not_take(work: Path, script: str, override: str, message: str) -> None:
    assert message in refuse(script, override, cwd=work)


@pytest.mark.parametrize("script", CONFIGS)
def test_a_misspelt_key_and_a_missing_config(work: Path, script: str) -> None:
    message = "unknown key `dataset_params.batchsize`; did you mean `dataset_params.batch_size`?"
    assert message in refuse(script, "dataset_params.batchsize=8", cwd=work)
    error = fail(script, "--config", "nowhere.yaml", cwd=work, processes=None)
    assert error == "error: nowhere.yaml: there is no such config file"
    assert "the following arguments are required: --config" in fail(script, cwd=work, processes=None)


# ------------------------------------------------------------------------------------------------- images and models


def test_a_damaged_data_set(work: Path) -> None:
    (work / "data").unlink()
    data = write_images(work / "data", classes=2, training=2, validation=2)
    for path in (data / "training" / "1").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    for script in (BACKBONE, TRANSFORMATION):
        error = refuse(script, cwd=work)
        assert "of 4 images are unreadable, more than the share of 0.001 that dataset_params.max_unreadable" in error


def test_a_file_that_is_no_model_or_one_of_another_kind(work: Path) -> None:
    roles = {TRANSFORMATION: "old_model_path", EVALUATION: "gallery_model_path"}
    whole = (work / "checkpoints" / "old.pt").read_bytes()
    (work / "cut.pt").write_bytes(whole[:2000])
    cut = "is no model file (neither written by torch.save nor TorchScript, or cut short)"
    alone = "is a transformation alone; this place needs a model that"
    for path, message in [("cut.pt", cut), ("checkpoints/transformation.pt", alone)]:
        for script, role in roles.items():
            assert f"{role}: {path} {message}" in refuse(script, f"{role}={path}", cwd=work)
    for script, role in roles.items():
        assert f"{role}: there is no none.pt" in refuse(script, f"{role}=none.pt", cwd=work)


def test_models_that_do_not_go_with_what_they_are_for(work: Path) -> None:
    write_torchscript(work / "archive.pt", dim=16)
    write_backbone(work / "few.pt", num_classes=4)
    write_backbone(work / "small.pt", embedding_dim=8)
    for script, arguments, message in [
        (TRANSFORMATION, ("new_model_path=archive.pt",), "archive.pt is a TorchScript archive; this place needs a"),
        (TRANSFORMATION, ("new_model_path=checkpoints/old_transformed.pt",), "needs a new model with a classifier"),
        (TRANSFORMATION, ("new_model_path=few.pt",), "new model's classifier has 4 classes, the training set 6"),
        (
            TRANSFORMATION,
            ("side_info_model_path=archive.pt", "export_formats=[pt2]"),
            "export_formats: a model with a TorchScript archive in it can be exported as torchscript only",
        ),
        (EVALUATION, ("gallery_model_path=small.pt", "eval_params.backfilling=null"), "dimensional"),
        (EVALUATION, ("gallery_model_path=small.pt", "eval_params.backfilling_list=[random]"), "dimensional"),
    ]:
        assert message in refuse(script, *arguments, cwd=work)


def test_embedding_files_that_do_not_do(tmp_path: Path) -> None:
    embeddings, labels = np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1])
    np.savez(tmp_path / "query.npz", embeddings=embeddings, labels=labels)
    (tmp_path / "eval.yaml").write_text(
        "embeddings_params: {query: query.npz, gallery: gallery.npz}\n"
        "eval_params: {backfilling: 1, backfilling_list: [random]}\n"
    )
    assert "embeddings_params.gallery: there is no gallery.npz" in refuse(EVALUATION, cwd=tmp_path)
    for arrays, message in [
        ({"embeddings": embeddings, "labels": labels[:3]}, "gallery.npz: labels is (3,), embeddings (4, 4)"),
        ({"embeddings": embeddings}, "needs `labels`"),
        (
            {"embeddings": embeddings * np.nan, "labels": labels},
            "query.npz, gallery.npz: transformed: 4 of 4 rows hold NaN or infinity, the first is row 0",
        ),
    ]:
        np.savez(tmp_path / "gallery.npz", **arrays)  # type: ignore[arg-type]
        assert message in refuse(EVALUATION, cwd=tmp_path)


# -------------------------------------------------------------------------------------------- the outputs and the disk


def test_a_file_where_the_folder_of_the_output_should_be(work: Path) -> None:
    for script, key in ((BACKBONE, "output_model_path"), (EVALUATION, "output")):
        error = refuse(script, f"{key}=eval.yaml/below.pt", cwd=work)
        assert "eval.yaml/below" in error
        assert "cannot be written" in error


@pytest.mark.parametrize(
    ("script", "config", "output", "message"),
    [
        (TRANSFORMATION, "transformation.yaml", "output_transformed_old_model_path", "may not be written to"),
        ("embed.py", "embed.yaml", "output_embeddings_path", "may not be written to"),
        ("reproduce.py", str(REPOSITORY / "configs/suites/quickstart.yaml"), "output_dir", "Permission denied"),
    ],
)
def test_a_folder_that_may_not_be_written_to_shows_before_any_work(
    work: Path, script: str, config: str, output: str, message: str
) -> None:
    (work / "sealed").mkdir(mode=0o555)
    error = fail(script, "--config", config, f"{output}=sealed/x/y.npz", cwd=work)
    assert "sealed/x" in error
    assert message in error
    assert output in error or script == "reproduce.py"


def test_images_that_may_not_be_read(work: Path) -> None:
    (work / "data").unlink()
    write_images(work / "data", classes=6, training=2, validation=2)
    (work / "data" / "training" / "1").chmod(0)
    error = fail(BACKBONE, "--config", "backbone.yaml", cwd=work)
    assert error == "error: data/training/1: cannot be used (Permission denied)"


def test_a_file_name_that_is_no_utf_8_on_a_strict_terminal(work: Path) -> None:
    (work / "data").unlink()
    write_images(work / "data", classes=6, training=3, validation=2)
    (work / "data" / "training" / "1" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no image")
    arguments = ("--config", "backbone.yaml", "dataset_params.max_unreadable=0.5", "epochs=1")
    done = run_script(BACKBONE, *arguments, cwd=work, PYTHONIOENCODING="utf-8:strict")
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


FULL = "output_model_path=checkpoints/full.pt"


@needs_dev_full
@pytest.mark.parametrize(
    ("script", "file", "overrides"),
    [
        (BACKBONE, "checkpoints/full.config.yaml", (FULL,)),
        (BACKBONE, "checkpoints/full.pt", (FULL, "epochs=1")),
        (BACKBONE, "checkpoints/full.pt2", (FULL, "epochs=1", "export_formats=[pt2]")),
        (EVALUATION, "result.json", ("output=result.json",)),
        (EVALUATION, "query.npz", ("eval_params.embeddings_output_dir=.",)),
        (EVALUATION, "queries.npz", ("eval_params.per_query=queries.npz",)),
    ],
)
def test_a_full_disk_at_any_file(work: Path, script: str, file: str, overrides: tuple[str, ...]) -> None:
    fill_disk(work, file)
    done = run_script(script, "--config", CONFIGS[script], *overrides, cwd=work, processes=None)
    assert done.returncode == 2
    assert f"error: {file}: no space left on the disk" in done.stderr
    assert file not in files_in(work)
    assert not list(work.rglob("*.tmp"))


def test_a_loss_that_is_not_finite(work: Path) -> None:
    overrides = ("output_model_path=checkpoints/x.pt", "optimizer_params.lr=1e30")
    error = refuse(BACKBONE, *overrides, cwd=work, leaves=("checkpoints/x.config.yaml",))
    assert "error: the loss is not finite by step " in error
    assert " of epoch 1; no checkpoint yet; lower the learning rate" in error
