"""Tiny data sets and configs that the tests make for themselves."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent


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


def run_script(script: str, *arguments: str, cwd: Path, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository as a user does, in the folder `cwd`; with torchrun on N > 1 processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*launcher, str(REPOSITORY / script), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


def succeed(script: str, *arguments: str, cwd: Path, processes: int = 1) -> str:
    """Run a script that must succeed -> its standard output."""
    done = run_script(script, *arguments, cwd=cwd, processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def fail(script: str, *arguments: str, cwd: Path) -> str:
    """Run a script that must refuse its input as a user's mistake: exit code 2, one or two lines, no traceback."""
    done = run_script(script, *arguments, cwd=cwd)
    message = done.stderr.strip()
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in message
    errors = message[message.index("error: ") :]
    assert len(errors.splitlines()) <= 2, message
    return errors


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
optimizer_params: {algorithm: adam, lr: 1e-3}
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

EVALUATION = """
query_model_path: checkpoints/new.pt
gallery_model_path: checkpoints/old_transformed.pt
eval_params: {backfilling: 3, backfilling_list: [sigma, random, distance]}
dataset_params: {name: cifar100, data_root: data, batch_size: 32, image_size: 16}
"""


def write_configs(folder: Path) -> None:
    """Write the tiny configs backbone.yaml, transformation.yaml and eval.yaml."""
    (folder / "backbone.yaml").write_text(BACKBONE)
    (folder / "transformation.yaml").write_text(TRANSFORMATION)
    (folder / "eval.yaml").write_text(EVALUATION)


OLD_MODEL = ("dataset_params.num_classes=3", "output_model_path=checkpoints/old.pt")
