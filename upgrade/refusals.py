"""What Lance says of the user's disk and of other steps, as the user is told."""

from collections.abc import Iterator
from contextlib import contextmanager

from lance.commit import CommitConflictError

from utils.errors import UserError


@contextmanager
def lance_errors(uri: str) -> Iterator[None]:
    """Make what Lance says of the user's disk, and of another step at the same time, a UserError."""
    try:
        yield
    except CommitConflictError:
        raise at_once(uri) from None
    except (OSError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())
        for words, reason in (
            ("No space left", "no space left on the disk; free some and run the command again"),
            ("Permission denied", "cannot be written (Permission denied)"),
            ("Read-only file system", "cannot be written (Read-only file system)"),
        ):
            if words in text:
                raise UserError(f"output: {uri}: {reason}") from error
        raise


def at_once(uri: str) -> UserError:
    """What to say where another step has committed first."""
    return UserError(
        f"output: {uri}: another step has changed it meanwhile; this one has changed nothing, run it again"
    )
