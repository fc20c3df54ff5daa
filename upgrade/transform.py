"""The first step: old embeddings through the transformation into a table of the new space. Again, it renews the table.

Fragments of the table are written one after the other, and each is recorded in the table's metadata by a commit of its
own. When all are there, one commit makes them the rows. So an interrupted step goes on after the last fragment, and
readers see either what was before, or all of what is new.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from lance.fragment import FragmentMetadata
from tqdm import tqdm

from models.folding import folded
from upgrade.columns import schema_of, values, vectors_column
from upgrade.computing import transform_rows
from upgrade.config import UpgradeConfig
from upgrade.drift import Drift, compare
from upgrade.inputs import Inputs, memory_named, open_inputs
from upgrade.old import Chunk, Old
from upgrade.opening import create_table, open_table, table_exists
from upgrade.spaces import are_zero
from upgrade.state import SPACES, State, difference
from upgrade.table import Operation, Table
from utils.ahead import ahead
from utils.errors import UserError
from utils.precision import Resolved

PENDING, TARGET = "refill.pending.", "refill.target"  # in the table's metadata: fragments, and the state to come


@dataclass(frozen=True)
class Pending:
    """Fragments that are written and in no version yet."""

    fragments: list[FragmentMetadata]
    rows: int = 0  # of the old gallery that they hold
    last: Any = None  # the last id
    zeros: int = 0  # rows whose old embedding is zero
    first_zero: int | None = None


def transform_gallery(config: UpgradeConfig, device: torch.device) -> tuple[Table, str]:
    """Transform the gallery of a config into its table, go on with that, or renew it -> the table, and what was done.

    A finished table is renewed where the transformation or the old gallery has changed. Rows that are re-embedded stay,
    and so do those of the same transformation, unless their old embedding has changed.

    Raises:
        UserError: inputs that cannot be read or do not fit together, rows that are not finite, an output that is
            something else or another upgrade, a second step at once, or a full disk.
    """
    inputs = open_inputs(config, device)
    old, wanted = inputs.old, inputs.state
    check_output(config)
    if not table_exists(config.output):
        create_table(config.output, schema_of(wanted, old.id_type, old.has_labels))
    table = open_table(config.output, unfinished=True)
    _check_same(table, wanted, old)
    drift = None
    if table.state.stage == "ready":
        counts = table.counts()
        table.settle(counts)
        generation = table.state.generation + 1
        wanted = replace(wanted, generation=generation, batches_before=counts.batches)
        same = table.state.transformation_sha256 == wanted.transformation_sha256
        drift = compare(table, old, config.chunk_rows)
        if drift.unchanged <= drift.changed:  # by another model, perhaps
            raise UserError(
                f"output: {config.output} is the upgrade of another gallery than {old.name}: {drift.unchanged:,} rows "
                f"are the same, {drift.changed:,} are not; name a new folder"
            )
        if same and not drift.differs:
            return _without_pending(table), f"{table.state.rows:,} items are in {wanted.new_model}'s space already"
    wanted = replace(wanted, stage="ready")
    inputs = replace(inputs, state=wanted)
    pending, table = _pending(table, wanted)
    pending, table = _write_fragments(config, inputs, table, pending, device)
    table = _finish(table, inputs, pending, drift)
    counts = table.counts()
    table.settle(counts)
    done = f"{counts.rows:,} items of {wanted.old_model} are in {wanted.new_model}'s space"
    if drift is not None:
        done += f", {counts.re_embedded:,} of them re-embedded as before ({drift})"
    return table, done


def check_output(config: UpgradeConfig) -> None:
    """Check that the output is no place of the old gallery's.

    Raises:
        UserError: it is.
    """
    if config.gallery is None or "://" in config.output:
        return
    output, gallery = Path(config.output).resolve(), Path(config.gallery).resolve()
    if output == gallery or output in gallery.parents or gallery in output.parents:
        raise UserError(f"output: {config.output} is a place of the old gallery {config.gallery}; name a new folder")


def _check_same(table: Table, wanted: State, old: Old) -> None:
    """Raise a UserError if a table is another upgrade, or one that is not finished is by another transformation."""
    names = SPACES if table.state.stage == "ready" else (*SPACES, "rows", "transformation_sha256", "source")
    differs = difference(table.state, wanted, names)
    if differs is None and table.schema.field("id").type != old.id_type:
        differs = f"ids are {old.id_type}, not {table.schema.field('id').type}"
    if differs is None and table.has_labels != old.has_labels:
        differs = f"labels are {'there' if old.has_labels else 'not there'}, unlike before"
    if differs is not None:
        raise UserError(f"output: {table.uri} is another upgrade: {differs}; name a new folder, or roll it back to old")


def _pending(table: Table, wanted: State) -> tuple[Pending, Table]:
    """The fragments of an interrupted run to the same state; those of another are forgotten."""
    metadata = table.dataset.metadata
    target = json.dumps(asdict(replace(wanted, tool={})))
    if metadata.get(TARGET) != target:
        forgotten: dict[str, str | None] = {name: None for name in metadata if name.startswith(PENDING)}
        return Pending([]), _with_metadata(table, {**forgotten, TARGET: target})
    records = [json.loads(metadata[name]) for name in sorted(metadata) if name.startswith(PENDING)]
    if not records:
        return Pending([]), table
    fragments = [FragmentMetadata.from_json(json.dumps(record["fragment"])) for record in records]
    firsts = [record["first_zero"] for record in records if record["first_zero"] is not None]
    return (
        Pending(
            fragments,
            sum(record["rows"] for record in records),
            records[-1]["last"],
            sum(record["zeros"] for record in records),
            min(firsts, default=None),
        ),
        table,
    )


def _with_metadata(table: Table, updates: dict[str, str | None]) -> Table:
    return table.commit(Operation.UpdateConfig(table_metadata_updates=Operation.UpdateMap(updates)))


def _without_pending(table: Table) -> Table:
    """The table without what an interrupted run has left in its metadata."""
    left: dict[str, str | None] = {name: None for name in table.dataset.metadata if name.startswith((PENDING, TARGET))}
    return _with_metadata(table, left) if left else table


def rows_pending(table: Table) -> int:
    """Rows of the old gallery that an interrupted transform has done."""
    metadata = table.dataset.metadata
    return sum(json.loads(text)["rows"] for name, text in metadata.items() if name.startswith(PENDING))


def _write_fragments(
    config: UpgradeConfig, inputs: Inputs, table: Table, pending: Pending, device: torch.device
) -> tuple[Pending, Table]:
    """Write what is missing. One chunk is read and one is written while another is computed."""
    schema = schema_of(inputs.state, inputs.old.id_type, inputs.old.has_labels)
    before = table if table.state.stage == "ready" else None
    left = inputs.old.chunks(config.chunk_rows, skip=pending.rows, after=pending.last)
    rows = ahead(transformed_batches(inputs, ahead(left), schema, before, device))
    with tqdm(
        total=inputs.old.rows,
        initial=pending.rows,
        desc="transforming",
        unit="row",
        unit_scale=True,
        leave=False,
        delay=1,
    ) as bar:
        for first in rows:
            last, count, zeros = first, 0, np.empty(0, np.int64)

            def part(first: pa.RecordBatch = first, start: int = pending.rows) -> Iterator[pa.RecordBatch]:
                nonlocal last, count, zeros
                for batch in chain([first], rows):
                    zeros = np.append(zeros, start + count + np.flatnonzero(are_zero(values(batch["embedding"]))))
                    last, count = batch, count + batch.num_rows
                    bar.update(batch.num_rows)
                    yield batch
                    if count >= config.fragment_rows:
                        return

            fragment = table.write_fragment(part(), schema)
            table.unsynced.sync_data()
            record = {
                "fragment": fragment.to_json(),
                "rows": count,
                "last": last["id"][-1].as_py(),
                "zeros": len(zeros),
                "first_zero": int(zeros[0]) if len(zeros) else None,
            }
            name = f"{PENDING}{len(pending.fragments):06d}"
            table = _with_metadata(table, {name: json.dumps(record)})
            pending = _pending(table, inputs.state)[0]
    return pending, table


def transformed_batches(
    inputs: Inputs,
    chunks: Iterator[Chunk],
    schema: pa.Schema,
    before: Table | None,
    device: torch.device,
) -> Iterator[pa.RecordBatch]:
    """The rows of a table, chunk by chunk.

    Args:
        inputs: the transformation is moved to the device.
        chunks: of old embeddings.
        schema: of the table.
        before: the table whose rows are kept where they are still right.
        device: to compute on.

    Raises:
        UserError: outputs that are not finite, or too little memory.
    """
    state = inputs.state
    precision: Resolved = "bf16" if state.precision == "bf16" else "fp32"
    with memory_named():
        module = folded(inputs.transformation, precision).to(device)
        for chunk in chunks:
            where = f"transformation_path: {state.transformation} of {inputs.old.name.partition(': ')[2]}"
            arrays = [chunk.vectors] if chunk.side_info is None else [chunk.vectors, chunk.side_info]
            vectors, sigma = transform_rows(module, arrays, state, device, where, chunk.first)
            columns = {
                "id": pa.array(chunk.ids),
                "embedding": vectors_column(vectors),
                "sigma": pa.nulls(len(vectors), pa.float32()) if sigma is None else pa.array(sigma),
                "priority": pa.nulls(len(vectors), pa.float32()),
                "batch": pa.array(np.zeros(len(vectors), np.int32)),
                "label": None if chunk.labels is None else pa.array(chunk.labels),
                "source_hash": pa.array(chunk.hashes),
            }
            batch = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
            yield batch if before is None else _kept(batch, before, state)


def _kept(batch: pa.RecordBatch, before: Table, state: State) -> pa.RecordBatch:
    """Rows as they were, where they are re-embedded or of the same transformation, and their item has not changed."""
    ids, names = values(batch["id"]), ["embedding", "sigma", "priority", "batch", "source_hash"]
    place, found = before.lookup(ids, names, dense=bool((ids[1:] > ids[:-1]).all()))
    if not found.num_rows:
        return batch
    known = np.flatnonzero(place >= 0)
    same = values(found["source_hash"])[place[known]] == values(batch["source_hash"])[known]
    if before.state.transformation_sha256 != state.transformation_sha256:
        same &= values(found["batch"])[place[known]] > 0
    kept = known[same]
    if not len(kept):
        return batch
    both = pa.concat_tables([pa.Table.from_batches([batch]).select(["id", *names]), found.select(["id", *names])])
    rows = np.arange(batch.num_rows)
    rows[kept] = batch.num_rows + place[kept]
    taken = both.take(rows)
    columns = [taken[name].combine_chunks() if name in names else batch[name] for name in batch.schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _finish(table: Table, inputs: Inputs, pending: Pending, drift: Drift | None) -> Table:
    """All fragments are there: make them the rows, and forget that they were pending."""
    state = replace(inputs.state, rows=pending.rows)
    numbers: dict[str, Any] = {"rows": pending.rows}
    if pending.zeros:
        numbers |= {"zero_rows": pending.zeros, "first_zero_row": pending.first_zero}
    if drift is not None:
        numbers |= {"generation": state.generation, "drift": str(drift)}
    schema = schema_of(state, inputs.old.id_type, inputs.old.has_labels)
    table = table.commit(Operation.Overwrite(schema, pending.fragments), "transform", **numbers)
    return _without_pending(table.indexed())
