"""What this code does on a GPU, in one run of less than nine minutes: first whether it is right, then how fast it is.

    python benchmarks/gpu.py --json FILE [--only correctness evaluation] [--minutes 9] [--tiny]

Parts follow each other, each in a process of its own with a share of the time: one that fails or takes too long leaves
the others their figures. Every figure is printed, and FILE written anew, as soon as it is known. On a machine without a
GPU it runs on the CPU: for a trial, `--tiny`.
"""

import argparse
import contextlib
import io
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import DEVICE, Figure, line, machine_line
from benchmarks.on_gpu import backbones, correctness, evaluation, jpegs, transformations
from utils.errors import said
from utils.files import write_json
from utils.provenance import environment, git_revision

Step = Callable[[bool], Iterator[Figure]]  # of whether it is a trial


class Part(NamedTuple):
    """A part of the run."""

    share: float  # of the time
    steps: Sequence[Step]


PARTS = {
    "correctness": Part(0.17, correctness.STEPS),
    "evaluation": Part(0.15, evaluation.STEPS),
    "transformations": Part(0.18, transformations.STEPS),
    "backbones": Part(0.32, backbones.STEPS),
    "jpegs": Part(0.18, jpegs.STEPS),
}


def run_part(name: str, tiny: bool, results: Connection) -> None:
    """Send the figures of a part; of a step that fails, why."""
    for step in PARTS[name].steps:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # of the trainers
                for row in step(tiny):
                    results.send(row)
        except Exception as error:  # the steps after it have figures of their own
            traceback.print_exc()
            results.send(failure(f"{name}, {step.__name__}", said(error)))


def failure(name: str, reason: str) -> Figure:
    """What stands in place of figures."""
    return {"name": name, "error": reason}


def figures_of(name: str, tiny: bool, seconds: float) -> Iterator[Figure]:
    """The figures of a part as they come, for so long."""
    # A process that is forked cannot use a GPU that its parent has looked at; without one a fork spares the imports.
    context: Any = get_context("spawn" if DEVICE.type == "cuda" else "fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_part, args=(name, tiny, sender))
    until = time.monotonic() + seconds
    process.start()
    sender.close()  # so that the end of the process is the end of the pipe
    try:
        while receiver.poll(max(0.0, until - time.monotonic())):
            yield receiver.recv()
        yield failure(name, f"was stopped after {seconds:.0f} s")
    except EOFError:
        process.join()
        if process.exitcode:
            yield failure(name, f"its process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def main() -> int:
    """Run the parts; the exit code is 1 where one has failed or a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the figures here, as they come")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts alone")
    parser.add_argument("--minutes", type=float, default=8.8, help="for all parts (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="seconds, to see that it runs; the figures mean nothing")
    arguments = parser.parse_args()
    shares, found = sum(PARTS[name].share for name in arguments.only), list[Figure]()
    machine = {**environment(), "git_revision": git_revision()}
    print(machine_line())
    until = time.monotonic() + 60 * arguments.minutes
    for name in arguments.only:
        left = until - time.monotonic()  # what a part leaves goes to those that follow
        print(f"\n{name}")
        started = time.monotonic()
        for row in figures_of(name, arguments.tiny, left * PARTS[name].share / shares):
            print(f"{row['name']}: FAILED: {row['error']}" if "error" in row else line(row), flush=True)
            found.append({"part": name, **row})
            if arguments.json:
                write_json(arguments.json, {"machine": machine, "tiny": arguments.tiny, "figures": found})
        shares -= PARTS[name].share
        print(f"({time.monotonic() - started:.0f} s)", flush=True)
    return int(any("error" in row or row["holds"] is False for row in found))


if __name__ == "__main__":
    sys.exit(main())
