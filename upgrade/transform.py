"""The first step: old embeddings through the transformation into a table of the new space. Again, it renews the table.

Parts of the table are written and recorded one after the other, or at the same time by Ray's tasks (`parts.py`). When
all are there, one commit makes them the rows. So an interrupted step goes on with what is missing, and readers see
either what was before, or all of what is new.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lance.fragment import FragmentMetadata

from upgrade.config import UpgradeConfig
from upgrade.drift import Drift, compare
from upgrade.inputs import Inputs, open_inputs
from upgrade.old import Old
from upgrade.opening import create_table, open_table, table_exists
from upgrade.parts import aim_at, forget, recorded, write_missing
from upgrade.state import SPACES, State, difference
from upgrade.table import Operation, Table
from utils.errors import UserError


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
        create_table(config.output, inputs.schema)
    table = open_table(config.output, unfinished=True)
    _check_same(table, wanted, old)
    drift = None
    if table.state.stage == "ready":
        counts = table.counts()
        table.settle(counts)
        generation = table.state.generation + 1
        wanted = replace(wanted, generation=generation, batches_before=counts.batches)
        same = table.state.made_by == wanted.made_by
        drift = compare(table, old, config.chunk_rows)
        if drift.unchanged + drift.moved <= drift.changed:  # by another model, perhaps
            raise UserError(
                f"output: {config.output} is the upgrade of another gallery than {old.name}: {drift.unchanged:,} rows "
                f"are the same, {drift.changed:,} are not; name a new folder"
            )
        if same and not drift.differs:
            return forget(table), f"{table.state.rows:,} items are in {wanted.new_model}'s space already"
    wanted = replace(wanted, stage="ready")
    inputs = replace(inputs, state=wanted)
    table = write_missing(config, inputs, aim_at(table, wanted), device)
    table = _finish(table, inputs, drift)
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
    output = Path(config.output).resolve()
    for place in filter(None, (config.gallery, config.earlier.gallery)):
        gallery = Path(place).resolve()
        if output == gallery or output in gallery.parents or gallery in output.parents:
            raise UserError(f"output: {config.output} is a place of the old gallery {place}; name a new folder")


def _check_same(table: Table, wanted: State, old: Old) -> None:
    """Raise a UserError if a table is another upgrade, or one that is not finished is by another transformation."""
    names = SPACES if table.state.stage == "ready" else (*SPACES, "rows", "transformation_sha256", "source")
    differs = difference(table.state, wanted, names)
    if differs is None and table.schema.field("id").type != old.id_type:
        differs = f"ids are {old.id_type}, not {table.schema.field('id').type}"
    if differs is None and (table.state.earlier is None) != (wanted.earlier is None):
        differs = f"the old gallery is {'a' if wanted.earlier is not None else 'no'} table of an upgrade, unlike before"
    if differs is None and table.has_labels != old.has_labels:
        differs = f"labels are {'there' if old.has_labels else 'not there'}, unlike before"
    if differs is not None:
        raise UserError(f"output: {table.uri} is another upgrade: {differs}; name a new folder, or roll it back to old")


def _finish(table: Table, inputs: Inputs, drift: Drift | None) -> Table:
    """All parts are there: make them the rows, if they hold each item once, and forget that they were parts.

    Raises:
        UserError: they do not.
    """
    parts, old = recorded(table), inputs.old
    rows, digest = sum(part.rows for part in parts), sum(part.digest for part in parts) % 2**64
    if old.digest is not None and (rows, digest) != (old.rows, old.digest()):
        forget(table)
        raise UserError(
            f"{old.name}: its {old.rows:,} items are not those of the {rows:,} rows that were written; it may have "
            "changed meanwhile. The table is as it was: run the command again"
        )
    numbers: dict[str, Any] = {"rows": rows}
    zeros = sum(part.zeros for part in parts)
    if zeros:
        first = min(part.first_zero for part in parts if part.first_zero is not None)
        numbers |= {"zero_rows": zeros, "first_zero_row": first}
    if drift is not None:
        numbers |= {"generation": inputs.state.generation, "drift": str(drift)}
    schema = replace(inputs, state=replace(inputs.state, rows=rows)).schema
    fragments = [FragmentMetadata.from_json(json.dumps(part.fragment)) for part in parts]
    table = table.commit(Operation.Overwrite(schema, fragments), "transform", **numbers)
    return forget(table.indexed())
