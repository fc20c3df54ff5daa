"""Applying a batch: new embeddings with their ids, checked as a whole, merged into the table by one commit."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data.items import Array
from data.lengths import about_zeros
from upgrade.ends.files import Source, open_source, stated_space
from upgrade.ends.rows import check_finite, parts_of
from upgrade.old import source_hashes
from upgrade.spaces import are_zero, check_lengths, check_stated, have_unit_length
from upgrade.table import Counts, Table, lance_errors, values, vectors_column
from utils.errors import UserError

FEW = 8  # so few rows may all have length 1 by chance, without normalisation
JUDGED, FEWEST_JUDGED = 10_000, 50  # items by which a batch is judged
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
    batch = open_source(path, where="batch", may_be_empty=True)
    if not len(batch):
        return Applied(0, 0, changed=False, zero=None, table=table, counts=before)
    chosen, newly, same, zero = _checked(table, batch, insist)
    items = int(chosen.sum())
    if same:
        return Applied(items, 0, changed=False, zero=zero, table=table, counts=before)
    counts = Counts(before.rows, before.re_embedded + newly, before.batches + 1)
    names = ["id", "embedding", "priority", "batch"]
    schema = pa.schema([table.schema.field(name) for name in names])
    reader = pa.RecordBatchReader.from_batches(schema, _rows(batch, chosen, counts.batches, schema))
    with lance_errors(table.uri):
        # Whole rows, so that what is written grows with the batch and not with the table.
        merge = table.dataset.merge_insert("id").when_matched_update_all().write_mode("rewrite_rows")
        transaction, merged = merge.conflict_retries(0).execute_uncommitted(reader)
    if merged["num_updated_rows"] != items:
        raise UserError(
            f"output: {table.uri} has {merged['num_updated_rows']} rows of the {items} items of {path}; damaged"
        )
    table = table.commit(transaction, "apply", batch=str(path), items=items, newly_re_embedded=newly)
    table.settle(counts)
    if table.needs_care():
        table = table.indexed().compacted()
        table.settle(counts)
    return Applied(items, newly, changed=True, zero=zero, table=table, counts=counts)


def _rows(batch: Source, chosen: Array, number: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The batch's part of the rows, a part at a time."""
    assert batch.ids is not None
    for start, stop in parts_of(len(batch)):
        here = chosen[start:stop]
        vectors = batch.vectors.read(start, stop)[here]
        columns = [
            pa.array(batch.ids.read(start, stop)[here], schema.field("id").type),
            vectors_column(vectors.astype(schema.field("embedding").type.value_type.to_pandas_dtype())),
            pa.nulls(len(vectors), pa.float32()),
            pa.array(np.full(len(vectors), number, np.int32)),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _checked(table: Table, batch: Source, insist: bool) -> tuple[Array, int, bool, str | None]:
    """Look at all of a batch.

    Returns:
        Which of its rows to take, (m,) bool, each item once; how many of these items are not re-embedded yet; whether
        the table holds all of them; and a line on those that are zero.
    """
    state, where = table.state, f"batch: {batch.path}"
    if batch.ids is None:
        raise UserError(f"{where} has no ids; give an .npz or a folder with `embeddings` and `ids`")
    if batch.dim != state.dim:
        raise UserError(f"{where}: is {batch.dim}-d, but the gallery's embeddings are {state.dim}-d")
    check_stated(stated_space(batch.path, "batch"), where, state.new_model, state.dim, state.normalised)
    if batch.has_text_ids != table.has_text_ids:
        kinds = ("text", "whole numbers") if batch.has_text_ids else ("whole numbers", "text")
        raise UserError(f"{where}: its ids are {kinds[0]}, those of the gallery {kinds[1]}")
    chosen = _each_once(batch, state.dtype)
    all_unit, same, newly, old, zeros, judged = True, True, 0, 0, np.empty(0, np.int64), _Judged()
    for start, stop in parts_of(len(batch)):
        vectors, ids = batch.vectors.read(start, stop), batch.ids.read(start, stop)
        check_finite(vectors, where, start)
        with np.errstate(over="ignore"):
            kept = vectors.astype(state.dtype)
        if not np.isfinite(kept).all():
            raise UserError(f"{where}: holds values beyond 65504, the largest of the gallery's float16")
        if state.normalised:
            check_lengths(vectors, where, start)
        zero = are_zero(vectors)
        zeros = np.append(zeros, start + np.flatnonzero(zero))
        all_unit = all_unit and (bool(zero.all()) or have_unit_length(vectors))
        place, found = table.lookup(ids, ["embedding", "batch", "source_hash"])
        unknown = ids[place < 0]
        if len(unknown):
            raise UserError(f"{where}: the gallery has no id {unknown[0]} ({len(unknown)} unknown ids in this part)")
        present, number = values(found["embedding"])[place], values(found["batch"])[place]
        same = same and bool((number > 0).all()) and np.array_equal(present, kept)
        newly += int((number[chosen[start:stop]] == 0).sum())
        judged.add(vectors[~zero], present[~zero])
        if state.old_dim == state.dim:
            old += int((source_hashes(vectors) == values(found["source_hash"])[place])[~zero].sum())
    if all_unit and not state.normalised and len(batch) - len(zeros) >= FEW:
        raise UserError(
            f"{where}: its embeddings have length 1, those of the gallery do not: is it of {state.new_model}?"
        )
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
    return chosen, newly, same, about_zeros(str(batch.path), len(zeros), zeros[0]) if len(zeros) else None


class _Judged:
    """How much of a batch the gallery's embeddings explain: nothing, if it is of another model or of other items."""

    def __init__(self) -> None:
        self.count, self.own, self.others = 0, 0.0, 0.0

    def add(self, new: Array, present: Array) -> None:
        """Compare new embeddings (m, d) with what the gallery has of the same items, and of the items before them."""
        new, present = (part[: JUDGED - self.count].astype(np.float64) for part in (new, present))
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
    """Which rows of a batch to take, (m,) bool, so that each item is there once.

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
    return chosen
