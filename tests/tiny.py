"""Tiny data sets and configs that the tests make for themselves, and the scripts run on them."""

import contextlib
import ctypes
import io
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn

REPOSITORY = Path(__file__).resolve().parent.parent
# The same arithmetic in every process that a test starts, and no fight for the cores between them.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TIMEOUT = 600.0  # seconds for any run: many times what it takes


def write_images(root: Path, *, classes: int, training: int, validation: int, size: int = 16, seed: int = 0) -> Path:
    """Write class folders of noisy class patterns: easy enough that a few epochs learn something."""
    rng = np.random.default_rng(seed)
    patterns = rng.uniform(0, 255, (classes, 4, 4, 3))
    for split, count in (("training", training), ("validation", validation)):
        for label in range(classes):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for i in range(count):
                small = patterns[label] + rng.normal(0, 40, (4, 4, 3))
                pixels = Image.fromarray(np.clip(small, 0, 255).astype(np.uint8)).resize((size, size))
                pixels.save(folder / f"{i:03d}.png")
    return root


def command_of(script: str, *arguments: str, processes: int = 1) -> list[str]:
    """The command line that runs a script of the repository; by torchrun on N > 1 processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*launcher, str(REPOSITORY / script), *arguments]


def obey_permissions() -> None:
    """In a child that is to run a program: have that obey the permissions of files, even where root runs the tests."""
    if sys.platform == "linux":
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH; 24 is PR_CAPBSET_DROP
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def run_script(
    script: str, *arguments: str, cwd: Path, processes: int | None = 1, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository as a user does, in the folder `cwd`.

    With `processes` None it runs within this process: the same, but for the seconds that a start takes.
    """
    if processes is None:
        return _run_here(script, *arguments, cwd=cwd)
    return subprocess.run(
        command_of(script, *arguments, processes=processes),
        cwd=cwd,
        env=os.environ | ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        preexec_fn=obey_permissions,
    )


def _run_here(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        mock.patch.object(sys, "argv", [script, *arguments]),
        mock.patch.object(torch.cuda, "is_available", return_value=False),  # as in ENVIRONMENT
    ):
        try:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(sys.argv, code, stdout.getvalue(), stderr.getvalue())


def succeed(script: str, *arguments: str, cwd: Path, processes: int | None = 1) -> str:
    """Run a script that must succeed -> its standard output."""
    done = run_script(script, *arguments, cwd=cwd, processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def fail(script: str, *arguments: str, cwd: Path, processes: int | None = 1, leaves: tuple[str, ...] = ()) -> str:
    """Run a script that must refuse its input as a user's mistake -> its error.

    That is: exit code 2, one or two lines, no traceback, and no file written or changed but for those in `leaves`.
    """
    before = files_in(cwd)
    done = run_script(script, *arguments, cwd=cwd, processes=processes)
    message = done.stderr.strip()
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in message
    errors = message[message.index("error: ") :]
    assert len(errors.splitlines()) <= 2, message
    after = files_in(cwd)
    assert {name for name in before.keys() | after if before.get(name, 0) != after.get(name, 0)} == set(leaves), message
    return errors


def files_in(folder: Path) -> dict[str, tuple[int, int] | None]:
    """Relative path -> (size, time of change) of every file below `folder`, None for a folder or a link to one."""
    found: dict[str, tuple[int, int] | None] = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        found[str(path.relative_to(folder))] = None if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
    return found


BACKBONE = """
arch_params: {arch: ResNet18, num_classes: 6, embedding_dim: 16, stem: cifar, width: 0.125}
optimizer_params: {algorithm: sgd, lr: 0.1, momentum: 0.9, weight_decay: 1e-4}
dataset_params: {name: cifar100, data_root: data, batch_size: 32, image_size: 16, augmentation: crop_flip}
lr_policy_params: {algorithm: cosine_lr, warmup_length: 1}
epochs: 2
label_smoothing: 0.1
output_model_path: checkpoints/new.pt
"""

TRANSFORMATION = """
old_model_path: checkpoints/old.pt
new_model_path: checkpoints/new.pt
arch_params: {arch: fastfill, inner_dim: 32}
optimizer_params: {algorithm: adam, lr: 1e-2}
dataset_params: {name: cifar100, data_root: data, batch_size: 32, image_size: 16, augmentation: flip}
lr_policy_params: {warmup_length: 1}
objective_params:
  similarity_loss: {name: mse}
  discriminative_loss: {name: LabelSmoothing, label_smoothing: 0.1, mu_disc: 1}
  uncertainty_loss: {mu_uncertainty: 0.5}
epochs: 3
switch_mode_to_eval: True
output_transformation_path: checkpoints/transformation.pt
output_transformed_old_model_path: checkpoints/old_transformed.pt
"""

EMBEDDING = """
model_path: checkpoints/new.pt
dataset_params: {name: cifar100, data_root: data, batch_size: 32, image_size: 16, augmentation: flip}
output_embeddings_path: embeddings/new.npz
"""

EVALUATION = """
query_model_path: checkpoints/new.pt
gallery_model_path: checkpoints/old_transformed.pt
eval_params: {backfilling: 3, backfilling_list: [sigma, random, distance]}
dataset_params: {name: cifar100, data_root: data, batch_size: 32, image_size: 16}
"""


def write_configs(folder: Path) -> None:
    """Write the tiny configs backbone.yaml, transformation.yaml, embed.yaml and eval.yaml."""
    (folder / "backbone.yaml").write_text(BACKBONE)
    (folder / "transformation.yaml").write_text(TRANSFORMATION)
    (folder / "embed.yaml").write_text(EMBEDDING)
    (folder / "eval.yaml").write_text(EVALUATION)


OLD_MODEL = ("dataset_params.num_classes=3", "output_model_path=checkpoints/old.pt")


def write_torchscript(path: Path, dim: int) -> None:
    """A TorchScript archive of a model that gives embeddings (B, dim, 1, 1)."""
    model = nn.Sequential(nn.Conv2d(3, dim, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and is what the published files are
        torch.jit.trace(model, torch.zeros(2, 3, 16, 16)).save(str(path))


def state_of(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a model file."""
    return torch.load(path, weights_only=True)["state_dict"]


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts hold the same tensors, bit by bit."""
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)
