"""The one error that a user sees, and how a script ends on it."""

import errno
import io
import os
import select
import sys
from collections.abc import Callable

from utils.preemption import PREEMPTED, Preempted

NOBODY_READS = 141  # 128 + SIGPIPE: what a shell has for a program whose output is closed
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# A path that is not what it is taken for, or that this user may not read or write.
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)

# How PyTorch says that a process that decodes images has died: wherever the main thread is at that moment.
DEAD_WORKER = "DataLoader worker (pid"
# How gloo says that a process with which this one exchanges tensors has ended.
PROCESS_GONE = ("Connection closed by peer", "Connection reset by peer")


class UserError(Exception):
    """A mistake that the user can mend. The message is one or two lines: the file, the key or path, what to do."""


def said(error: BaseException) -> str:
    """What an error of a library says, in a piece of a line; its kind where it says nothing."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def dead_worker(error: BaseException) -> UserError:
    """What to say when a process that decodes images has died; `error` is how that was noticed."""
    reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
    return UserError(
        f"a process that decodes images died, killed or out of memory ({reason});\n"
        "lower dataset_params.num_workers or dataset_params.batch_size, and start the same command again"
    )


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; a user's mistake ends it with its message and exit code 2, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # file names may hold what the encoding does not
    try:
        try:
            main()
        finally:
            print(end="", flush=True)  # now: when Python ends, an error of it would be a traceback
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to be written
            sys.exit(NOBODY_READS)
        end = expected_end(error)
        if end is None:
            raise
        message, code = end
        alone = os.environ.get("WORLD_SIZE", "1") == "1" or "RANK" not in os.environ
        rank = "" if alone else f"[rank {os.environ['RANK']}] "
        print(f"{rank}{message}", file=sys.stderr, flush=True)
        sys.exit(code)


def _nobody_reads() -> bool:
    """Whether the output is a pipe that is closed, as that into `| head` is in the end."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def expected_end(error: BaseException) -> tuple[str, int] | None:
    """The message and exit code of an end that users bring about; None for a fault of the program."""
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return f"error: no space left on the disk while writing {error.filename or 'a file'}", 2
    if isinstance(error, OSError) and error.errno in UNUSABLE and error.filename is not None:
        return f"error: {error.filename}: cannot be used ({error.strerror})", 2
    if isinstance(error, RuntimeError) and str(error).startswith(DEAD_WORKER):
        return f"error: {dead_worker(error)}", 2
    if isinstance(error, RuntimeError) and any(words in str(error) for words in PROCESS_GONE):
        return "error: another process of this run ended; its message is above, or in its log", 1
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command again to go on", 130
    if isinstance(error, Preempted):
        return str(error), PREEMPTED
    return None
