"""A gallery that a second model has half re-embedded when a third one comes, and what each of its rows must be."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import numpy as np
import torch

from models.model_files import load_model
from tests.tiny import run_script, succeed
from tests.upgrade.conftest import NEW_DIM, Case, N, make_case, write_transformation

DIM = 4  # of the third model
FIRST = np.arange(150)  # that the second model has re-embedded
C12, C13, C23 = 1.5, 2.25, 0.75  # constants of the three transformations
CONFIG = """
gallery: upgraded.lance
transformation_path: h23.pt
output: third.lance
old_model: resnet50-2024
new_model: vit-2026
chunk_rows: 64
precision: fp32
"""
DIRECT = "earlier={gallery: old.npz, transformation_path: h13.pt}"


@dataclass(frozen=True)
class Again:
    """The second upgrade of a case, by way of the rows' own transformation or through both."""

    case: Case
    more: tuple[str, ...]  # on the command line
    new: np.ndarray  # what the third model gives, (N, DIM) float16

    def run(self, step: str, *arguments: str) -> str:
        return succeed(
            "upgrade_gallery.py", step, "--config", "third.yaml", *self.more, *arguments, cwd=self.case.folder,
            processes=None,
        )  # fmt: skip

    def refuse(self, step: str, *arguments: str) -> str:
        command = ("upgrade_gallery.py", step, "--config", "third.yaml", *self.more, *arguments)
        done = run_script(*command, cwd=self.case.folder, processes=None)
        error = done.stderr.rpartition("\r")[2]
        assert (done.returncode, error[:7]) == (2, "error: "), (done.stdout, done.stderr)
        assert len(error.strip().splitlines()) <= 2
        return error

    def apply(self, rows: Any) -> None:
        """Re-embed rows; no transformation here was fitted to anything, so that they do not look like it."""
        self.run("apply", "--insist", "--batch", self.case.write_batch("third.npz", rows, self.new[rows]))

    def array(self, name: str) -> np.ndarray:
        return self.case.array(name, "third.lance")

    def replay(self, exact: np.ndarray, made: dict[int, int] | None = None) -> dict[str, np.ndarray]:
        """What the rows must be, in the order of the old gallery, if those of `exact` (n,) bool are the second model's.

        `made`: row -> batch of the third model.
        """
        folder = self.case.folder
        second = self.case.array("embedding").astype(np.float32)
        own = self.case.array("sigma")
        h12, h13, h23 = (load_model(folder / f"{name}.pt") for name in ("transformation", "h13", "h23"))
        rows: dict[str, list[Any]] = {"embedding": [], "sigma": [], "calibration": [], "batch": []}
        gain = self.state()["earlier"].get("gain")
        for row in range(N):
            if exact[row] or not self.more:
                output = one(h23, second[row])
                sigma, value = float(output.log_variance.mean()), C23
                if not exact[row]:
                    before = one(h12, self.case.old[row])
                    assert np.allclose(before.embedding[0], second[row], atol=2e-3)
                    sigma = float(np.log(np.exp(sigma) + gain * NEW_DIM / DIM * np.exp(own[row])))
                    value = C23 + gain * C12
            else:
                output = one(h13, self.case.old[row])
                sigma, value = float(output.log_variance.mean()), C13
            batch = (made or {}).get(row, 0)
            rows["embedding"].append(self.new[row] if batch else output.embedding[0].numpy())
            rows["sigma"].append(sigma)
            rows["calibration"].append(value)
            rows["batch"].append(batch)
        return {name: np.array(column) for name, column in rows.items()}

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            lance.dataset(str(self.case.folder / "third.lance")).schema.metadata[b"refill"]
        )
        return found

    def check(self, exact: np.ndarray, made: dict[int, int] | None = None) -> None:
        wanted = self.replay(exact, made)
        np.testing.assert_allclose(self.array("embedding"), wanted["embedding"], rtol=2e-3, atol=2e-3)
        left = wanted["batch"] == 0
        np.testing.assert_allclose(self.array("sigma")[left], wanted["sigma"][left], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(self.array("calibration"), wanted["calibration"], rtol=1e-5)
        assert np.array_equal(self.array("batch"), wanted["batch"])

    def served(self, exact: np.ndarray, made: dict[int, int]) -> np.ndarray:
        """With the coordinate, (N, DIM + 1)."""
        wanted = self.replay(exact, made)
        value = np.where(wanted["batch"] > 0, 0, wanted["calibration"])
        return np.concatenate([self.array("embedding").astype(np.float32), np.sqrt(value)[:, None]], 1)


@torch.no_grad()
def one(model: torch.nn.Module, vector: np.ndarray) -> Any:
    """A transformation of one vector."""
    return model(torch.from_numpy(vector[None]))


def make_again(folder: Path, more: tuple[str, ...]) -> Again:
    case = make_case(folder)
    write_transformation(folder / "transformation.pt", calibration={"l2": C12})
    write_transformation(folder / "h13.pt", calibration={"l2": C13}, new_embedding_dim=DIM)
    dims: dict[str, Any] = {"old_embedding_dim": NEW_DIM, "new_embedding_dim": DIM, "side_info_dim": NEW_DIM}
    model = write_transformation(folder / "h23.pt", calibration={"l2": C23}, **dims)
    with torch.no_grad():
        new = model(torch.from_numpy(case.new.astype(np.float32))).embedding.numpy()
    new = (new + 0.3 * np.random.default_rng(3).normal(size=new.shape)).astype(np.float16)
    (folder / "third.yaml").write_text(CONFIG)
    case.write_old(labels=np.arange(N) % 5)
    case.run("transform")
    case.run("apply", "--batch", case.write_batch("first.npz", FIRST))
    return Again(case, more, new)
