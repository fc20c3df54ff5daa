"""Locks on files and folders, which go with the process that holds them, however it ends."""

import errno
import fcntl
import sys
from pathlib import Path

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # Lustre without its option `flock`, some NFS


def hold(descriptor: int, path: Path, *, shared: bool = False) -> None:
    """Hold an open file or folder against other processes; on a file system without locks, say so and go on.

    Args:
        descriptor: closing it, or the end of the process, lets go.
        path: what is protected, for the message.
        shared: others may hold it in the same way.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        note = f"note: {path} is on a file system without locks: nothing shows or keeps out a second run"
        print(note, file=sys.stderr, flush=True)
