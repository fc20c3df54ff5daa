"""To the store that a gallery is in: push what differs, and switch over, after a look at what has changed there."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from upgrade.columns import values, vectors_column
from upgrade.config import UpgradeConfig
from upgrade.drift import compare
from upgrade.durable import lance_errors
from upgrade.ends import Pushed, Store, open_store
from upgrade.export import served, served_columns
from upgrade.inputs import open_old
from upgrade.old import Old, old_store
from upgrade.opening import open_table
from upgrade.table import Table
from upgrade.transform import transform_gallery
from utils.errors import UserError

PART = 2**14  # rows that are handed to a store at a time
SENT = ["id", "embedding", "batch"]


def store_of(config: UpgradeConfig) -> Store:
    """The store that a config names.

    Raises:
        UserError: it names none, or it cannot be reached.
    """
    if config.store is None:
        raise UserError("store: is missing; a gallery in files is written by `upgrade_gallery.py export --to FILE`")
    return open_store(config.store)


def push(config: UpgradeConfig, store: Store, device: torch.device) -> list[str]:
    """Bring a store to what the table is, and the table first to what the store's old vectors are -> lines on it.

    Raises:
        UserError: the store cannot be written, or is of another upgrade.
    """
    table, old = open_table(config.output), _old(config, store)
    where = old.name if config.gallery is None else f"store: {store.info().identity}"
    drift, pushed = compare(table, old, config.chunk_rows), store.pushed()
    lines = [f"{old.name}: {drift} since it was transformed"]
    if old.without:
        lines.append(f"{old.name}: {old.without:,} rows have no old vector, and will have no new one")
    if config.dry_run:
        rows = _count(table, pushed)
        lines.append(
            f"would transform {drift.added + drift.changed + drift.moved:,} rows, and push {rows:,} beside those"
        )
        return lines
    if drift.differs:
        table, done = transform_gallery(replace(config, step="transform"), device)
        lines.append(done)
    record = _record(table, pushed)
    count = store.push(_batches(table, _pushed_version(table, pushed)), record)
    lines.append(f"{where}: {count:,} rows were pushed; it is as {table.uri} is in version {table.version}")
    return lines


def _old(config: UpgradeConfig, store: Store) -> Old:
    """The old vectors: those of the store, or a table's that is in the middle of an upgrade in the same store."""
    return old_store(store) if config.gallery is None else open_old(config)


def _record(table: Table, pushed: Pushed | None) -> Pushed:
    state = table.state
    if pushed is not None and (pushed.old_model, pushed.new_model) != (state.old_model, state.new_model):
        raise UserError(f"store: holds an upgrade from {pushed.old_model} to {pushed.new_model}; undo that first")
    cut_over = pushed is not None and pushed.cut_over
    calibration: Any = state.calibration
    return Pushed(table.version, state.old_model, state.new_model, state.transformation_sha256, calibration, cut_over)


def cutover(config: UpgradeConfig, store: Store) -> str:
    """Switch a store over to what was pushed, or back.

    Raises:
        UserError: the store is not what the table is.
    """
    if config.undo:
        store.undo_cutover()
        return "the old vectors are served again"
    table, pushed = open_table(config.output), store.pushed()
    if pushed is None:
        raise UserError("store: nothing was pushed to it; run `upgrade_gallery.py push` first")
    old = _old(config, store)
    drift = compare(table, old, config.chunk_rows)
    left = 0 if pushed.table_version == table.version else _count(table, pushed)
    if drift.differs or left or pushed.transformation != table.state.transformation_sha256:
        raise UserError(
            f"{old.name}: {drift} since it was transformed, and {left:,} rows are not pushed yet; "
            "run `upgrade_gallery.py push` again"
        )
    store.cutover()
    return f"{old.name}: the vectors of {table.state.new_model} are served"


def _count(table: Table, pushed: Pushed | None) -> int:
    return sum(len(part) for part in different_rows(table, _pushed_version(table, pushed)))


def _pushed_version(table: Table, pushed: Pushed | None) -> Any:
    """The version of the table that a store has; None for none, or one that is gone."""
    if pushed is None or not 1 <= pushed.table_version <= table.version:
        return None
    if pushed.transformation != table.state.transformation_sha256 or pushed.calibration != table.state.calibration:
        return None
    try:
        with lance_errors(table.uri):
            return table.dataset.checkout_version(pushed.table_version)
    except (OSError, ValueError):  # cleaned away
        return None


def different_rows(table: Table, before: Any) -> Iterator[np.ndarray]:
    """The row addresses of what a version has and an earlier one has not, or None for all; a fragment at a time.

    A row that is written anew lies in another fragment. What a rollback brings back is one that was deleted there.
    """
    known = {} if before is None else {part.fragment_id: part for part in before.get_fragments()}
    for fragment in table.dataset.get_fragments():
        rows = _addresses(fragment)
        earlier = known.get(fragment.fragment_id)
        if earlier is not None and earlier.metadata.files[0].path == fragment.metadata.files[0].path:
            rows = np.setdiff1d(rows, _addresses(earlier), assume_unique=True)
        if len(rows):
            yield rows


def _addresses(fragment: Any) -> np.ndarray:
    found = fragment.scanner(columns=[], with_row_address=True).to_table()
    return found["_rowaddr"].to_numpy()


def _batches(table: Table, before: Any) -> Iterator[pa.RecordBatch]:
    for rows in different_rows(table, before):
        for start in range(0, len(rows), PART):
            part = table.dataset._take_rows(rows[start : start + PART].tolist(), columns=["id", *served_columns(table)])
            columns = [part["id"].combine_chunks(), _vectors(table, part), part["batch"].combine_chunks()]
            yield pa.RecordBatch.from_arrays(columns, names=SENT)


def _vectors(table: Table, part: pa.Table) -> pa.Array:
    """As the table has them; float32 where the coordinate of the calibration is added."""
    if table.state.calibration is None:
        return vectors_column(values(part["embedding"]))
    return vectors_column(served(table, part).astype(table.state.dtype))
