"""kill -9 at any moment of a step: nothing is lost, mixed or doubled, and a restart finishes."""

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from tests.tiny import ENVIRONMENT, command_of, run_script
from tests.upgrade.conftest import MIXING, NEW_DIM, OLD_DIM, Case, make_refittable

ROWS_OF = {"first.npz": np.arange(0, 200, 2), "second.npz": np.arange(100, 300), "third.npz": np.arange(250, 320, 3)}
STEPS: list[tuple[str, ...]] = [
    ("transform",),
    ("apply", "--batch", "first.npz"),
    ("apply", "--batch", "second.npz"),
    ("refit",),
    ("rollback", "--to", "1"),
    ("apply", "--batch", "third.npz"),
    ("rollback",),
]
WATCHED = (f"{os.sep}upgrade{os.sep}", f"{os.sep}utils{os.sep}files.py")


class Killer:
    """A profiler that counts what the watched files do, and ends this process in the midst of it."""

    def __init__(self, moment: int | None) -> None:
        self.moment, self.count = moment, 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call", "return") and any(part in frame.f_code.co_filename for part in WATCHED):
            self.count += 1
            if self.count == self.moment:
                os.kill(os.getpid(), signal.SIGKILL)


def run_forked(case: Case, *step: str, moment: int | None = None) -> tuple[bool, int]:
    """Run a step in a fork of this process, killed after `moment` events -> whether it was killed, events otherwise."""
    events = case.folder / "events"
    process = os.fork()
    if process == 0:
        killer = Killer(moment)
        threading.setprofile(killer)
        sys.setprofile(killer)
        done = run_script(
            "upgrade_gallery.py", step[0], "--config", "upgrade.yaml", *step[1:], cwd=case.folder, processes=None
        )
        sys.setprofile(None)
        events.write_text(str(killer.count))
        os._exit(done.returncode)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return True, 0
    assert os.WEXITSTATUS(status) == 0
    return False, int(events.read_text())


def batches_for(case: Case) -> Case:
    for name, rows in ROWS_OF.items():
        shift = np.float16(1 if name == "third.npz" else 0)  # other embeddings of some of the same items
        case.write_batch(name, rows, case.new[rows] + shift)
    return case


def test_a_step_killed_at_any_event_is_all_or_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Half of the events are drawn from the last ones, in which a commit is carried out."""
    kills = request.config.getoption("--kills") or 2
    whole, killed = (batches_for(make_refittable(tmp_path / name)) for name in ("whole", "killed"))
    draw = random.Random(0)
    done = 0
    for step in STEPS:
        before = whole.content()
        _, events = run_forked(whole, *step)
        after = whole.content()
        assert before != after
        for number in range(kills):
            moment = draw.randint(1, events) if number % 2 else events - draw.randint(0, min(200, events - 1))
            was_killed, _ = run_forked(killed, *step, moment=moment)
            done += was_killed
            if step[0] != "transform":
                killed.run("status", "--verify")
                assert killed.kept() in (before, after), (step, moment)
        killed.run(*step)
        assert killed.content() == after, step
        assert not list((killed.folder / "upgraded").glob(".*"))
        if step == ("transform",):
            for case in (whole, killed):
                case.run("plan")
    killed.run("status", "--verify")
    assert done >= len(STEPS)
    print(f"{done} kills")


def test_many_kills(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The scripts as processes of their own on a larger gallery, killed at moments of the clock."""
    kills = request.config.getoption("--kills")
    if not kills:
        pytest.skip("a stress test: pytest tests/upgrade -k many_kills --kills 30")
    rng, draw, rows = np.random.default_rng(0), random.Random(0), 400_000
    case = make_refittable(tmp_path)
    old = rng.normal(size=(rows, OLD_DIM)).astype(np.float16)
    places = rng.permutation(rows)  # of the ids 0, 1, ...
    np.savez(case.folder / "old.npz", embeddings=old, ids=np.argsort(places))
    new = (old[places] @ MIXING + 2 * rng.normal(size=(rows, NEW_DIM))).astype(np.float16)
    for number in (1, 2):
        ids = rng.permutation(rows)[: rows // 2]
        np.savez(case.folder / f"{number}.npz", embeddings=new[ids], ids=ids)
    steps = [
        ("transform", "chunk_rows=1000"),
        ("apply", "--batch", "1.npz"),
        ("apply", "--batch", "2.npz"),
        ("refit",),
        ("rollback", "--to", "1"),
        ("apply", "--batch", "2.npz"),
    ]
    done = []
    for number, step in enumerate(steps):
        arguments = [step[0], "--config", "upgrade.yaml", *step[1:]]
        for _ in range(-(-kills // len(steps))):
            seconds = draw.uniform(1, 8)
            command = command_of("upgrade_gallery.py", *arguments)
            try:
                ended = subprocess.run(
                    command,
                    cwd=case.folder,
                    env=os.environ | ENVIRONMENT,
                    capture_output=True,
                    timeout=seconds,
                    check=False,
                )
                assert ended.returncode == 0, ended.stderr
                done.append(f"{step[0]} had ended")
            except subprocess.TimeoutExpired:  # by which it has been killed
                done.append(f"{step[0]} after {seconds:.2f} s")
        case.run(*step)
        if number:
            case.run("status", "--verify", "chunk_rows=1000")
    print(f"{len(done)} kills: {'; '.join(done)}")
    assert "1  kept" in case.run("status")
    state, embeddings, ids = case.array("state"), case.array("embeddings"), case.array("ids")
    assert np.array_equal(embeddings[state == 1], new[ids[state == 1]])
    case.run("rollback")
    case.run("status", "--verify")
