"""A script that starts itself in several processes ends as they do: by an error, a signal, its own death."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny import ENVIRONMENT, REPOSITORY
from utils.errors import UserError
from utils.launch import LAUNCHER, launch, run_processes

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# Without torch, so that a start takes no time. Each process notes its place, does its part, and notes how it ends.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path

sys.path.insert(0, {repository!r})
from utils.errors import UserError, run_script
from utils.launch import launch
from utils.preemption import Preempted, Preemption

rank = os.environ["RANK"]
here = Path(sys.argv[1])

def wait():
    (here / rank).write_text(" ".join(os.environ[name] for name in ("LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS")))
    while len(list(here.glob("[0-9]"))) < 2:
        time.sleep(0.01)

def saved():
    with Preemption() as preemption:
        preemption.defer()
        wait()
        while not preemption.requested:
            time.sleep(0.01)
        time.sleep(0.3)
        (here / ("saved" + rank)).touch()
        raise Preempted("stopped")

def main():
    launch(2)  # it is one of them
    {body}

run_script(main)
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the script is that `run_processes` starts; signal handlers are put back."""
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "script.py"), str(tmp_path)])
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    before = {number: signal.getsignal(number) for number in HANDLED}
    yield tmp_path / "script.py"
    for number, handler in before.items():
        signal.signal(number, handler)


def write(script: Path, body: str) -> None:
    script.write_text(SCRIPT.format(repository=str(REPOSITORY), body=body))


def there(folder: Path, pattern: str, count: int = 2) -> None:
    """Wait until so many files are there."""
    until = time.monotonic() + 30
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("wait()", 0, ""),
        ('wait(); raise UserError("a.png: is broken")', 2, "[rank 1] error: a.png: is broken\n"),
        ("wait(); os.kill(os.getpid(), signal.SIGKILL) if rank == '0' else time.sleep(60)", 137, ""),
        ("wait(); 1 / 0 if rank == '1' else saved()", 1, "ZeroDivisionError"),
        ("os.kill(os.getpid(), signal.SIGTERM) if rank == '0' else saved()", 75, "[rank 1] stopped\n"),
    ],
)
def test_exit_codes(script: Path, capfd: pytest.CaptureFixture[str], body: str, code: int, said: str) -> None:
    """A process that is killed has said nothing; the others are then ended, and may save what they have."""
    if code == 75:
        body = f"wait(); {body}"
    write(script, body)
    assert run_processes(2) == code
    output, error = capfd.readouterr()
    assert said in error
    assert "elastic" not in output + error
    assert [(script.parent / str(rank)).read_text() for rank in range(2)] == ["0 2 3", "1 2 3"]


@pytest.mark.parametrize(
    ("body", "number", "code"),
    [("saved()", signal.SIGTERM, 75), ("wait(); time.sleep(60)", signal.SIGTERM, 143), ("saved()", signal.SIGINT, 130)],
)
def test_a_signal_reaches_all_processes(script: Path, body: str, number: signal.Signals, code: int) -> None:
    write(script, body)

    def send() -> None:
        there(script.parent, "[0-9]")
        os.kill(os.getpid(), number)
        time.sleep(0.1)
        if number == signal.SIGTERM:
            os.kill(os.getpid(), number)  # a scheduler may well say it twice

    sender = threading.Thread(target=send)
    sender.start()
    assert run_processes(2) == code
    sender.join()
    assert len(list(script.parent.glob("saved*"))) == (2 if code == 75 else 0)


def test_the_processes_do_not_outlive_the_one_that_started_them(script: Path) -> None:
    write(script, "saved()")
    start = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from utils.launch import run_processes; "
    command = [sys.executable, "-c", f"{start}sys.argv = {sys.argv!r}; run_processes(2)"]
    with subprocess.Popen(command, env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE) as launcher:
        there(script.parent, "[0-9]")
        launcher.kill()
    there(script.parent, "saved*")


def test_one_process_starts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.launch.run_processes", lambda count: pytest.fail("it should start none"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    launch(1)
    launch("auto")
    monkeypatch.setenv("WORLD_SIZE", "1")  # of torchrun, which has been told so
    launch(2)


def test_every_gpu_that_is_visible_has_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr("utils.launch.run_processes", lambda count: 10 + count)
    for processes, code in (("auto", 14), (3, 13)):
        with pytest.raises(SystemExit) as end:
            launch(processes)  # type: ignore[arg-type]
        assert end.value.code == code
    with pytest.raises(UserError, match="processes: is 5, and each has a GPU of its own, but 4 are visible"):
        launch(5)
    assert LAUNCHER not in os.environ
