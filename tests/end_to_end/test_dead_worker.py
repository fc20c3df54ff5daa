"""A process that decodes images and is killed, as the system does where memory runs out, ends the run with a line."""

import os
import signal
import subprocess
import time
from pathlib import Path

from tests.tiny import BACKBONE, ENVIRONMENT, TIMEOUT, command_of, write_images


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """The decoding processes of a run: its children that run the same program."""
    task = Path(f"/proc/{process.pid}/task/{process.pid}")
    program = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    children = [int(pid) for pid in (task / "children").read_text().split()]
    return [pid for pid in children if Path(f"/proc/{pid}/cmdline").read_bytes() == program]


def test_a_worker_that_is_killed_ends_the_run_with_one_line(tmp_path: Path) -> None:
    write_images(tmp_path / "data", classes=6, training=40, validation=2)
    config = BACKBONE.replace("name: cifar100", "name: imagenet").replace("crop_flip", "resized_crop_flip")
    (tmp_path / "backbone.yaml").write_text(config)
    arguments = ("--config", "backbone.yaml", "epochs=100000", "dataset_params.num_workers=1", "validate_every=0")
    process = subprocess.Popen(
        command_of("train_backbone.py", *arguments),
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        log, deadline = tmp_path / "checkpoints" / "new.log.jsonl", time.monotonic() + TIMEOUT
        while not log.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (worker,) = children_of(process)
        os.kill(worker, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2, errors[-3000:]
    assert "Traceback" not in errors
    message = errors[errors.index("error: ") :].strip().splitlines()
    assert message[0].startswith("error: a process that decodes images died, killed or out of memory")
    assert str(worker) in message[0]
    assert message[1:] == [
        "lower dataset_params.num_workers or dataset_params.batch_size, and start the same command again"
    ]
