"""Applying a batch: new embeddings with their ids, checked as a whole, swapped into the gallery as a whole."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.lengths import about_zeros
from upgrade.gallery import ORDER, RE_EMBEDDED, Gallery
from upgrade.order import count_of, write_shorter_order
from upgrade.ends.rows import Array, RowFile, check_finite, parts_of
from upgrade.served_index import INDEX, write_updated_index
from upgrade.ends.files import Source, open_source, stated_space
from upgrade.spaces import are_zero, check_lengths, check_stated, have_unit_length
from upgrade.transactions import FILES, set_manifest, transaction
from utils.errors import UserError
from utils.provenance import timestamp, tool_versions

FEW = 8  # so few rows may all have length 1 by chance, without normalisation


@dataclass(frozen=True)
class Applied:
    """What a batch did."""

    items: int
    newly: int  # of them, re-embedded for the first time
    changed: bool  # false: the gallery held all of it already
    zero: str | None  # a line on those of its embeddings that are zero


def apply_batch(gallery: Gallery, path: str) -> Applied:
    """Swap a batch of new embeddings into the gallery, whose lock is held; an item that has one already gets this one.

    Args:
        gallery: as it is now.
        path: embeddings and ids, in any form of `open_source`; a batch of no item changes nothing.

    Raises:
        UserError: the batch cannot be read, is of another model, dimension or type, holds NaN, an unknown id, or one
            id with two embeddings; or the disk is full. The gallery is as it was.
    """
    batch = open_source(path, where="batch", may_be_empty=True)
    if not len(batch):
        return Applied(0, 0, changed=False, zero=None)
    rows, zero = _checked_rows(gallery, batch)
    if _is_applied(gallery, batch, rows):
        return Applied(len(np.unique(rows)), 0, changed=False, zero=zero)
    manifest = gallery.manifest
    with transaction(gallery.folder) as prepared:
        RowFile.create(prepared / "rows.npy", rows.shape, np.int64).write(0, rows)
        after = RowFile.create(prepared / "after.npy", (len(rows), manifest.dim), manifest.dtype)
        before = RowFile.create(prepared / "before.npy", (len(rows), manifest.dim), manifest.dtype)
        before_state = RowFile.create(prepared / "before_state.npy", rows.shape, np.uint8)
        embeddings, state = gallery.rows("embeddings"), gallery.rows("state")
        for start, stop in parts_of(len(rows)):
            after.write(start, batch.vectors.read(start, stop))
            before.write(start, embeddings.take(rows[start:stop]))
            before_state.write(start, state.take(rows[start:stop]))
        _check_repetitions(batch, rows, after)

        files = prepared / FILES
        next_state = copy_rows(state, files / "state.npy")
        next_state.put(rows, np.full(len(rows), RE_EMBEDDED, np.uint8))
        next_state.sync()
        re_embedded = count_of(next_state, RE_EMBEDDED)
        if (gallery.folder / ORDER).exists():
            ids = np.sort(gallery.rows("ids").take(rows))
            write_shorter_order(files / ORDER, gallery.rows("order"), ids)
        if manifest.has_index:
            write_updated_index(files / INDEX, gallery, rows, after, next_state)
        items = len(np.unique(rows))
        newly = re_embedded - manifest.re_embedded
        last = {"step": "apply", "at": timestamp(), "batch": str(path), "items": items, "newly_re_embedded": newly}
        set_manifest(
            prepared,
            replace(manifest, batches=manifest.batches + 1, re_embedded=re_embedded, last=last, tool=tool_versions()),
        )
    return Applied(items, newly, changed=True, zero=zero)


def copy_rows(source: RowFile, path: Path) -> RowFile:
    """A copy of an `.npy` file, to be written to."""
    shutil.copyfile(source.path, path)
    return RowFile.open(path)


def _checked_rows(gallery: Gallery, batch: Source) -> tuple[Array, str | None]:
    """The gallery's row of each item of a batch, (m,), all of which has been looked at; and a line on zero ones."""
    manifest, where = gallery.manifest, f"batch: {batch.path}"
    if batch.ids is None:
        raise UserError(f"{where} has no ids; give an .npz or a folder with `embeddings` and `ids`")
    if batch.dim != manifest.dim:
        raise UserError(f"{where}: is {batch.dim}-d, but the gallery's embeddings are {manifest.dim}-d")
    stated = stated_space(batch.path, "batch")
    check_stated(stated, where, manifest.model, manifest.dim, manifest.normalised)
    if batch.has_text_ids != gallery.has_text_ids:
        kinds = ("text", "whole numbers") if batch.has_text_ids else ("whole numbers", "text")
        raise UserError(f"{where}: its ids are {kinds[0]}, those of the gallery {kinds[1]}")
    rows, all_unit, zeros = [], True, np.empty(0, np.int64)
    for start, stop in parts_of(len(batch)):
        vectors = batch.vectors.read(start, stop)
        check_finite(vectors, where, start)
        with np.errstate(over="ignore"):
            if manifest.dtype == "float16" and not np.isfinite(vectors.astype(np.float16)).all():
                raise UserError(f"{where}: holds values beyond 65504, the largest of the gallery's float16")
        if manifest.normalised:
            check_lengths(vectors, where, start)
        zero = are_zero(vectors)
        zeros = np.append(zeros, start + np.flatnonzero(zero))
        all_unit = all_unit and (bool(zero.all()) or have_unit_length(vectors))
        ids = batch.ids.read(start, stop)
        found = gallery.rows_of(ids)
        unknown = ids[found < 0]
        if len(unknown):
            raise UserError(f"{where}: the gallery has no id {unknown[0]} ({len(unknown)} unknown ids in this part)")
        rows.append(found)
    if all_unit and not manifest.normalised and len(batch) - len(zeros) >= FEW:
        raise UserError(
            f"{where}: its embeddings have length 1, those of the gallery do not: is it of {manifest.model}?"
        )
    return np.concatenate(rows), about_zeros(str(batch.path), len(zeros), zeros[0]) if len(zeros) else None


def _is_applied(gallery: Gallery, batch: Source, rows: Array) -> bool:
    """Whether the gallery holds the whole batch already."""
    embeddings, state = gallery.rows("embeddings"), gallery.rows("state")
    return all(
        (state.take(rows[start:stop]) == RE_EMBEDDED).all()
        and np.array_equal(
            embeddings.take(rows[start:stop]), batch.vectors.read(start, stop).astype(gallery.manifest.dtype)
        )
        for start, stop in parts_of(len(rows))
    )


def _check_repetitions(batch: Source, rows: Array, after: RowFile) -> None:
    """Raise a UserError if one item has two different embeddings in a batch."""
    order = rows.argsort(kind="stable")
    (again,) = np.nonzero(rows[order][1:] == rows[order][:-1])
    for start, stop in parts_of(len(again)):
        first, second = order[again[start:stop]], order[again[start:stop] + 1]
        differ = np.flatnonzero((after.take(first) != after.take(second)).any(1))
        if len(differ):
            place = first[differ[0]]
            assert batch.ids is not None
            (item,) = batch.ids.read(place, place + 1)
            raise UserError(f"batch: {batch.path}: has two different embeddings of the id {item}")
