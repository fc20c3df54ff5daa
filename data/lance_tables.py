"""Lance tables of embeddings as embedding files, among them galleries that upgrade_gallery.py has made.

A table has the columns id, embedding and perhaps label and sigma. What an upgrade says of itself is JSON in the
metadata of its schema, and `batch` tells what each row holds: 0 what the transformation made, k what batch k brought.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.items import Array
from data.parquet_files import columns_of, values_of
from utils.errors import UserError
from utils.extras import load_extra

STATE = b"refill"  # in the schema's metadata
READY = "ready"  # the stage of an upgrade whose transformation is finished
RE_EMBEDDED = "re_embedded"
CALIBRATION = "calibration"  # a column of an upgrade whose rows have one each


def is_table(path: str | Path) -> bool:
    """Whether a folder is a Lance table."""
    return (Path(path) / "_versions").is_dir()


def read_table(path: Path, names: Sequence[str], *, where: str) -> dict[str, Array]:
    """Those of the named arrays that a table has, in one order; of an upgrade also `re_embedded` (n,) bool
    and perhaps `calibration` (n,).

    Raises:
        UserError: an upgrade whose transformation is not finished, or pylance is not installed.
        ValueError, OSError: it cannot be read, or a column is of something else.
    """
    dataset = load_extra("lance", where=where).dataset(str(path))
    state = state_of(dataset.schema.metadata)
    if state is not None and state["stage"] != READY:
        raise UserError(f"{where}: is not fully transformed yet; run `upgrade_gallery.py transform` again")
    found = columns_of(dataset.schema.names, names)
    of_upgrade = [] if state is None else [name for name in ("batch", CALIBRATION) if name in dataset.schema.names]
    columns = [*found.values(), *of_upgrade]
    table = dataset.to_table(columns=columns)
    if not table.num_rows:
        return {}
    arrays = {}
    for name, column in found.items():
        if name in ("labels", "sigma") and table[column].null_count == table.num_rows:
            continue
        try:
            arrays[name] = np.concatenate([values_of(chunk) for chunk in table[column].chunks])
        except ValueError as error:
            raise ValueError(f"{column}: {error}") from None
    if state is not None:
        arrays[RE_EMBEDDED] = table["batch"].to_numpy() > 0
        arrays |= {name: table[name].to_numpy() for name in of_upgrade if name == CALIBRATION}
    return arrays


def calibration_of_table(path: Path, *, where: str) -> dict[str, float] | None:
    """The calibration, distance and value, of the upgrade in a table; None if it has none, or is no upgrade."""
    state = state_of(load_extra("lance", where=where).dataset(str(path)).schema.metadata)
    calibration: dict[str, Any] | None = None if state is None else state["calibration"]
    return calibration


def state_of(metadata: dict[bytes, bytes] | None) -> dict[str, Any] | None:
    """What an upgrade says of itself in the metadata of its table's schema; None where there is no upgrade."""
    text = (metadata or {}).get(STATE)
    content: dict[str, Any] | None = None if text is None else json.loads(text)
    return content
