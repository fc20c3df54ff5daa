"""What the end-to-end tests share, so that each model is trained once: a tiny upgrade, finished and interrupted."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from models.backbones import build_backbone
from models.model_files import describe_backbone, save_model
from tests.tiny import ENVIRONMENT, OLD_MODEL, TIMEOUT, command_of, state_of, succeed, write_configs, write_images

# Epochs enough to be killed in the middle of.
LONG = {
    "train_backbone.py": ("--config", "backbone.yaml", "epochs=12", "validate_every=5"),
    "train_transformation.py": ("--config", "transformation.yaml", "epochs=100"),
}
OUTPUT = {"train_backbone.py": "checkpoints/new", "train_transformation.py": "checkpoints/transformation"}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, configs, and the old, the new and the transformed model; not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    write_images(folder / "data", classes=6, training=24, validation=8)
    write_configs(folder)
    succeed("train_backbone.py", "--config", "backbone.yaml", cwd=folder, processes=None)
    succeed("train_backbone.py", "--config", "backbone.yaml", *OLD_MODEL, cwd=folder, processes=None)
    succeed("train_transformation.py", "--config", "transformation.yaml", cwd=folder, processes=None)
    return folder


@pytest.fixture(scope="session")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that one evaluation writes."""
    folder = tmp_path_factory.mktemp("evaluated")
    arguments = [
        f"eval_params.embeddings_output_dir={folder}/embeddings",
        f"eval_params.backfilling_result_path={folder}/curves.npy",
        "dataset_params.batch_size=8",
    ]
    table = succeed(
        "eval.py", "--config", "eval.yaml", "--output", str(folder / "result.json"), *arguments, cwd=trained
    )
    assert "AUC, sigma order" in table
    assert table.count("rank correlation of the ") == 2  # sigma and distance
    return folder


def evaluate(folder: Path, *arguments: str, config: str = "eval.yaml", processes: int | None = None) -> dict[str, Any]:
    """Run eval.py in `folder` -> its result, which stays there as result.json."""
    succeed("eval.py", "--config", config, "--output", "result.json", *arguments, cwd=folder, processes=processes)
    return result_of(folder)


def result_of(folder: Path) -> dict[str, Any]:
    """The result of an evaluation in `folder`."""
    return json.loads((folder / "result.json").read_text())


def log_of(folder: Path, name: str) -> list[dict[str, float]]:
    """The log of the training of `name`, a line an epoch."""
    return [json.loads(line) for line in (folder / f"{name}.log.jsonl").read_text().splitlines()]


def write_backbone(path: Path, **changes: int) -> None:
    """An untrained model file of ours, of 6 classes and 16 dimensions unless `changes` say otherwise."""
    arguments: dict[str, Any] = {"arch": "ResNet18", "num_classes": 6, "embedding_dim": 16, "width": 0.125, **changes}
    save_model(path, describe_backbone(build_backbone(**arguments), arguments), config={}, seed=0)


def copy_of(trained: Path, folder: Path, without: str = "") -> Path:
    """A folder to write to, with everything that `trained` has, but for what the script `without` has written there."""
    shutil.copytree(trained / "checkpoints", folder / "checkpoints")
    for output in folder.glob(f"{OUTPUT[without]}*") if without else ():
        output.unlink()
    (folder / "data").symlink_to(trained / "data")
    write_configs(folder)
    return folder


@pytest.fixture
def work(trained: Path, tmp_path: Path) -> Path:
    """A folder of the test's own, with everything that `trained` has."""
    return copy_of(trained, tmp_path)


@pytest.fixture(scope="session", params=list(LONG))
def interrupted(
    request: pytest.FixtureRequest, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A script, and a folder in which it was killed after its first epochs; not to be written to."""
    script: str = request.param
    folder = copy_of(trained, tmp_path_factory.mktemp("interrupted"), without=script)
    kill_after(script, folder, epochs=2)
    return script, folder


@pytest.fixture(scope="session")
def uninterrupted(
    interrupted: tuple[str, Path], trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Tensor]:
    """The weights of the interrupted run where nothing interrupts it."""
    script, _ = interrupted
    folder = copy_of(trained, tmp_path_factory.mktemp("uninterrupted"))
    succeed(script, *LONG[script], cwd=folder, processes=None)
    return state_of(folder / f"{OUTPUT[script]}.pt")


def start(script: str, folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start the long run of `script` in `folder`."""
    command, environment = command_of(script, *LONG[script], *overrides), os.environ | ENVIRONMENT
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill_after(
    script: str, folder: Path, *overrides: str, epochs: int, delay: float = 0.0, writing: bool = False
) -> str:
    """Start or resume the long run, and SIGKILL it.

    Args:
        epochs: how many more it may finish first.
        delay: seconds that it may have then.
        writing: wait until it writes the next checkpoint.

    Returns:
        Its standard output.
    """
    process = start(script, folder, *overrides)
    wait_for_epochs(script, folder, process, epochs)
    time.sleep(delay)
    checkpoint = folder / f"{OUTPUT[script]}.checkpoint.pt"
    temporary = checkpoint.with_name(f".{checkpoint.name}.{process.pid}.tmp")
    while writing and not temporary.exists():
        assert process.poll() is None, process.communicate()[1]
    process.kill()
    output, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    return output


def wait_for_epochs(script: str, folder: Path, process: subprocess.Popen[str], epochs: int) -> None:
    """Wait until the run that `process` is has finished so many more epochs."""
    log = folder / f"{OUTPUT[script]}.log.jsonl"

    def epochs_done() -> int:
        return len(log.read_text().splitlines()) if log.exists() else 0

    epochs += epochs_done()
    deadline = time.monotonic() + TIMEOUT
    while epochs_done() < epochs:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
