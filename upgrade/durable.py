"""Lance tables on a local disk that outlive a power cut, and what Lance says of the disk and of other steps.

Lance itself does not ask the disk to write. New data files are synced before the commit that names them, and the
manifest after it. What a power cut can still tear is the newest manifest, of a commit that has not returned; without it
the table is what it was before.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lance.commit import CommitConflictError

from utils.errors import UserError
from utils.files import sync

DATA, VERSIONS = ("data", "_deletions", "_indices"), ("_transactions", "_versions", "_refs")
FOLDERS = {*DATA, *VERSIONS}  # of a Lance table
END = b"LANC"  # the last bytes of a manifest
UNFINISHED = ".tmp"  # what the name of a file begins with that Lance is writing, in another process perhaps


def local_folder(uri: str) -> Path | None:
    """The folder of a table on a local disk; None for one in an object store."""
    return None if "://" in uri else Path(uri)


class Unsynced:
    """The files of a table that came since this was made, or since they were last synced.

    Args:
        folder: of the table; None where there is nothing to sync.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.known = set(self._files(DATA + VERSIONS))

    def _files(self, names: tuple[str, ...]) -> list[str]:
        if self.folder is None:
            return []
        tops = [str(self.folder / name) for name in names]
        found = ((place, file) for top in tops for place, _, files in os.walk(top) for file in files)
        return [f"{place}/{file}" for place, file in found if not file.startswith(UNFINISHED)]

    def sync_data(self) -> None:
        """Wait until what a commit is to name is on the disk."""
        self._sync(DATA)

    def sync_versions(self) -> None:
        """Wait until a commit is on the disk."""
        self._sync(VERSIONS)

    def _sync(self, names: tuple[str, ...]) -> None:
        new = [path for path in self._files(names) if path not in self.known]
        for path in [*new, *{os.path.dirname(path) for path in new}]:  # noqa: PTH120 - many of them, and fast
            sync(Path(path))
        self.known.update(new)


def remove_torn_manifest(folder: Path) -> None:
    """Remove the newest manifest if a power cut has cut it short, and say so: its commit had not returned.

    Raises:
        UserError: there is no manifest that is whole.
    """
    manifests = sorted(path for path in (folder / "_versions").glob("*.manifest") if path.stem.isdecimal())
    whole = next((number for number, path in enumerate(manifests) if _is_whole(path)), None)  # the newest stands first
    if whole is None:
        raise UserError(f"output: {folder} holds no version that is whole; the table is damaged")
    for path in manifests[:whole]:
        print(f"note: {path} was cut short, by a power cut perhaps; its step was not finished", file=sys.stderr)
        path.unlink()


def _is_whole(manifest: Path) -> bool:
    with manifest.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - len(END)))
        return file.read() == END


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
