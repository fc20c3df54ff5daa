"""What a gallery is made of now, and the ways back."""

import shutil
from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
import torch

from upgrade.columns import values
from upgrade.computing import Transformer
from upgrade.drift import Drift, compare
from upgrade.durable import FOLDERS, lance_errors, local_folder
from upgrade.inputs import Inputs
from upgrade.old import Old
from upgrade.opening import open_table
from upgrade.parts import rows_pending
from upgrade.table import Operation, Table
from utils.errors import UserError

TOLERANCE = 0.01  # of the size of a vector: recomputing in parts of another size is not exact to the byte


def status(uri: str) -> str:
    """A few lines on a table, which is only read.

    Raises:
        UserError: there is none.
    """
    table = open_table(uri, unfinished=True)
    state, unfinished = table.state, table.state.stage != "ready"
    counts, pending = table.counts(), rows_pending(table)
    transformed = pending if unfinished else counts.rows - counts.re_embedded
    rows = state.rows if unfinished else counts.rows
    numbers = {"old": rows - transformed - counts.re_embedded, "transformed": transformed}
    numbers["re-embedded"] = counts.re_embedded
    lines = [
        f"{uri}: {rows:,} items, {state.old_model} ({state.old_dim}-d) -> {state.new_model} ({state.dim}-d)",
        *(f"  {name:12} {count:>15,}  {100 * count / rows:6.2f} %" for name, count in numbers.items()),
    ]
    folder = local_folder(uri)
    if folder is not None:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        lines.append(f"  on the disk  {size:>15,}  bytes, version {table.version}")
    if state.calibration is not None:
        what = "times the cosines" if state.normalised else "more than the squared distances"
        lines.append(f"  calibration  {state.calibration['value']:>15.4g}  {what} of transformed items")
    if state.earlier is not None and state.calibration is not None:
        lines[-1] += f"; of rows that were {state.earlier['model']}'s one of their own, in the column calibration"
    names = sorted(table.tags().items(), key=lambda tag: tag[1])
    if names:
        shown = [name for name, _ in names[-5:]]
        lines.append(f"  states       {', '.join(['...', *shown] if len(names) > 5 else shown)}")
    last = table.last_step()
    if last:
        step = last.pop("step")
        lines.append(f"  last step    {step}" + "".join(f", {name} {value}" for name, value in last.items()))
    if unfinished or pending:
        lines.append(f"  transform is not finished ({pending:,} rows are done); run it again to go on")
    return "\n".join(lines)


def verify(table: Table, inputs: Inputs, chunk_rows: int, device: torch.device) -> Drift:
    """Check that every row of the old gallery is in the table once, and holds what the transformation makes of it.

    Re-embedded rows must be finite, and of length 1 where the space says so.

    Raises:
        UserError: naming the first row that is not what it should be.
    """
    drift = compare(table, inputs.old, chunk_rows)
    if len(np.unique(table.all_ids())) != table.dataset.count_rows():
        raise UserError(f"output: {table.uri}: an id is there more than once; the table is damaged")
    transformer = Transformer(replace(inputs, state=table.state), device)
    for chunk in inputs.old.chunks(chunk_rows):
        place, found = table.lookup(chunk.ids, ["embedding", "batch", "source_hash"])
        known = np.flatnonzero(place >= 0)
        wanted, _, _ = transformer(chunk)
        present, batch = values(found["embedding"])[place[known]], values(found["batch"])[place[known]]
        own = (batch == 0) & (values(found["source_hash"])[place[known]] == chunk.hashes[known])
        wide = wanted[known].astype(np.float32)
        off = np.linalg.norm(present.astype(np.float32) - wide, axis=1) > TOLERANCE * (np.linalg.norm(wide, axis=1) + 1)
        bad = np.flatnonzero((own & off) | ~np.isfinite(present).all(1))
        if len(bad):
            raise UserError(f"output: {table.uri}: id {chunk.ids[known[bad[0]]]} is not what transform made of it")
    return drift


def roll_back(table: Table, target: str) -> tuple[Table, str]:
    """Make an earlier state the newest version -> the table, and the name of the state.

    Args:
        table: as it is now.
        target: a tag, or a number of batches.

    Raises:
        UserError: there is no such state, or its version has been cleaned away.
    """
    counts = table.counts()
    now, tags = table.settle(counts), table.tags()
    name = f"batch-{target}" if target.isdecimal() else target
    if target == "0":
        name = "transformed"
    if name not in tags:
        known = ", ".join(sorted(tags, key=lambda tag: tags[tag]))
        raise UserError(f"to: {target} is no state of {table.uri}; there are {known}, and old")
    if name == now:
        return table, name
    try:
        with lance_errors(table.uri):
            counts = Table(table.uri, table.dataset.checkout_version(tags[name]), table.unsynced).counts()
    except (OSError, ValueError):
        raise UserError(f"to: {name} is version {tags[name]} of {table.uri}, which has been cleaned away") from None
    table = table.commit(Operation.Restore(tags[name]), "rollback", counts, to=name)
    table.settle(counts)
    return table, name


def give_up(table: Table, old: Old, chunk_rows: int) -> Drift:
    """Go back to the old gallery: compare all of its rows with what was transformed, and remove the table.

    Raises:
        UserError: the old gallery is gone or has changed, or the folder holds other files; the table is left alone.
    """
    drift = compare(table, old, chunk_rows)
    if drift.differs:
        raise UserError(
            f"{old.name} is not what was transformed ({drift}); {table.uri} is left alone, delete it yourself"
        )
    folder = local_folder(table.uri)
    if folder is None:
        lance.LanceDataset.drop(table.uri)
        return drift
    others = {path.name for path in folder.iterdir()} - FOLDERS
    if others or folder.is_symlink():
        why = f"holds {sorted(others)[0]} too" if others else "is a link"
        raise UserError(f"output: {folder} {why}; it is left alone, delete it yourself")
    finish_removal(folder)
    folder.rename(_doomed(folder))
    finish_removal(folder)
    return drift


def finish_removal(folder: Path) -> bool:
    """Remove what a killed `give_up` has left of a table that was in `folder` -> whether there was such."""
    doomed = _doomed(folder)
    found = doomed.exists()
    if found:
        shutil.rmtree(doomed)
    return found


def _doomed(folder: Path) -> Path:
    """What a table is renamed to before it goes, so that it does not go piece by piece."""
    return folder.with_name(f".{folder.name}.rolled-back.tmp")
