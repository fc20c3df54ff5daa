"""Transformations of embedding files alone: no model, no image, every method and the choice among them."""

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.model_files import load_model
from tests.end_to_end.conftest import log_of
from tests.tiny import ENVIRONMENT, command_of, fail, same_bits, state_of, succeed

CONFIG = """
old: old.npz
new: new.npz
held_out: 0.25
batch_size: 32
inner_dim: 16
epochs: 12
output: out/h.pt
"""
FASTFILL = ["method=fastfill", "objective_params={discriminative_loss: {}, uncertainty_loss: {}}"]
N, CLASSES = 120, 6


def write(path: Path, **arrays: np.ndarray) -> None:
    if path.suffix == ".npz":
        np.savez(path, **arrays)  # type: ignore[arg-type]
        return
    path.mkdir()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Noisy embeddings of classes: 6-d old ones, and 4-d new ones that are a linear function of them but for noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, N)
    old = (rng.normal(size=(CLASSES, 6))[labels] + 0.5 * rng.normal(size=(N, 6))).astype(np.float32)
    new = (old @ rng.normal(size=(6, 4)) + 0.2 * rng.normal(size=(N, 4)) + 1).astype(np.float32)
    ids = 3 * np.arange(N)
    write(tmp_path / "old.npz", embeddings=old, ids=ids)
    write(tmp_path / "new.npz", embeddings=new, ids=ids)
    write(tmp_path / "new_unit", embeddings=new / np.linalg.norm(new, axis=1, keepdims=True), ids=ids)
    write(tmp_path / "side.npz", embeddings=new[:, :2] + 1, ids=ids)
    np.save(tmp_path / "labels.npy", 10 * labels)
    (tmp_path / "files.yaml").write_text(CONFIG)
    return tmp_path


def fit(folder: Path, *arguments: str, processes: int | None = None) -> str:
    command = ["fit_embeddings.py", "--config", "files.yaml", *arguments]
    return succeed(*command, cwd=folder, processes=processes)


def apply(folder: Path, old: str = "old.npz", side: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """h and log variance of all items, by the transformation file."""
    files = [np.load(folder / name)["embeddings"] for name in (old, side) if name is not None]
    with torch.inference_mode():
        h, log_variance = load_model(folder / "out" / "h.pt")(*map(torch.from_numpy, files))
    assert log_variance is not None
    assert log_variance.shape == (N, 1)
    assert log_variance.std() > 0
    return h, log_variance


def arguments_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "out" / "h.pt", weights_only=True)["arguments"]


def origin(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "out" / "h.pt", weights_only=True)["provenance"]["embeddings"]


def test_auto_tries_all_and_writes_the_best(folder: Path) -> None:
    output = fit(folder, processes=1)  # a process of its own, as a user starts it
    table = output[output.index("held-out pairs") :].splitlines()
    scores = {line.split()[0]: float(line.split()[1].rstrip("%")) for line in table[1:6]}
    assert list(scores) == ["procrustes", "ridge", "residual_mlp", "fct", "fastfill"]
    best = max(scores, key=lambda arch: scores[arch])
    assert best == "ridge"  # the new embeddings are linear in the old ones
    assert f"auto: {best}; the highest recall@10 on held-out pairs is {best}'s, {scores[best]:.1f}%; " in output
    assert torch.load(folder / "out" / "h.pt", weights_only=True)["arguments"]["arch"] == best
    found = origin(folder)
    assert (found["pairs"], found["dims"]) == ({"training": 90, "held_out": 30}, {"old": 6, "new": 4})
    assert {arch: round(100 * one["recall@10"], 1) for arch, one in found["held_out"].items()} == scores
    assert {role: len(file["sha256"]) for role, file in found["files"].items()} == {"old": 64, "new": 64}
    logs = {f"h.{arch}.{suffix}" for arch in scores for suffix in ("config.yaml", "log.jsonl")}
    assert {path.name for path in (folder / "out").iterdir()} == {"h.pt", "h.config.yaml", *logs}
    h, log_variance = apply(folder)
    new = torch.from_numpy(np.load(folder / "new.npz")["embeddings"])
    assert float((h - new).square().mean()) < 0.06  # the noise has a variance of 0.04
    assert float(((h - new).square().mean(1) * (-log_variance[:, 0]).exp()).mean()) == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize("arch", ["procrustes", "ridge", "residual_mlp", "fct", "fastfill"])
def test_each_method_has_uncertainty_keeps_to_length_one_and_says_so(folder: Path, arch: str) -> None:
    """A zero vector does not hide that all others have length 1; refined and exported embeddings have it too."""
    new = np.load(folder / "new_unit" / "embeddings.npy")
    new[[0, 50]] = 0
    np.save(folder / "new_unit" / "embeddings.npy", new)
    arguments = FASTFILL if arch == "fastfill" else [f"method={arch}"]
    refining = ["refinement_params={clusters: 5, strengths: [0.6]}", "export_formats=[torchscript]"]
    for role, normalised in (("new_unit", True), ("new.npz", False)):
        output = fit(folder, *arguments, *refining, f"new={role}")
        assert ("new: new_unit: 2 zero vectors, the first in row 0; kept as zero\n" in output) == normalised
        content = torch.load(folder / "out" / "h.pt", weights_only=True)
        assert content["transformation"]["arguments"]["normalised"] is normalised
        h, log_variance = apply(folder)
        exported = torch.jit.load(folder / "out" / "h.torchscript.pt")
        found = exported(torch.from_numpy(np.load(folder / "old.npz")["embeddings"]))
        torch.testing.assert_close(found, (h, log_variance), rtol=1e-4, atol=1e-4)
        assert torch.allclose(h.norm(dim=1), torch.ones(N)) == normalised
    fit(folder, *arguments, "new=new_unit")
    assert origin(folder)["normalised"]
    torch.testing.assert_close(apply(folder)[0].norm(dim=1), torch.ones(N))
    fit(folder, *arguments, "new=new_unit", "normalised=off")
    assert float((apply(folder)[0].norm(dim=1) - 1).abs().max()) > 1e-3


def test_with_labels_a_classifier_is_fitted_and_map_decides(folder: Path) -> None:
    labelled = [*FASTFILL, "labels=labels.npy"]
    assert "mAP" in fit(folder, *labelled)
    by_labels = state_of(folder / "out" / "h.pt")
    fit(folder, *FASTFILL)
    assert not same_bits(by_labels, state_of(folder / "out" / "h.pt"))  # that was InfoNCE
    np.save(folder / "w.npy", np.zeros((10 * CLASSES, 4), np.float32))
    fit(folder, *labelled, "classifier=w.npy")
    assert set(origin(folder)["files"]) == {"old", "new", "labels", "classifier"}


@pytest.mark.parametrize("mixup", [(), ("mixup=1",)])
def test_labels_of_a_part_of_the_items(folder: Path, mixup: tuple[str, ...]) -> None:
    labels = np.load(folder / "labels.npy")
    labels[::2] = -1
    contents = []
    for own in (labels, np.where(labels < 0, -1 - np.arange(N), labels)):  # other negative ones
        np.save(folder / "labels.npy", own)
        assert "mAP" in fit(folder, *FASTFILL, "labels=labels.npy", "refinement_params.held_out=0.1", *mixup)
        contents.append(torch.load(folder / "out" / "h.pt", weights_only=True))
    first, again = contents
    assert same_bits(first["transformation"]["state_dict"], again["transformation"]["state_dict"])
    assert first["state_dict"]["classifier"].shape == (CLASSES, 4)
    assert same_bits(first["state_dict"], again["state_dict"])
    assert first["chosen"] == again["chosen"]


@pytest.mark.parametrize("arch", ["residual_mlp", "fct", "fastfill", "contrast"])
def test_embeddings_of_any_scale_and_offset_train_alike(folder: Path, arch: str) -> None:
    arguments = {"fastfill": [*FASTFILL, "labels=labels.npy"], "contrast": FASTFILL}.get(arch, [f"method={arch}"])
    arguments = [*arguments, "optimizer_params={algorithm: adam, lr: 0.01}"]
    fit(folder, *arguments)
    (plain, sigma), (before,) = apply(folder), origin(folder)["held_out"].values()
    for role, offset, scale in (("new", 0, 1e4), ("new", 0, 1e-4), ("new", 100, 1), ("old", 0, 1e-4), ("old", 100, 1)):
        content = dict(np.load(folder / f"{role}.npz"))
        moved = (content["embeddings"].astype(np.float64) * scale + offset).astype(np.float32)
        write(folder / "moved.npz", **{**content, "embeddings": moved})
        fit(folder, *arguments, f"{role}=moved.npz")
        h, s = apply(folder, **({"old": "moved.npz"} if role == "old" else {}))
        there = (h.double() - offset) / scale if role == "new" else h.double()
        if not (arch == "fastfill" and role == "new" and offset):  # a classifier without bias: 4 dimensions make one
            assert (there - plain).norm() < 0.05 * (plain - plain.mean(0)).norm()  # rounding grows in training
            in_units = role == "new" and "residual_inputs" in arguments_of(folder)  # of squared errors
            log_unit = 2 * np.log(scale) if in_units else 0
            assert float((s - log_unit - sigma).abs().mean()) < 0.2 * float(sigma.std()) + 0.05
        (now,) = origin(folder)["held_out"].values()
        measure = next(iter(before))
        assert now[measure] == pytest.approx(before[measure], abs=0.05), (role, offset, scale)


def test_a_zero_vector_of_the_old_gallery_stays_one(folder: Path) -> None:
    fit(folder, "method=ridge")
    old = dict(np.load(folder / "old.npz"))
    old["embeddings"][[7, 100]] = 0
    labels = np.load(folder / "labels.npy")
    write(folder / "gallery.npz", **old, labels=labels)
    write(folder / "query.npz", **np.load(folder / "new.npz"), labels=labels)
    (folder / "eval.yaml").write_text(
        "embeddings_params: {query: query.npz, gallery: gallery.npz, transformation: out/h.pt}\n"
        "eval_params: {embeddings_output_dir: kept}\n"
    )
    output = succeed("eval.py", "--config", "eval.yaml", cwd=folder, processes=None)
    line = "embeddings_params.gallery: gallery.npz: 2 zero vectors, the first in row 7; kept as zero"
    assert output.splitlines()[1] == line  # below what the run is on
    h = apply(folder)[0].clone()
    h[[7, 100]] = 0
    kept = torch.from_numpy(np.load(folder / "kept" / "gallery.npz")["embeddings"])
    torch.testing.assert_close(kept, h)


def test_training_stops_early_and_stays_at_its_best(folder: Path) -> None:
    old = np.load(folder / "old.npz")
    write(folder / "curved.npz", ids=old["ids"], embeddings=np.abs(old["embeddings"]))
    training = ["epochs=500", "optimizer_params={algorithm: adam, lr: 0.02}"]
    fit(folder, "method=residual_mlp", "new=curved.npz", "patience=10", *training)
    scores = [record["recall@10"] for record in log_of(folder, "out/h")]
    best = max(scores)
    assert len(scores) < 500
    assert scores.index(best) == len(scores) - 11
    assert origin(folder)["held_out"]["residual_mlp"]["recall@10"] == pytest.approx(best)
    fit(folder, "method=fct", "patience=3", *training)  # of linear data ridge is the best
    scores = [record["recall@10"] for record in log_of(folder, "out/h")]
    assert len(scores) == 3
    assert origin(folder)["held_out"]["fct"]["recall@10"] >= max(scores)
    h, _ = apply(folder)
    fit(folder, "method=ridge")
    torch.testing.assert_close(apply(folder)[0], h, rtol=1e-4, atol=1e-4)


def test_a_budget_ends_in_time_and_is_read_strictly(folder: Path) -> None:
    output = fit(folder, "budget=2 s", "epochs=100000", "patience=100000")
    assert "auto: " in output
    assert ("out of time after " in output) or ("not tried: " in output)
    for budget in ("10", "'5 hours'"):
        message = fail("fit_embeddings.py", "--config", "files.yaml", f"budget={budget}", cwd=folder, processes=None)
        assert "budget: should be a time above 0 with a unit" in message or "budget: should be a text" in message
    unheld = ("budget=5 s", "held_out=0", "method=ridge")
    message = fail("fit_embeddings.py", "--config", "files.yaml", *unheld, cwd=folder, processes=None)
    assert "budget: needs held-out pairs" in message


def test_a_choice_that_is_killed_goes_on_within_its_budget(folder: Path) -> None:
    """Killed in the fourth of five methods: the third is not trained anew, and the time that went by counts."""
    arguments = ["--config", "files.yaml", "budget=10 min", "epochs=20", "patience=20", "method=auto"]
    process = subprocess.Popen(
        command_of("fit_embeddings.py", *arguments, "output=killed/h.pt"), cwd=folder, env=os.environ | ENVIRONMENT
    )
    log = folder / "killed" / "h.fct.log.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    checkpoint = folder / "killed" / "h.fct.checkpoint.pt"
    content = torch.load(checkpoint, weights_only=True)
    content["state"]["spent"] += 60
    torch.save(content, checkpoint)
    output = fit(folder, *arguments[2:], "output=killed/h.pt")
    assert re.search(r"^residual_mlp, 3 of 5: .*, \d+ s so far", output, re.M)
    assert re.search(r"^fct, 4 of 5: .*, 1 min \d+ s so far", output, re.M)
    assert "resuming after epoch 20 of 20" in output
    assert json.loads(log.read_text().splitlines()[-1])["epoch"] == 20
    fit(folder, *arguments[2:])
    assert same_bits(state_of(folder / "killed" / "h.pt"), state_of(folder / "out" / "h.pt"))


def test_side_information_and_two_processes(folder: Path) -> None:
    """The closed form and its uncertainty, added up over two processes, are those of one."""
    arguments = ["method=ridge", "side_info=side.npz"]
    fit(folder, *arguments)
    one, alone = apply(folder, side="side.npz"), state_of(folder / "out" / "h.pt")
    assert alone["affine.weight"].shape == (4, 6 + 2)
    fit(folder, *arguments, processes=2)
    for mine, other in zip(apply(folder, side="side.npz"), one, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_two_processes_stop_early_together(folder: Path) -> None:
    """BN statistics are each process's own, so each finds another held-out loss; they go by their mean."""
    stopping = ["epochs=60", "patience=1", "optimizer_params={algorithm: adam, lr: 0.05}"]
    fit(folder, "method=fct", *stopping, processes=2)
    losses = [record["held_out_loss"] for record in log_of(folder, "out/h")]
    assert len(losses) == 1  # no better than the ridge regression of linear data
    apply(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["old=none.npz"], "files.yaml: old: there is no none.npz"),
        (["new=side.npz", "old=labels.npy"], "old: labels.npy: embeddings should be (n, d) floating point, got (120,)"),
        (["method=fastfil"], "files.yaml: method: unknown 'fastfil'; did you mean fastfill?"),
        (["method=fastfill"], "objective_params.uncertainty_loss: is missing"),
        (["method=ridge", "sigma_dim=1"], "sigma_dim: ridge has no uncertainty; use fastfill or leave it out"),
        (
            [*FASTFILL, "objective_params.discriminative_loss.name=SupCon"],
            "discriminative_loss.name: SupCon needs labels=FILE; InfoNCE does without",
        ),
    ],
)
def test_what_is_refused_before_anything_is_written(folder: Path, arguments: list[str], message: str) -> None:
    assert message in fail("fit_embeddings.py", "--config", "files.yaml", *arguments, cwd=folder, processes=None)


def test_constant_embeddings_are_refused(folder: Path) -> None:
    """And what is constant in some dimensions, or beside others that are not, is not."""
    for role in ("old", "new"):
        content = dict(np.load(folder / f"{role}.npz"))
        write(folder / f"constant_{role}.npz", **{**content, "embeddings": np.ones_like(content["embeddings"])})
    for arguments, leaves, message in [
        (["new=constant_new.npz"], (), "new: the new embeddings are all the same"),
        (
            ["old=constant_old.npz", "method=ridge"],
            (),
            "the old embeddings are the same for all 90 items, so there is nothing to fit",
        ),
        (["old=constant_old.npz", "method=fct"], (), "the old embeddings are the same for all 90 items"),
    ]:
        command = ["fit_embeddings.py", "--config", "files.yaml", *arguments]
        assert message in fail(*command, cwd=folder, processes=None, leaves=leaves)
    fit(folder, "method=fct", "old=constant_old.npz", "side_info=side.npz")
    side = dict(np.load(folder / "side.npz"))
    side["embeddings"][:, 0] = 3
    write(folder / "partly.npz", **side)
    fit(folder, "method=fct", "side_info=partly.npz")
