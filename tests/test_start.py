"""Scripts answer before torch is imported: `--help`, and a mistake in the config."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from models.config import OLD_ALONE, UNCERTAIN
from models.transformations import TRANSFORMATIONS
from tests.tiny import REPOSITORY

HEAVY = {"torch", "torchvision", "matplotlib", "PIL"}
CONFIGS = {
    "train_backbone.py": "cifar100_backbone_old.yaml",
    "train_transformation.py": "cifar100_fct_transformation.yaml",
    "fit_embeddings.py": "fit_embeddings.yaml",
    "embed.py": "glyphs_embed.yaml",
    "eval.py": "cifar100_eval_old_old.yaml",
    "reproduce.py": "suites/quickstart.yaml",
    "upgrade_gallery.py": "glyphs_upgrade.yaml",
}


def imported(script: str, *arguments: str) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    """Run a script -> the top-level packages that it imported, and how it ended."""
    command = [sys.executable, "-X", "importtime", str(REPOSITORY / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    names = set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "argparse" in names
    return {name.partition(".")[0] for name in names}, done


@pytest.mark.parametrize("script", sorted(path.name for path in REPOSITORY.glob("*.py")))
def test_help_comes_without_torch(script: str) -> None:
    packages, done = imported(script, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")
    assert not packages & HEAVY


@pytest.mark.parametrize(("script", "config"), CONFIGS.items())
def test_a_mistake_in_the_config_is_told_without_torch(script: str, config: str) -> None:
    step = ("status",) if script == "upgrade_gallery.py" else ()
    packages, done = imported(script, *step, "--config", str(Path(REPOSITORY, "configs", config)), "sed=1")
    assert done.returncode == 2
    assert "unknown key `sed`" in done.stderr
    assert not packages & HEAVY


def test_a_closed_output_ends_a_script_without_a_word() -> None:
    reading, writing = os.pipe()
    os.close(reading)  # as `| head` does once it has its lines
    command = [sys.executable, "reproduce.py", "--config", "configs/suites/quickstart.yaml", "--show"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=REPOSITORY, timeout=60, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
    without = ["sh", "-c", f"exec {shlex.join(command)} >&-"]  # none at all
    done = subprocess.run(without, stderr=subprocess.PIPE, cwd=REPOSITORY, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_configs_know_of_transformations_is_what_these_say_of_themselves() -> None:
    names = [name for name in TRANSFORMATIONS if not name.startswith("MLP_")]  # those of ml-fct are aliases
    assert [name for name in names if not TRANSFORMATIONS[name].takes_side_info] == [*OLD_ALONE]
    assert [name for name in names if TRANSFORMATIONS[name].has_uncertainty] == [*UNCERTAIN]
