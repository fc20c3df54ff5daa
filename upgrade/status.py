"""What is old, transformed and re-embedded, what it takes on the disk, and whether every byte is what it should be."""

import hashlib
import json
from pathlib import Path

import numpy as np

from upgrade.gallery import PENDING, RE_EMBEDDED, REFIT, Gallery, is_locked
from upgrade.inputs import refitted_file
from upgrade.journal import entries_after
from upgrade.manifest import read_manifest
from upgrade.order import count_of
from upgrade.ends.rows import parts_of
from upgrade.transform import CHUNKS, PROGRESS, digest_of
from utils.errors import UserError


def status(folder: Path) -> str:
    """A few lines on the gallery in `folder`, which is only read.

    Raises:
        UserError: there is none.
    """
    manifest = read_manifest(folder, "output")
    origin = manifest.origin
    transformed = manifest.rows
    if manifest.stage == "transforming":
        done = {int(path.stem) for path in (folder / PROGRESS).glob("*.json")}
        parts = parts_of(manifest.rows, manifest.chunk_rows)
        transformed = sum(stop - start for number, (start, stop) in enumerate(parts) if number in done)
    counts = {
        "old": manifest.rows - transformed,
        "transformed": transformed - manifest.re_embedded,
        "re-embedded": manifest.re_embedded,
    }
    lines = [
        f"{folder}: {manifest.rows:,} items, {origin.model} ({origin.dim}-d) -> {manifest.model} ({manifest.dim}-d)",
        *(f"  {name:12} {count:>15,}  {100 * count / manifest.rows:6.2f} %" for name, count in counts.items()),
        f"  on the disk  {_bytes(folder):>15,}  bytes, {manifest.batches} batches in the journal",
    ]
    if manifest.calibration is not None:
        what = "times the cosines" if manifest.normalised else "more than the squared distances"
        lines.append(f"  calibration  {manifest.calibration:>15.4g}  {what} of transformed items")
    if manifest.refit is not None:
        lines.append(f"  refits       {manifest.refit.number:>15,}  kept; the transformation is {manifest.refit.path}")
    if manifest.last:
        lines.append("  last step    " + ", ".join(f"{name} {value}" for name, value in manifest.last.items()))
    if is_locked(folder):
        lines.append("  a step is at work on it")
    elif (folder / PENDING).exists():
        lines.append("  a step was interrupted after its commit; the next one finishes it first")
    elif (folder / REFIT).exists():
        lines.append("  a refit was interrupted; run it again to go on, or let it be")
    elif counts["old"]:
        lines.append("  transform is not finished; run it again to go on")
    return "\n".join(lines)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def verify(gallery: Gallery) -> None:
    """Check every row: undo the journal chunk by chunk in memory, and compare with what transform wrote.

    On the way each batch's rows must hold what it put there. So no row is lost, mixed or doubled, and a rollback would
    restore what was transformed. The gallery's lock is held.

    Raises:
        UserError: naming the first chunk or batch that is not what it should be.
    """
    manifest = gallery.manifest
    if manifest.refit is not None:
        refitted_file(gallery.folder, manifest.refit)
    entries = entries_after(gallery, 0)
    hashes = json.loads((gallery.folder / CHUNKS).read_text(encoding="utf-8"))
    if digest_of(hashes) != manifest.transformed_sha256:
        raise UserError(f"output: {gallery.folder / CHUNKS} is not the one that transform wrote")
    embeddings, states = gallery.rows("embeddings"), gallery.rows("state")
    if count_of(states, RE_EMBEDDED) != manifest.re_embedded:
        raise UserError(f"output: {gallery.folder}: state.npy and the manifest count the re-embedded items differently")
    for chunk, (start, stop) in enumerate(parts_of(manifest.rows, manifest.chunk_rows)):
        vectors, state = embeddings.read(start, stop), states.read(start, stop)
        for entry in entries:
            place, here = entry.within(start, stop)
            kept = np.array_equal(vectors[here], entry.after.take(place)) and (state[here] == RE_EMBEDDED).all()
            if not kept:
                raise UserError(
                    f"output: {gallery.folder}: rows {start} to {stop - 1} are not what batch {entry.batch} put there"
                )
            vectors[here], state[here] = entry.before.take(place), entry.before_state.take(place)
        if state.any() or hashlib.sha256(vectors.tobytes()).hexdigest() != hashes[chunk]:
            raise UserError(f"output: {gallery.folder}: rows {start} to {stop - 1} are not what transform made of them")
