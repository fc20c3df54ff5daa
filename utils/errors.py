"""The one error that a user sees, and how a script ends on it."""

import errno
import os
import sys
from collections.abc import Callable

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class UserError(Exception):
    """A mistake that the user can mend. The message is one or two lines: the file, the key or path, what to do."""


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; a user's mistake ends it with its message and exit code 2, without a traceback."""
    try:
        main()
    except UserError as error:
        _exit(f"error: {error}", code=2)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        _exit(f"error: no space left on the disk while writing {error.filename or 'a file'}", code=2)
    except KeyboardInterrupt:
        _exit("interrupted; run the same command again to go on", code=130)


def _exit(message: str, code: int) -> None:
    rank = f"[rank {os.environ['RANK']}] " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    print(f"{rank}{message}", file=sys.stderr, flush=True)
    sys.exit(code)
