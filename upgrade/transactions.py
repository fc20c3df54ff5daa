"""Changes of a gallery that are made as a whole or not at all, whenever their process is killed.

The invariant: the gallery is what the finished transactions made of it, once `pending/` is carried out; carrying it out
again changes nothing.

1. *Prepare*: write the rows that change with their next embeddings, the files that will be replaced (states, order,
   index, in a refit more) and the next manifest into a temporary folder. All that needs room on the disk is written
   here; until here the gallery is untouched.
2. *Commit*: rename the folder to `pending`.
3. *Finish*: put the embeddings into their rows, move the files to their places, then the manifest; last, `pending`
   becomes the batch's folder in the journal or, after a rollback, goes. Whoever takes the gallery's lock next does this
   first if the process that committed was killed.

Batches, rollbacks and refits are such transactions. A rollback sets rows to what the journal has kept of them; a refit
replaces all embeddings and what the journal has kept of transformed ones, so that it sets no rows.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from upgrade.gallery import JOURNAL, PENDING, REFIT, remove
from upgrade.manifest import Manifest
from upgrade.rows import RowFile, parts_of
from upgrade.sources import MANIFEST
from utils.errors import UserError
from utils.files import NO_SPACE, sync, write_json

FILES = "files"  # the folder, within a transaction's, of files that take their place in the gallery


@contextmanager
def transaction(folder: Path) -> Iterator[Path]:
    """Yield a folder to prepare a transaction in; it is committed when the block ends well, and goes otherwise.

    The block writes `rows.npy` (m,) and `after.npy` (m, d) if it sets rows, whatever is to be replaced into `files/`,
    by its path in the gallery, and the manifest by `set_manifest`; a batch also the rest of its entry in the journal.

    Raises:
        UserError: the disk is full; the gallery is as it was.
    """
    temporary = folder / f".{PENDING}.{os.getpid()}.tmp"
    try:
        (temporary / FILES).mkdir(parents=True)
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        temporary.rename(folder / PENDING)
        sync(folder)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise UserError(f"output: {folder}: no space left on the disk; the gallery is as it was") from error
        raise
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def set_manifest(prepared: Path, manifest: Manifest) -> None:
    """The manifest of the gallery once the transaction is finished."""
    manifest.write(prepared / FILES)
    write_json(prepared / "record.json", {"batches": manifest.batches, **manifest.last, **asdict(manifest)["tool"]})


def finish_pending(folder: Path) -> bool:
    """Carry out the transaction that is committed and not finished, if there is one -> whether there was."""
    pending = folder / PENDING
    if not pending.exists():
        return False
    record = json.loads((pending / "record.json").read_text(encoding="utf-8"))
    if (pending / "rows.npy").exists():
        _put_rows(folder, pending)
    replaced = [file.relative_to(pending / FILES) for file in pending.glob(f"{FILES}/**/*") if file.is_file()]
    for file in sorted(replaced, key=lambda file: file.name == MANIFEST):  # the manifest is the last
        (pending / FILES / file).replace(folder / file)
        sync((folder / file).parent)
    remove(pending / FILES)
    journal = folder / JOURNAL
    if record["step"] == "apply":
        journal.mkdir(exist_ok=True)
        pending.rename(journal / f"{record['batches']:05d}")
        sync(journal)
    else:
        if record["step"] == "refit":
            remove(folder / REFIT)
        for entry in sorted(journal.iterdir(), reverse=True):
            if int(entry.name) > record["batches"]:
                remove(entry)
        done = folder / f".{PENDING}.done.tmp"  # so that it does not vanish piece by piece
        pending.rename(done)
        remove(done)
    sync(folder)
    return True


def _put_rows(folder: Path, pending: Path) -> None:
    rows, after = RowFile.open(pending / "rows.npy"), RowFile.open(pending / "after.npy")
    embeddings = RowFile.open(folder / "embeddings.npy")
    for part in parts_of(rows.shape[0]):
        embeddings.put(rows.read(*part), after.read(*part))
    embeddings.sync()
