"""Applying a batch: new embeddings with their ids, checked as a whole, merged into the table by one commit."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data.items import Array
from data.lengths import about_zeros
from data.sources.embeddings import Source
from data.sources.rows import check_finite, parts_of
from upgrade.columns import values, vectors_column
from upgrade.old import BEHIND, source_hashes
from upgrade.spaces import are_zero, check_lengths, have_unit_length, open_new
from upgrade.state import State
from upgrade.table import Counts, Table
from utils.errors import UserError

FEW = 8  # so few rows may all have length 1 by chance, without normalisation
JUDGED, FEWEST_JUDGED = 500, 50  # items by which a batch is judged
# The share by which a batch is nearer to h(old) of its own items than to that of others. Pairs of real models had 0.09
# to 0.5, with h fitted to 500 of them or more; embeddings that were rotated, or of other items, 0.01 at most.
LEAST_EXPLAINED = 0.02


@dataclass(frozen=True)
class Applied:
    """What a batch did."""

    items: int
    newly: int  # of them, re-embedded for the first time
    changed: bool  # false: the table held all of it already
    zero: str | None  # a line on those of its embeddings that are zero
    table: Table
    counts: Counts


def apply_batch(table: Table, path: str, *, insist: bool = False) -> Applied:
    """Merge a batch of new embeddings into the table; an item that has one already gets this one.

    Args:
        table: as it is now.
        path: embeddings and ids, in any form of `open_source`; a batch of no item changes nothing.
        insist: take it even if it does not look like the new model's.

    Raises:
        UserError: the batch cannot be read, is of another model, dimension or type, holds NaN, an unknown id, or one
            id with two embeddings; another step has changed the table meanwhile; or the disk is full. The table is as
            it was.
    """
    before = table.counts()
    table.settle(before)
    batch = open_new(path, table.state, where="batch", may_be_empty=True)
    if not len(batch):
        return Applied(0, 0, changed=False, zero=None, table=table, counts=before)
    found = _checked(table, batch, insist)
    items, newly, zero = len(found.rows), found.newly, found.zero
    if found.same:
        return Applied(items, 0, changed=False, zero=zero, table=table, counts=before)
    counts = Counts(before.rows, before.re_embedded + newly, before.batches + 1)
    schema = table.schema
    new = table.write_fragment(_rows(batch, found, counts.batches, schema), schema)
    table = table.replaced(found.addresses, new, "apply", counts, batch=str(path), items=items, newly_re_embedded=newly)
    table.settle(counts)
    if table.needs_care():
        table = table.indexed().compacted()
        table.settle(counts)
    return Applied(items, newly, changed=True, zero=zero, table=table, counts=counts)


@dataclass(frozen=True)
class _Found:
    """A batch of m items that has been looked at, and what the table has of them."""

    rows: Array  # (m,) of the batch, one for each item
    addresses: Array  # (m,) of the table's rows
    kept: pa.Table  # (m,) the table's columns that stay
    newly: int  # items that are not re-embedded yet
    same: bool  # whether the table holds all of it
    zero: str | None  # a line on rows that are zero


def _rows(batch: Source, found: _Found, number: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The table's rows of a batch's items, with their new embeddings."""
    number_type = schema.field("embedding").type.value_type.to_pandas_dtype()
    for start, stop in parts_of(len(found.rows)):
        kept, count = found.kept.slice(start, stop - start).combine_chunks(), stop - start
        new = {
            "embedding": vectors_column(batch.vectors.take(found.rows[start:stop]).astype(number_type)),
            "priority": pa.nulls(count, pa.float32()),
            "batch": pa.array(np.full(count, number, np.int32)),
        }
        columns = [new[name] if name in new else kept[name].combine_chunks() for name in schema.names]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _checked(table: Table, batch: Source, insist: bool) -> _Found:
    """Look at all of a batch.

    Raises:
        UserError: as `apply_batch`.
    """
    state, where = table.state, f"batch: {batch.path}"
    if batch.ids is None:
        raise UserError(f"{where} has no ids; give an .npz or a folder with `embeddings` and `ids`")
    if batch.has_text_ids != table.has_text_ids:
        kinds = ("text", "whole numbers") if batch.has_text_ids else ("whole numbers", "text")
        raise UserError(f"{where}: its ids are {kinds[0]}, those of the gallery {kinds[1]}")
    rows = _each_once(batch, state.dtype)
    kept_names = [name for name in table.schema.names if name not in ("embedding", "batch", "priority")]
    all_unit, same, newly, old, zeros, judged = True, True, 0, 0, np.empty(0, np.int64), _Judged()
    addresses, kept = [], []
    for start, stop in parts_of(len(batch)):
        vectors, ids = batch.vectors.read(start, stop), batch.ids.read(start, stop)
        _check_values(vectors, state, where, start)
        zero = are_zero(vectors)
        zeros = np.append(zeros, start + np.flatnonzero(zero))
        all_unit = all_unit and (bool(zero.all()) or have_unit_length(vectors))
        place, found = table.lookup(ids, [*kept_names[1:], "batch"], addresses=True)
        unknown = ids[place < 0]
        if len(unknown):
            raise UserError(f"{where}: the gallery has no id {unknown[0]} ({len(unknown)} unknown ids in this part)")
        number = values(found["batch"])[place]
        same = same and bool((number > 0).all())
        few = slice(None) if same else np.flatnonzero(~zero)[: JUDGED - judged.count]  # vectors take long to be read
        present = _present(table, ids[few])
        same = same and np.array_equal(present, vectors.astype(state.dtype))
        judged.add(vectors[few], present)
        if state.old_dim == state.dim:
            old += int(((source_hashes(vectors) ^ values(found["source_hash"])[place]) <= BEHIND)[~zero].sum())
        here = rows[(rows >= start) & (rows < stop)] - start
        newly += int((number[here] == 0).sum())
        addresses.append(found["_rowaddr"].to_numpy()[place[here]])
        kept.append(found.select(kept_names).take(place[here]))
    if all_unit and not state.normalised and len(batch) - len(zeros) >= FEW:
        raise UserError(f"{where}: its embeddings have length 1, those of the gallery do not: of {state.new_model}?")
    if old and not insist:
        raise UserError(
            f"{where}: {old:,} of its embeddings are those of {state.old_model}; give those of {state.new_model}, "
            "or set insist=True"
        )
    if not insist and judged.explained < LEAST_EXPLAINED:
        raise UserError(
            f"{where}: does not look like {state.new_model}: what the gallery has of its items explains "
            f"{judged.explained:.1%} of it (by {judged.count:,} items), and {LEAST_EXPLAINED:.0%} is the least.\n"
            "Give the embeddings of the new model, or set insist=True if that is what they are"
        )
    line = about_zeros(str(batch.path), len(zeros), zeros[0]) if len(zeros) else None
    return _Found(rows, np.concatenate(addresses), pa.concat_tables(kept), newly, same, line)


def _present(table: Table, ids: Array) -> Array:
    """The embeddings that the table has of items (m,), (m, d)."""
    place, found = table.lookup(ids, ["embedding"])
    return values(found["embedding"])[place] if len(ids) else np.empty((0, table.state.dim), table.state.dtype)


def _check_values(vectors: Array, state: State, where: str, start: int) -> None:
    """Raise a UserError if vectors (m, d) are not finite, too large for the table, or not of length 1 as it is."""
    check_finite(vectors, where, start)
    with np.errstate(over="ignore"):
        if not np.isfinite(vectors.astype(state.dtype)).all():
            raise UserError(f"{where}: holds values beyond 65504, the largest of the gallery's float16")
    if state.normalised:
        check_lengths(vectors, where, start)


class _Judged:
    """How much of a batch the gallery's embeddings explain: nothing, if it is of another model or of other items."""

    def __init__(self) -> None:
        self.count, self.own, self.others = 0, 0.0, 0.0

    def add(self, new: Array, present: Array) -> None:
        """Compare new embeddings (m, d) with what the gallery has of the same items, and of the items before them."""
        new, present = (part.astype(np.float64) for part in (new, present))
        if len(new) < 2:
            return
        self.count += len(new)
        self.own += float(((new - present) ** 2).sum())
        self.others += float(((new - np.roll(present, 1, axis=0)) ** 2).sum())

    @property
    def explained(self) -> float:
        """The share by which they are nearer to their own items than to others; 1 where there are too few to tell."""
        return 1.0 if self.count < FEWEST_JUDGED or not self.others else 1 - self.own / self.others


def _each_once(batch: Source, dtype: str) -> Array:
    """Rows of a batch (m,) in rising order, so that each item is there once.

    Raises:
        UserError: one item has two different embeddings.
    """
    assert batch.ids is not None
    ids = batch.ids.read(0, len(batch))
    order = ids.argsort(kind="stable")
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    for start, stop in parts_of(len(again)):
        first, second = order[again[start:stop]], order[again[start:stop] + 1]
        pair = [batch.vectors.take(rows).astype(dtype) for rows in (first, second)]
        differ = np.flatnonzero((pair[0] != pair[1]).any(1))
        if len(differ):
            raise UserError(f"batch: {batch.path}: has two different embeddings of the id {ids[first[differ[0]]]}")
    chosen = np.ones(len(ids), bool)
    chosen[order[again + 1]] = False
    return np.flatnonzero(chosen)
