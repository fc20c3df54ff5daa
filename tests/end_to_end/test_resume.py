"""Training that is killed at any moment and started again ends with the weights of training that was not."""

import random
import shutil
import time
from pathlib import Path

import pytest
from torch import Tensor

from tests.end_to_end.conftest import LONG, OUTPUT, copy_of, kill_after, start, wait_for_epochs
from tests.tiny import fail, same_bits, state_of, succeed


def test_a_killed_run_goes_on_to_the_same_bits(
    interrupted: tuple[str, Path], uninterrupted: dict[str, Tensor], tmp_path: Path
) -> None:
    script, after_first_kill = interrupted
    resumed = tmp_path / "resumed"
    shutil.copytree(after_first_kill, resumed, symlinks=True)
    draw = random.Random(script)
    last = int(LONG[script][2].removeprefix("epochs="))
    more = round(draw.uniform(0.3, 0.6) * last)  # some past the half, where the transformation's BN statistics freeze
    assert "resuming after epoch " in kill_after(script, resumed, epochs=more, delay=draw.uniform(0, 0.05))
    assert "resuming after epoch " in kill_after(script, resumed, epochs=0, writing=True)
    assert f" of {last} " in succeed(script, *LONG[script], cwd=resumed, processes=None)
    assert same_bits(state_of(resumed / f"{OUTPUT[script]}.pt"), uninterrupted)
    assert not list(resumed.glob("checkpoints/*.checkpoint.pt"))
    assert not list(resumed.glob("checkpoints/.*.tmp"))


def test_a_terminated_run_goes_on_to_the_same_bits(
    interrupted: tuple[str, Path], uninterrupted: dict[str, Tensor], tmp_path: Path
) -> None:
    """SIGTERM, as Slurm sends it: a checkpoint in the middle of an epoch, exit code 75 and a message."""
    script, after_first_kill = interrupted
    resumed = tmp_path / "resumed"
    shutil.copytree(after_first_kill, resumed, symlinks=True)
    process = start(script, resumed)
    wait_for_epochs(script, resumed, process, 2)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "stopped by SIGTERM after step " in errors.splitlines()[-1]
    assert f"go on from {OUTPUT[script]}.checkpoint.pt" in errors
    assert not (resumed / f"{OUTPUT[script]}.pt").exists()
    assert "resuming after epoch " in succeed(script, *LONG[script], cwd=resumed, processes=None)
    assert same_bits(state_of(resumed / f"{OUTPUT[script]}.pt"), uninterrupted)


@pytest.mark.parametrize("script", list(LONG))
def test_many_kills(script: str, trained: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A third each at any time from the start on, soon after an epoch, and while a checkpoint is written."""
    kills = request.config.getoption("--kills")
    if not kills:
        pytest.skip("a stress test: pytest tests/end_to_end -k many_kills --kills 20")
    draw, length = random.Random(f"{script} 0"), f"epochs={8 * kills if script == 'train_backbone.py' else 60 * kills}"
    whole, killed = (copy_of(trained, tmp_path / name, without=script) for name in ("whole", "killed"))
    done = []
    for number in range(kills):
        if number % 3 == 0:
            process, seconds = start(script, killed, length), draw.uniform(0, 8)
            time.sleep(seconds)
            assert process.poll() is None, process.communicate()[1]
            process.kill()
            process.communicate()
            done.append(f"{seconds:.2f} s after the start")
        elif number % 3 == 1:
            delay = draw.uniform(0, 0.2)
            kill_after(script, killed, length, epochs=1, delay=delay)
            done.append(f"{delay:.3f} s after an epoch")
        else:
            kill_after(script, killed, length, epochs=1, writing=True)
            done.append("while writing a checkpoint")
    for folder in (whole, killed):
        succeed(script, *LONG[script], length, cwd=folder, processes=None)
    model = f"{OUTPUT[script]}.pt"
    assert same_bits(state_of(killed / model), state_of(whole / model))
    assert not list(killed.glob("checkpoints/.*.tmp"))
    print(f"{script}: {len(done)} kills ({'; '.join(done)}), then the weights of the uninterrupted run")


def test_a_checkpoint_of_another_config_or_other_images_is_refused(
    interrupted: tuple[str, Path], tmp_path: Path
) -> None:
    script, folder = interrupted
    work = tmp_path / "work"
    shutil.copytree(folder, work)  # the images too, with the times of the copy
    checkpoint = f"{OUTPUT[script]}.checkpoint.pt"
    other = (*LONG[script], "optimizer_params.lr=0.02")
    error = fail(script, *other, cwd=work, processes=None)
    assert f"{checkpoint}: the checkpoint belongs to another config" in error
    image = work / "data" / "training" / "3" / "005.png"
    content = image.read_bytes()
    image.unlink()
    error = fail(script, *LONG[script], cwd=work, processes=None)
    refused = f"{checkpoint}: data does not hold the images that the run began with: training images "
    assert f"{refused}144 then and 143 now (class 3);" in error
    assert "resume=False" in error
    image.write_bytes(content)
    assert "resuming after epoch " in succeed(script, *LONG[script], cwd=work, processes=None)
    assert "resuming" not in succeed(script, *other, "epochs=1", "resume=False", cwd=work, processes=None)
    assert len((work / f"{OUTPUT[script]}.log.jsonl").read_text().splitlines()) == 1
