"""Steps in processes of their own that can be killed at any event, without the seconds that a start takes.

    python -m tests.upgrade.forked_steps

reads lines of JSON, [folder, moment or null, step, arguments...], runs each in a fork of this process, and answers with
how it ended: -9 where it was killed at that moment, else its exit code; and how many moments there were. Lance is
imported before, but not used: its threads begin in the fork.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from tests.tiny import REPOSITORY

WATCHED = (f"{os.sep}upgrade{os.sep}", f"{os.sep}utils{os.sep}files.py", f"{os.sep}lance{os.sep}dataset.py")


class Killer:
    """A profiler that counts what the watched files do, and ends this process in the midst of it."""

    def __init__(self, moment: int | None) -> None:
        self.moment, self.count = moment, 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call", "return") and any(part in frame.f_code.co_filename for part in WATCHED):
            self.count += 1
            if self.count == self.moment:
                os.kill(os.getpid(), signal.SIGKILL)


def run_forked(folder: str, moment: int | None, *step: str) -> tuple[int, int]:
    """Run a step in a fork of this process -> exit code, events."""
    from tests.tiny import run_script

    events = Path(folder) / "events"
    process = os.fork()
    if process == 0:
        killer = Killer(moment)
        threading.setprofile(killer)
        sys.setprofile(killer)
        command = ("upgrade_gallery.py", step[0], "--config", "upgrade.yaml", *step[1:])
        done = run_script(*command, cwd=Path(folder), processes=None)
        sys.setprofile(None)
        sys.stderr.write(done.stderr)
        events.write_text(str(killer.count))
        os._exit(done.returncode)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), int(events.read_text()) if os.WIFEXITED(status) else 0


class ForkedSteps:
    """The process that forks, for a test."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore:lance is not fork-safe", "-m", "tests.upgrade.forked_steps"],
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, *step: str, moment: int | None = None) -> tuple[bool, int]:
        """Run a step, killed at a moment -> whether it was killed, how many moments there were."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(folder), moment, *step]) + "\n")
        self.process.stdin.flush()
        code, events = json.loads(self.process.stdout.readline())
        assert code in (0, -signal.SIGKILL), (step, code)
        return code != 0, events

    def end(self) -> None:
        """End it."""
        self.process.communicate("")


if __name__ == "__main__":
    from upgrade import steps  # noqa: F401 - what takes long to import

    for line in sys.stdin:
        print(json.dumps(run_forked(*json.loads(line))), flush=True)
