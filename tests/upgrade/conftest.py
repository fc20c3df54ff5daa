"""A tiny gallery with everything around it: old and new embeddings, a transformation, a config."""

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.model_files import describe_transformation, save_model
from models.transformations import build_transformation
from tests.tiny import files_in, run_script, succeed
from upgrade.config import UpgradeConfig
from upgrade.gallery import Gallery

N, OLD_DIM, NEW_DIM = 500, 6, 5
IDS = np.random.default_rng(1).permutation(10 * N)[:N] - N  # in no order, some negative

CONFIG = """
gallery: old.npz
transformation_path: transformation.pt
output: upgraded
old_model: resnet18-2021
new_model: resnet50-2024
chunk_rows: 64
precision: fp32
"""


def write_transformation(
    path: Path, arch: str = "fastfill", calibration: Mapping[str, float] | None = None, **options: int
) -> nn.Module:
    """A transformation with random weights and batch statistics, perhaps calibrated; returns it in eval mode."""
    torch.manual_seed(0)
    dims = {"old_embedding_dim": OLD_DIM, "new_embedding_dim": NEW_DIM, "side_info_dim": OLD_DIM, "inner_dim": 16}
    arguments: dict[str, Any] = {"arch": arch, **dims, **options}
    model = build_transformation(**arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            for name, low, high in (("running_mean", -0.2, 0.2), ("running_var", 0.5, 2.0), ("weight", 0.5, 2.0)):
                nn.init.uniform_(getattr(module, name), low, high)
    description = describe_transformation(model, arguments)
    if calibration is not None:
        description["calibration"] = {distance: {"value": value} for distance, value in calibration.items()}
    save_model(path, description, config={}, seed=0)
    return model.eval()


@dataclass(frozen=True)
class Case:
    """A folder with `old.npz`, `transformation.pt`, `upgrade.yaml`, and in memory what is in them."""

    folder: Path
    old: np.ndarray
    new: np.ndarray  # what the new model would give, (N, NEW_DIM) float16

    def run(self, step: str, *arguments: str, processes: int | None = None) -> str:
        """Run a step -> its output."""
        return succeed(
            "upgrade_gallery.py", step, "--config", "upgrade.yaml", *arguments, cwd=self.folder, processes=processes
        )

    def refuse(self, step: str, *arguments: str) -> str:
        """Run a step that must refuse its input and write nothing (the lock's holder aside) -> its error."""
        before = self.files()
        error = self.refuse_midway(step, *arguments)
        assert self.files() == before
        return error

    def refuse_midway(self, step: str, *arguments: str) -> str:
        """Run a step that must refuse its input where it comes to it; what is done so far may stay -> its error."""
        done = run_script(
            "upgrade_gallery.py", step, "--config", "upgrade.yaml", *arguments, cwd=self.folder, processes=None
        )
        assert (done.returncode, done.stderr[:7]) == (2, "error: "), (done.stdout, done.stderr)
        assert len(done.stderr.strip().splitlines()) <= 2
        return done.stderr

    def files(self) -> dict[str, tuple[int, int] | None]:
        """Size and time of change of every file, but for the lock."""
        return {name: entry for name, entry in files_in(self.folder).items() if name != "upgraded/lock"}

    def content(self) -> dict[str, str]:
        """Name -> hash of every file of the gallery but the lock, the journal and what holds times of day."""
        files = files_in(self.folder / "upgraded")
        return {
            name: hashlib.sha256((self.folder / "upgraded" / name).read_bytes()).hexdigest()
            for name, entry in files.items()
            if entry is not None
            and name not in ("lock", "manifest.json", "transformation.pt")
            and not name.startswith(("journal/", "refit/"))
        }

    def kept(self) -> dict[str, str]:
        """The content less what a killed process was preparing: that goes with the next step."""
        return {name: digest for name, digest in self.content().items() if not name.startswith(".")}

    def array(self, name: str) -> np.ndarray:
        """An array of the gallery."""
        return np.load(self.folder / "upgraded" / f"{name}.npy")

    def json(self, name: str) -> Any:
        """What a JSON file of the gallery holds."""
        return json.loads((self.folder / "upgraded" / f"{name}.json").read_text())

    def gallery(self) -> Gallery:
        """The gallery, open."""
        return Gallery.open(self.folder / "upgraded")

    def config(self, step: Any, **keys: Any) -> UpgradeConfig:
        """What `upgrade.yaml` says, for a step within this process; its files are found from the case's folder."""
        return UpgradeConfig(step, "old.npz", "transformation.pt", "upgraded", "resnet18-2021", "resnet50-2024", **keys)

    def write_old(self, **arrays: Any) -> None:
        """Write the old gallery anew, with the arrays that are given in place of its own."""
        np.savez(self.folder / "old.npz", **{"embeddings": self.old, "ids": IDS, **arrays})

    def write_shards(self, name: str, parts: Sequence[np.ndarray], embeddings: np.ndarray, ids: np.ndarray) -> None:
        """Write the folder `name`, with a shard of each of some parts of the rows."""
        (self.folder / name).mkdir()
        for number, rows in enumerate(parts):
            np.savez(self.folder / name / f"{number}.npz", embeddings=embeddings[rows], ids=ids[rows])

    def write_batch(self, name: str, rows: Any, embeddings: np.ndarray | None = None, **arrays: Any) -> str:
        """Write a batch of those rows' new embeddings -> its name."""
        vectors = self.new[rows] if embeddings is None else embeddings
        np.savez(self.folder / name, **{"embeddings": vectors, "ids": IDS[rows], **arrays})
        return name


def make_case(folder: Path, *, unit: bool = False) -> Case:
    """Write a case into `folder`."""
    rng = np.random.default_rng(0)
    old = rng.normal(size=(N, OLD_DIM)).astype(np.float32)
    new = rng.normal(size=(N, NEW_DIM)).astype(np.float32)
    if unit:
        old, new = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (old, new))
    folder.mkdir(exist_ok=True)
    recorded: dict[str, Any] = {"normalised": True} if unit else {}
    write_transformation(folder / "transformation.pt", "fastfill", **recorded)
    (folder / "upgrade.yaml").write_text(CONFIG)
    case = Case(folder, old, new.astype(np.float16))
    case.write_old()
    return case


MIXING = np.random.default_rng(6).normal(size=(OLD_DIM, NEW_DIM))  # old -> new, but for noise
RECIPE = """
old: sample_old.npz
new: sample_new.npz
held_out: 0.5
batch_size: 16
method: ridge
output: transformation.pt
"""


def make_refittable(folder: Path, *recipe: str, pairs: int = 60, **arrays: np.ndarray) -> Case:
    """Write a case whose transformation is fitted to a small sample, `sample_old.npz` and `sample_new.npz`."""
    make_case(folder)
    rng = np.random.default_rng(7)

    def write(name: str, count: int, ids: np.ndarray, **more: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        old = rng.normal(size=(count, OLD_DIM)).astype(np.float32)
        new = (old @ MIXING + 2 * rng.normal(size=(count, NEW_DIM))).astype(np.float16)
        np.savez(folder / f"{name}.npz", embeddings=old, ids=ids, **more)  # type: ignore[arg-type]
        return old, new

    old, new = write("old", N, IDS, **arrays)
    _, sample = write("sample_old", pairs, np.arange(pairs))
    np.savez(folder / "sample_new.npz", embeddings=sample, ids=np.arange(pairs))
    np.save(folder / "sample_labels.npy", np.array([30, 10, 20])[np.arange(pairs) % 3])
    (folder / "recipe.yaml").write_text(RECIPE)
    succeed("fit_embeddings.py", "--config", "recipe.yaml", *recipe, cwd=folder, processes=None)
    return Case(folder, old, new)


BATCHES = {"first.npz": np.arange(150), "second.npz": np.arange(100, 220)}
BATCH = ("apply", "--batch", "first.npz")


def prepared(case: Case, *arguments: str) -> Case:
    """The gallery transformed and planned, with the batches beside it."""
    for name, rows in BATCHES.items():
        case.write_batch(name, rows)
    case.run("transform", *arguments)
    case.run("plan", *arguments)
    return case


def fill_disk_at(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full when room is taken for the file NAME.npy."""
    allocate = os.posix_fallocate

    def full(descriptor: int, offset: int, length: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().stem == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", full)


def without_sample(case: Case) -> None:
    (case.folder / "sample_new.npz").unlink()


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A gallery that is not transformed yet."""
    return make_case(tmp_path)


@pytest.fixture
def upgraded(case: Case) -> Case:
    """A gallery that is transformed and planned."""
    case.run("transform")
    case.run("plan")
    return case


@pytest.fixture
def ready(tmp_path: Path) -> Case:
    """A gallery to which the first batch is applied."""
    case = prepared(make_refittable(tmp_path))
    case.run(*BATCH)
    return case
