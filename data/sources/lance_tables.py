"""Lance tables of embeddings, among them galleries that upgrade_gallery.py has made.

A table has the columns id, embedding and perhaps label and sigma. What an upgrade says of itself is JSON in the
metadata of its schema, and `batch` tells what each row holds: 0 what the transformation made, k what batch k brought.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.items import Array
from data.sources.parquet_files import columns_of, values_of
from data.sources.rows import Rows, by_numbers, in_memory
from utils.errors import UserError
from utils.extras import load_extra

STATE = b"refill"  # in the schema's metadata
READY = "ready"  # the stage of an upgrade whose transformation is finished
RE_EMBEDDED = "re_embedded"
CALIBRATION = "calibration"  # a column of an upgrade whose rows have one each


def is_table(path: str | Path) -> bool:
    """Whether a folder is a Lance table."""
    return (Path(path) / "_versions").is_dir()


def open_table(path: Path, names: Sequence[str], where: str) -> dict[str, Rows]:
    """As `open_parquet`, the columns of a Lance table; of an upgrade, which must be ready, also `re_embedded` (n,) bool
    and, where its rows have one each, `calibration` (n,)."""
    dataset = load_extra("lance", where=where).dataset(str(path))
    state = state_of(dataset.schema.metadata)
    if state is not None and state["stage"] != READY:
        raise UserError(f"{where}: is not fully transformed yet; run `upgrade_gallery.py transform` again")

    def take(column: str, index: Array) -> Array:
        return _values_in(dataset.take(index, columns=[column])[column])

    found: dict[str, Rows] = {}
    count = dataset.count_rows()
    for name, column in columns_of(dataset.schema.names, names).items():
        if name == names[0] and count:
            first = take(column, np.arange(1))
            found[name] = by_numbers((count, *first.shape[1:]), first.dtype, partial(take, column))
            continue
        values = dataset.to_table(columns=[column])[column]
        if not (name in ("labels", "sigma") and values.null_count == count):
            found[name] = in_memory(_values_in(values))
    if state is not None:
        found[RE_EMBEDDED] = in_memory(dataset.to_table(columns=["batch"])["batch"].to_numpy() > 0)
        if CALIBRATION in dataset.schema.names:
            found[CALIBRATION] = in_memory(dataset.to_table(columns=[CALIBRATION])[CALIBRATION].to_numpy())
    return found


def _values_in(column: Any) -> Array:
    return np.concatenate([values_of(chunk) for chunk in column.chunks if len(chunk)] or [np.empty(0)])


def upgrade_in(path: Path, *, where: str) -> dict[str, Any] | None:
    """What the upgrade in a table says of itself; None where there is no upgrade."""
    return state_of(load_extra("lance", where=where).dataset(str(path)).schema.metadata)


def state_of(metadata: dict[bytes, bytes] | None) -> dict[str, Any] | None:
    """What an upgrade says of itself in the metadata of its table's schema; None where there is no upgrade."""
    text = (metadata or {}).get(STATE)
    content: dict[str, Any] | None = None if text is None else json.loads(text)
    return content
