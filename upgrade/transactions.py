"""Changes of a gallery that are made as a whole or not at all, whenever their process is killed.

The invariant: the gallery is what the finished transactions made of it, once `pending/` is carried out; carrying it out
again changes nothing.

1. *Prepare*: write the rows that change with their next embeddings, the files that will be replaced (states, order,
   index) and the next manifest into a temporary folder. All that needs room on the disk is written here; until here the
   gallery is untouched.
2. *Commit*: rename the folder to `pending`.
3. *Finish*: put the embeddings into their rows, move the files to their places, then the manifest; last, `pending`
   becomes the batch's folder in the journal or, after a rollback, goes. Whoever takes the gallery's lock next does this
   first if the process that committed was killed.

Batches and rollbacks are both such transactions: a rollback sets rows to what the journal has kept of them.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from upgrade.gallery import JOURNAL, PENDING, remove, sync_folder
from upgrade.manifest import Manifest
from upgrade.rows import RowFile, parts_of
from upgrade.sources import MANIFEST
from utils.errors import UserError
from utils.files import NO_SPACE, write_json

FILES = "files"  # the folder, within a transaction's, of files that take their place in the gallery


@contextmanager
def transaction(folder: Path) -> Iterator[Path]:
    """Yield a folder to prepare a transaction in; it is committed when the block ends well, and goes otherwise.

    The block writes `rows.npy` (m,), `after.npy` (m, d), whatever is to be replaced into `files/`, and the manifest by
    `set_manifest`; in a batch also what `read_before` reads.

    Raises:
        UserError: the disk is full; the gallery is as it was.
    """
    temporary = folder / f".{PENDING}.{os.getpid()}.tmp"
    try:
        (temporary / FILES).mkdir(parents=True)
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
        temporary.rename(folder / PENDING)
        sync_folder(folder)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise UserError(f"output: {folder}: no space left on the disk; the gallery is as it was") from error
        raise
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_manifest(prepared: Path, manifest: Manifest) -> None:
    """The manifest of the gallery once the transaction is finished."""
    manifest.write(prepared / FILES)
    write_json(prepared / "record.json", {"batches": manifest.batches, **manifest.last, **asdict(manifest)["tool"]})


def finish_pending(folder: Path) -> bool:
    """Carry out the transaction that is committed and not finished, if there is one -> whether there was."""
    pending = folder / PENDING
    if not pending.exists():
        return False
    rows, after = RowFile.open(pending / "rows.npy"), RowFile.open(pending / "after.npy")
    embeddings = RowFile.open(folder / "embeddings.npy")
    for part in parts_of(rows.shape[0]):
        embeddings.put(rows.read(*part), after.read(*part))
    embeddings.sync()
    replaced = sorted(pending.glob(f"{FILES}/*"), key=lambda file: file.name == MANIFEST)  # the manifest is the last
    for file in replaced:
        file.replace(folder / file.name)
    sync_folder(folder)
    remove(pending / FILES)
    record = json.loads((pending / "record.json").read_text(encoding="utf-8"))
    journal = folder / JOURNAL
    if record["step"] == "apply":
        journal.mkdir(exist_ok=True)
        pending.rename(journal / f"{record['batches']:05d}")
        sync_folder(journal)
    else:
        for entry in sorted(journal.iterdir(), reverse=True):
            if int(entry.name) > record["batches"]:
                remove(entry)
        done = folder / f".{PENDING}.done.tmp"  # so that it does not vanish piece by piece
        pending.rename(done)
        remove(done)
    sync_folder(folder)
    return True
