"""Rolling back: to the gallery after some batch, to the one that transform made, or to the old one."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from upgrade.batches import copy_rows
from upgrade.gallery import ORDER, RE_EMBEDDED, Gallery, remove
from upgrade.inputs import sample_digest
from upgrade.journal import entries_after
from upgrade.order import count_of, write_order
from upgrade.rows import RowFile, parts_of
from upgrade.served_index import INDEX, write_updated_index
from upgrade.sources import open_source
from upgrade.transactions import FILES, set_manifest, transaction
from utils.errors import UserError
from utils.provenance import timestamp, tool_versions


def roll_back(gallery: Gallery, batches: int, *, seed: int) -> int:
    """Undo all batches after the first `batches`; the gallery's lock is held -> how many rows changed.

    The embeddings, states, order and index are what they were then, byte for byte but for the order of the vectors
    within the index.

    Raises:
        UserError: there are no so many batches, or the disk is full, and the gallery is as it was.
    """
    manifest = gallery.manifest
    if not 0 <= batches <= manifest.batches:
        raise UserError(f"rollback_to: {batches} is not between 0 and the {manifest.batches} batches that were applied")
    if batches == manifest.batches:
        return 0
    undone = entries_after(gallery, batches)
    rows = np.unique(np.concatenate([entry.rows for entry in undone]))
    with transaction(gallery.folder) as prepared:
        RowFile.create(prepared / "rows.npy", rows.shape, np.int64).write(0, rows)
        after = RowFile.create(prepared / "after.npy", (len(rows), manifest.dim), manifest.dtype)
        files = prepared / FILES
        state = copy_rows(gallery.rows("state"), files / "state.npy")
        for entry in undone:
            for start, stop in parts_of(len(entry.rows)):
                index, place = entry.rows[start:stop], entry.order[start:stop]
                after.put(np.searchsorted(rows, index), entry.before.take(place))
                state.put(index, entry.before_state.take(place))
        for file in (after, state):
            file.sync()
        if (gallery.folder / ORDER).exists():
            write_order(files / ORDER, gallery, state, seed=seed)
        if manifest.has_index:
            write_updated_index(files / INDEX, gallery, rows, after, state)
        last = {"step": "rollback", "at": timestamp(), "to": batches, "items": len(rows)}
        re_embedded = count_of(state, RE_EMBEDDED)
        set_manifest(
            prepared, replace(manifest, batches=batches, re_embedded=re_embedded, last=last, tool=tool_versions())
        )
    return len(rows)


def give_up(folder: Path, gallery: str, ids: str | None, sample_sha256: str) -> None:
    """Go back to the old gallery: check that it is there and as it was, and remove the upgraded one, lock and all.

    Raises:
        UserError: the old gallery is gone or has changed; the upgraded one is left alone.
    """
    old = open_source(gallery, where="gallery", ids=ids)
    if sample_digest(old) != sample_sha256:
        raise UserError(f"gallery: {gallery} is not what was transformed; {folder} is left alone, delete it yourself")
    finish_removal(folder)
    folder.rename(_doomed(folder))
    finish_removal(folder)


def finish_removal(folder: Path) -> bool:
    """Remove what a killed `give_up` has left of the gallery that was in `folder` -> whether there was such."""
    found = _doomed(folder).exists()
    remove(_doomed(folder))
    return found


def _doomed(folder: Path) -> Path:
    """What a gallery is renamed to before it goes, so that it does not go piece by piece."""
    return folder.with_name(f".{folder.name}.rolled-back.tmp")
