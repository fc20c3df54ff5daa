"""Training that is killed at any moment and started again ends with the weights of training that was not."""

import random
import shutil
from pathlib import Path

from tests.end_to_end.conftest import LONG, OUTPUT, copy_of, kill_after, start
from tests.tiny import fail, same_bits, state_of, succeed


def test_a_killed_run_goes_on_to_the_same_bits(trained: Path, interrupted: tuple[str, Path], tmp_path: Path) -> None:
    script, after_first_kill = interrupted
    whole, resumed = copy_of(trained, tmp_path / "whole"), tmp_path / "resumed"
    shutil.copytree(after_first_kill, resumed, symlinks=True)
    uninterrupted = start(script, whole)
    draw = random.Random(script)
    last = int(LONG[script][2].removeprefix("epochs="))
    more = round(draw.uniform(0.3, 0.6) * last)  # some past the half, where the transformation's BN statistics freeze
    assert "resuming after epoch " in kill_after(script, resumed, epochs=more, delay=draw.uniform(0, 0.05))
    assert f" of {last} " in succeed(script, *LONG[script], cwd=resumed)
    _, errors = uninterrupted.communicate()
    assert uninterrupted.returncode == 0, errors
    model = f"{OUTPUT[script]}.pt"
    assert same_bits(state_of(resumed / model), state_of(whole / model))
    assert not list(resumed.glob("checkpoints/*.checkpoint.pt"))


def test_a_checkpoint_of_another_config_is_refused(interrupted: tuple[str, Path], tmp_path: Path) -> None:
    script, folder = interrupted
    work = tmp_path / "work"
    shutil.copytree(folder, work, symlinks=True)
    other = (*LONG[script], "optimizer_params.lr=0.02")
    error = fail(script, *other, cwd=work, processes=None)
    assert f"{OUTPUT[script]}.checkpoint.pt: the checkpoint belongs to another config" in error
    output = succeed(script, *other, "epochs=1", "resume=False", cwd=work, processes=None)
    assert "resuming" not in output
    log = (work / f"{OUTPUT[script]}.log.jsonl").read_text()
    assert len(log.splitlines()) == 1
