"""An upgraded gallery on disk: a folder of arrays, which is an embedding file too, and a lock.

manifest.json    what it is (manifest.py)
embeddings.npy   (n, d) float16 or float32: transformed, or re-embedded by the new model
ids.npy          (n,) int64 or text, as in the old gallery and in its order
labels.npy       (n,) int64, where the old gallery has them
sigma.npy        (n,) float32: mean log variance of the transformed embedding, where the transformation gives one
state.npy        (n,) uint8: TRANSFORMED or RE_EMBEDDED
chunks.json      SHA-256 of each chunk of embeddings.npy, as transform or a refit wrote it
lookup_ids.npy, lookup_rows.npy   (n,) ids in rising order and their rows, where ids.npy is in no such order
lookup_keys.npy, lookup_rows.npy   (n,) the keys of text in rising order (ids.py) and their rows
order.npy        ids that are not re-embedded yet, most valuable first; from `plan` on
gallery.faiss    the same embeddings as a FAISS index, if asked for
journal/00001/   the first batch, with what its rows held before (transactions.py)
pending/         a transaction that is committed and not finished
transformation.pt   of the last refit
refit/           a refit's training that is not finished
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from upgrade.ids import text_keys
from upgrade.manifest import Manifest, read_manifest
from upgrade.rows import Array, RowFile, parts_of
from utils.errors import UserError
from utils.locks import hold

TRANSFORMED, RE_EMBEDDED = 0, 1
JOURNAL, PENDING, REFIT, ORDER, LOCK = "journal", "pending", "refit", "order.npy", "lock"


@dataclass(frozen=True)
class Gallery:
    """A gallery whose transformation is finished, and its manifest as it was when it was opened."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> "Gallery":
        """Open the gallery in `folder`.

        Raises:
            UserError: there is none, or its transformation is not finished.
        """
        manifest = read_manifest(folder, "output")
        if manifest.stage != "ready":
            raise UserError(f"output: {folder} is not fully transformed yet; run `upgrade_gallery.py transform` again")
        return cls(folder, manifest)

    def rows(self, name: str) -> RowFile:
        """The array NAME.npy."""
        path = self.folder / f"{name}.npy"
        try:
            return RowFile.open(path)
        except (OSError, ValueError) as error:
            raise UserError(f"output: {path} cannot be read; the gallery is damaged ({error})") from None

    def journal(self, batch: int) -> Path:
        """The folder of a batch, counted from 1."""
        return self.folder / JOURNAL / f"{batch:05d}"

    def rows_of(self, ids: Array) -> Array:
        """The row of each id (m,) -> (m,) int64; -1 for an id that the gallery does not have."""
        if not len(ids):
            return np.empty(0, np.int64)
        if self.has_text_ids:
            return self._rows_of_text(ids)
        has_lookup = (self.folder / "lookup_ids.npy").exists()
        ordered = self.rows("lookup_ids" if has_lookup else "ids").mapped("r")
        place = np.minimum(np.searchsorted(ordered, ids), len(ordered) - 1)
        rows = self.rows("lookup_rows").take(place) if has_lookup else place
        return np.where(ordered[place] == ids, rows, -1)

    def _rows_of_text(self, ids: Array) -> Array:
        """As `rows_of`: texts of the same key stand together, and are compared one after the other."""
        keys, rows, found = text_keys(ids), self.rows("lookup_rows"), np.full(len(ids), -1)
        ordered = self.rows("lookup_keys").mapped("r")
        left, place = np.arange(len(ids)), np.searchsorted(ordered, keys)
        while len(left):
            alike = ordered[np.minimum(place, len(ordered) - 1)] == keys[left]
            left, place = left[alike & (place < len(ordered))], place[alike & (place < len(ordered))]
            candidates = rows.take(place)
            same = self.rows("ids").take(candidates) == ids[left]
            found[left[same]] = candidates[same]
            left, place = left[~same], place[~same] + 1
        return found

    @property
    def has_text_ids(self) -> bool:
        """Whether its ids are text."""
        return self.rows("ids").dtype.kind == "U"

    def count(self, state: int) -> int:
        """How many rows are in a state."""
        states = self.rows("state")
        return sum(int((states.read(*part) == state).sum()) for part in parts_of(self.manifest.rows, 2**24))


@contextmanager
def locked(folder: Path, *, reading: bool = False) -> Iterator[None]:
    """Make the folder of a gallery, hold its lock, and clear what killed processes left behind.

    Args:
        folder: of the gallery.
        reading: write nothing, and let others read too.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    if reading and not (folder / LOCK).exists():
        yield
        return
    try:
        if not reading:
            folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDONLY if reading else os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        doing = "read" if reading else "written"
        raise UserError(f"output: {folder} cannot be {doing} ({error.strerror})") from error
    try:
        try:
            hold(descriptor, folder, shared=reading)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode(errors="replace").strip() or "?"
            raise UserError(f"output: {folder} is in use by process {holder}; wait until that has ended") from None
        if reading:
            yield
            return
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        for leftover in folder.glob(".*.tmp"):
            remove(leftover)
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process holds the gallery's lock."""
    if not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open() as file:
        try:
            hold(file.fileno(), folder, shared=True)
        except BlockingIOError:
            return True
    return False


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
