"""Running stages: skip what is up to date, go on after an interruption, and keep a record of each."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from suites.planning import PlannedStage
from utils.data_roots import digest, image_files
from utils.errors import UserError
from utils.files import sha256_of, write_json
from utils.launch import end_with_parent
from utils.preemption import PREEMPTED, Preempted
from utils.provenance import environment, git_revision
from utils.runs import decisive_values

INTERRUPTED = 130
GRACE_SECONDS = 2.0  # for an interrupted stage to end by itself
CHECKPOINT_SECONDS = 130.0  # for one that was told to end: it writes a checkpoint


class StageFailed(Exception):
    """A stage's script ended with an error, which it has printed itself."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Record:
    """`stages/NAME.record.json`: what a stage was run on, how far it came, and what it wrote."""

    fingerprint: str
    status: Literal["started", "finished"] = "started"
    seconds: float = 0.0  # over all interruptions
    outputs: dict[str, str] = field(default_factory=dict)  # path -> hash of its content
    # The machine; under `git_revisions` those of the code that ran it, more than one where it changed on the way.
    environment: dict[str, Any] = field(default_factory=environment)


def run_stage(stage: PlannedStage, heading: str) -> Record:
    """Run a stage unless it is up to date; its script's output passes through to the terminal.

    A stage that was interrupted goes on from its checkpoint where its config and inputs are still the same; in all
    other cases it starts afresh, so that a checkpoint of another run is never taken for its own.

    Raises:
        StageFailed: the script failed.
        UserError: the script ended well without having written its outputs.
        KeyboardInterrupt: the user interrupted the script.
        Preempted: a scheduler's SIGTERM ended it; a training has written its checkpoint.
    """
    fingerprint = fingerprint_of(stage)
    record = _read_record(stage.record)
    unchanged = record is not None and record.fingerprint == fingerprint
    if record is not None and unchanged and record.status == "finished" and _outputs_unchanged(record):
        print(f"{heading}: up to date", flush=True)
        return record
    if record is None or not unchanged or record.status == "finished":
        record = Record(fingerprint)
        record.environment["git_revisions"] = []
        command = [*stage.command, "resume=false"] if stage.can_resume else stage.command
        print(f"{heading}: running", flush=True)
    else:
        command = stage.command
        print(f"{heading}: running again after an interruption", flush=True)
    revisions = record.environment.setdefault("git_revisions", [None])
    if (revision := git_revision()) not in revisions:
        revisions.append(revision)
    write_json(stage.record, asdict(record))
    started = time.monotonic()
    try:
        code = _run(command)
    finally:
        record.seconds += time.monotonic() - started
        write_json(stage.record, asdict(record))
        content_of.cache_clear()
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code in (PREEMPTED, 128 + signal.SIGTERM):  # the latter of a script that keeps no checkpoint
        raise Preempted(f"stage {stage.label} was stopped by SIGTERM; run the same command again to go on")
    if code != 0:
        raise StageFailed(f"stage {stage.label} failed (exit code {code}); {stage.script} says why above", code)
    for path in stage.outputs:
        if not Path(path).exists():
            raise UserError(f"stage {stage.label}: {stage.script} ended without having written {path}")
    record.status, record.outputs = "finished", {path: content_of(path) for path in stage.outputs}
    write_json(stage.record, asdict(record))
    print(f"{heading}: done in {duration(record.seconds)}", flush=True)
    return record


def fingerprint_of(stage: PlannedStage) -> str:
    """The hash of all that decides a stage's result: script, resolved config or arguments, content of the inputs."""
    decisive = {
        "script": stage.script,
        "config": decisive_values(stage.config),
        "export_formats": getattr(stage.config, "export_formats", None),  # no weights, but files
        "arguments": stage.arguments,
        "processes": stage.processes,
        "inputs": {name: content_of(path) for name, path in stage.inputs.items()},
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


@cache
def content_of(path: str) -> str:
    """A hash of a file's content; of a folder's, by the names and sizes of the files in it (hidden ones aside).

    Of a data root those of the two splits count. Cached until a stage has run, as a data root may hold a million files.

    Raises:
        UserError: there is no such file or folder.
    """
    if Path(path).is_file() or Path(path, "embeddings.npy").is_file():  # an embedding file may be a folder
        return sha256_of(path)
    if not Path(path).is_dir():
        raise UserError(f"there is no {path}")
    return digest((name, status.st_size) for name, status in image_files(path))


def _read_record(path: Path) -> Record | None:
    """The record of a stage's last run; None where there is none that this version wrote."""
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _outputs_unchanged(record: Record) -> bool:
    return all(Path(path).exists() and content_of(path) == content for path, content in record.outputs.items())


def _run(command: list[str]) -> int:
    """Run `command` to its end and return its exit status as a shell gives it; it does not outlive this process."""
    sys.stdout.flush()
    process = subprocess.Popen(command, preexec_fn=end_with_parent)
    try:
        code = process.wait()
    except (KeyboardInterrupt, Preempted):
        # The terminal has sent Ctrl-C to the stage as well; a scheduler's signal came here alone.
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(CHECKPOINT_SECONDS)
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return code if code >= 0 else 128 - code


def duration(seconds: float) -> str:
    """A duration for people.

    >>> duration(41.2), duration(723.0), duration(7512.0)
    ('41 s', '12 min 3 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
