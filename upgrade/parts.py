"""The parts of a table that is being made: fragments that no version has yet, by this process or by Ray's tasks.

Each part is recorded in the table's metadata, by a commit of its own, so that an interrupted step goes on with what is
missing, whoever wrote the others.
"""

import json
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from upgrade.columns import values
from upgrade.computing import transformed_batches
from upgrade.config import UpgradeConfig
from upgrade.inputs import Inputs, open_inputs
from upgrade.opening import table_at
from upgrade.ray_tasks import run_tasks
from upgrade.spaces import are_zero
from upgrade.state import State
from upgrade.table import Operation, Table
from utils.ahead import ahead
from utils.errors import UserError

PENDING, TARGET = "refill.part.", "refill.target"  # in the table's metadata: fragments, and the state to come


@dataclass(frozen=True)
class Part:
    """Rows of the old gallery that are a fragment, which is in no version yet."""

    fragment: dict[str, Any]
    first: int  # the number of the first row in the old gallery
    rows: int
    last: Any  # id
    digest: int  # of the ids that the fragment holds
    zeros: int  # rows whose old embedding is zero
    first_zero: int | None


def recorded(table: Table) -> list[Part]:
    """The parts that are written, in the order of the old gallery."""
    metadata = table.dataset.metadata
    return [Part(**json.loads(metadata[name])) for name in sorted(metadata) if name.startswith(PENDING)]


def rows_pending(table: Table) -> int:
    """Rows of the old gallery that an interrupted transform has done."""
    return sum(part.rows for part in recorded(table))


def aim_at(table: Table, wanted: State) -> Table:
    """Keep the parts of an interrupted run to the same state, and forget those of another."""
    target = json.dumps(asdict(replace(wanted, tool={})))
    if table.dataset.metadata.get(TARGET) == target:
        return table
    return _with_metadata(forget(table), {TARGET: target})


def forget(table: Table) -> Table:
    """The table without what an interrupted run has left in its metadata."""
    left: dict[str, str | None] = {name: None for name in table.dataset.metadata if name.startswith((PENDING, TARGET))}
    return _with_metadata(table, left) if left else table


def _with_metadata(table: Table, updates: dict[str, str | None]) -> Table:
    return table.commit(Operation.UpdateConfig(table_metadata_updates=Operation.UpdateMap(updates)))


def write_missing(config: UpgradeConfig, inputs: Inputs, table: Table, device: torch.device) -> Table:
    """Write and record the parts that are missing -> the table, whose rows are as they were.

    Raises:
        UserError: as `transform_gallery`.
    """
    done = recorded(table)
    with tqdm(
        total=inputs.old.rows,
        initial=sum(part.rows for part in done),
        desc="transforming",
        unit="row",
        unit_scale=True,
        leave=False,
        delay=1,
    ) as bar:
        if config.engine == "ray":
            written = _by_ray(config, inputs, table, done)
        else:
            written = _by_this_process(config, inputs, table, done, device)
        for part in written:
            bar.update(part.rows)
            table = _with_metadata(table, {f"{PENDING}{part.first:015d}": json.dumps(asdict(part))})
    return table


def _gaps(parts: list[Part]) -> Iterator[tuple[int, int | None, Any]]:
    """What lies between parts: the first row, the end (None: that of the gallery), and the id before."""
    start, last = 0, None
    for part in parts:
        if part.first > start:
            yield start, part.first, last
        start, last = part.first + part.rows, part.last
    yield start, None, last


def _by_this_process(
    config: UpgradeConfig, inputs: Inputs, table: Table, done: list[Part], device: torch.device
) -> Iterator[Part]:
    """One chunk is read and one is written while another is computed."""
    for start, stop, after in _gaps(done):
        chunks = inputs.old.chunks(config.chunk_rows, start, stop, after)
        rows = ahead(transformed_batches(inputs, ahead(chunks), table, device))
        for first in rows:
            part = _write(table, inputs, start, _some(chain([first], rows), config.fragment_rows))
            start += part.rows
            yield part


def _some(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The next batches, of so many rows or a few more."""
    for batch in batches:
        yield batch
        rows -= batch.num_rows
        if rows <= 0:
            return


def _write(table: Table, inputs: Inputs, first: int, batches: Iterator[pa.RecordBatch]) -> Part:
    """Write rows as a fragment; what it holds is then read from the file."""
    last, count, zeros = None, 0, np.empty(0, np.int64)

    def watched() -> Iterator[pa.RecordBatch]:
        nonlocal last, count, zeros
        for batch in batches:
            zeros = np.append(zeros, first + count + np.flatnonzero(are_zero(values(batch["embedding"]))))
            last, count = batch["id"][-1].as_py(), count + batch.num_rows
            yield batch

    fragment = table.write_fragment(watched(), inputs.schema)
    digest, first_zero = table.digest_of_fragment(fragment), int(zeros[0]) if len(zeros) else None
    return Part(fragment.to_json(), first, fragment.physical_rows, last, digest, len(zeros), first_zero)


def _by_ray(config: UpgradeConfig, inputs: Inputs, table: Table, done: list[Part]) -> Iterator[Part]:
    """A part in each task, of as many rows as this process would take; which is through first does not matter."""
    size = -(-config.fragment_rows // config.chunk_rows) * config.chunk_rows
    missing = ((first, inputs.old.rows if end is None else end) for first, end, _ in _gaps(done))
    ranges = ((start, min(start + size, end)) for first, end in missing for start in range(first, end, size))
    return run_tasks(write_range, (config, inputs.state, table.version), ranges)


def write_range(config: UpgradeConfig, state: State, version: int, start: int, stop: int) -> Part:
    """Write the rows [start, stop) of a gallery in files, on a machine that has them under the same names.

    Args:
        config: names them.
        state: of the table to make.
        version: of the table as it is.
        start: the number of the first row.
        stop: that of the row behind the last.

    Raises:
        UserError: as `transform_gallery`; or the transformation is another one on this machine.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs = open_inputs(config, device, checked=True)
    if inputs.state.transformation_sha256 != state.transformation_sha256:
        raise UserError(f"transformation_path: {state.transformation} is another file on {socket.gethostname()}")
    inputs, table = replace(inputs, state=state), table_at(config.output, version)
    chunks = inputs.old.chunks(config.chunk_rows, start, stop)
    part = _write(table, inputs, start, ahead(transformed_batches(inputs, ahead(chunks), table, device)))
    table.unsynced.sync_data()
    return part
