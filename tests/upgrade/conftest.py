"""A tiny gallery with everything around it: old and new embeddings, a transformation, a config."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch import nn

from models.model_files import describe_transformation, save_model
from models.transformations import build_transformation
from tests.tiny import files_in, run_script, succeed
from upgrade.columns import values
from upgrade.config import UpgradeConfig
from upgrade.opening import open_table
from upgrade.table import Table

N, OLD_DIM, NEW_DIM = 500, 6, 5
IDS = np.random.default_rng(1).permutation(10 * N)[:N] - N  # in no order, some negative

CONFIG = """
gallery: old.npz
transformation_path: transformation.pt
output: upgraded.lance
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
    new: np.ndarray  # what the new model would give, (N, NEW_DIM) float16, near to what the transformation makes

    def run(self, step: str, *arguments: str) -> str:
        """Run a step -> its output."""
        return succeed(
            "upgrade_gallery.py", step, "--config", "upgrade.yaml", *arguments, cwd=self.folder, processes=None
        )

    def refuse(self, step: str, *arguments: str) -> str:
        """Run a step that must refuse its input and write nothing -> its error."""
        before = self.files()
        error = self.refuse_midway(step, *arguments)
        assert self.files() == before
        return error

    def refuse_midway(self, step: str, *arguments: str) -> str:
        """Run a step that must refuse its input where it comes to it; what is done so far may stay -> its error."""
        done = run_script(
            "upgrade_gallery.py", step, "--config", "upgrade.yaml", *arguments, cwd=self.folder, processes=None
        )
        error = done.stderr.rpartition("\r")[2]  # behind the progress of a slow machine
        assert (done.returncode, error[:7]) == (2, "error: "), (done.stdout, done.stderr)
        assert len(error.strip().splitlines()) <= 2
        return error

    def files(self) -> dict[str, tuple[int, int] | None]:
        """Size and time of change of every file."""
        return files_in(self.folder)

    @property
    def uri(self) -> str:
        """The table."""
        return str(self.folder / "upgraded.lance")

    def table(self, output: str = "upgraded.lance") -> Table:
        """The table, open."""
        return open_table(str(self.folder / output))

    def content(self, output: str = "upgraded.lance") -> pa.Table:
        """All rows, by rising ids."""
        return self.table(output).dataset.to_table().sort_by("id").combine_chunks()

    def array(self, name: str, output: str = "upgraded.lance") -> np.ndarray:
        """A column, in the order of the old gallery where its ids are IDS, else by rising ids."""
        content = self.content(output)
        ids = values(content["id"])
        column = content[name].combine_chunks()
        found = values(pc.fill_null(column, -1) if column.null_count else column)
        return found[np.searchsorted(ids, IDS)] if set(ids.tolist()) == set(IDS.tolist()) else found

    def null(self, name: str) -> np.ndarray:
        """Which rows have no value in a column, in the order of the old gallery."""
        content = self.content()
        return content[name].is_null().to_numpy()[np.searchsorted(values(content["id"]), IDS)]

    def json(self, name: str) -> Any:
        """What a JSON file beside the table holds."""
        return json.loads((self.folder / f"upgraded.lance.plan/{name}.json").read_text())

    def tags(self) -> dict[str, int]:
        """Tag -> version."""
        return self.table().tags()

    def config(self, step: Any, **keys: Any) -> UpgradeConfig:
        """What `upgrade.yaml` says, for a step within this process."""
        named: dict[str, Any] = {} if "store" in keys else {"gallery": str(self.folder / "old.npz")}
        named |= {"chunk_rows": 64, "precision": "fp32", "transformation_path": str(self.folder / "transformation.pt")}
        names = {"output": self.uri, "old_model": "resnet18-2021", "new_model": "resnet50-2024"}
        return UpgradeConfig(step, **(named | names | keys))

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
    if unit:
        old /= np.linalg.norm(old, axis=1, keepdims=True)
    folder.mkdir(exist_ok=True)
    recorded: dict[str, Any] = {"normalised": True} if unit else {}
    model = write_transformation(folder / "transformation.pt", "fastfill", **recorded)
    with torch.no_grad():
        predicted = model(torch.from_numpy(old)).embedding.numpy()
    new = predicted + 0.5 * predicted.std(0).mean() * rng.normal(size=predicted.shape)
    if unit:
        new /= np.linalg.norm(new, axis=1, keepdims=True)
    (folder / "upgrade.yaml").write_text(CONFIG)
    case = Case(folder, old, new.astype(np.float16))
    case.write_old()
    return case


BATCHES = {"first.npz": np.arange(150), "second.npz": np.arange(100, 220)}
BATCH = ("apply", "--batch", "first.npz")


def prepared(case: Case, *arguments: str) -> Case:
    """The gallery transformed and planned, with the batches beside it."""
    for name, rows in BATCHES.items():
        case.write_batch(name, rows)
    case.run("transform", *arguments)
    case.run("plan", *arguments)
    return case


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
