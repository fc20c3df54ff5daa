"""What has changed in the old gallery since it was transformed: rows that came, went, or hold another embedding."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from data.items import Array
from upgrade.columns import values
from upgrade.old import BEHIND, Old
from upgrade.table import Table

NAMED = 3  # ids of each kind, in messages


@dataclass(frozen=True)
class Drift:
    """How many rows of the old gallery are what they were, and how many are not.

    `moved` are those of a gallery that is itself being upgraded, which the old model has re-embedded since, or of which
    that was taken back: the item is the same.
    """

    unchanged: int
    added: int
    changed: int
    deleted: int
    moved: int
    ids: dict[str, list[Any]]  # some of those that were added and changed, and deleted where their order tells

    @property
    def differs(self) -> bool:
        """Whether there is any difference."""
        return bool(self.added or self.changed or self.deleted or self.moved)

    def __str__(self) -> str:
        parts = []
        for kind in ("added", "changed", "deleted"):
            count, named = getattr(self, kind), self.ids.get(kind, [])
            more = ", ..." if count > len(named) else ""
            parts.append(f"{count:,} {kind}" + (f": {', '.join(map(str, named))}{more}" if named else ""))
        if self.moved:
            parts.append(f"{self.moved:,} of another state in it")
        return "; ".join(parts) if self.differs else "no row has changed"


def compare(table: Table, old: Old, chunk_rows: int) -> Drift:
    """Compare every row of the old gallery with the hash that the table has kept of it.

    Raises:
        UserError: the old gallery cannot be read.
    """
    counts = {"unchanged": 0, "added": 0, "changed": 0, "moved": 0}
    ids: dict[str, list[Any]] = {"added": [], "changed": [], "deleted": []}
    in_order, last = True, None
    with tqdm(total=old.rows, desc="comparing", unit="row", unit_scale=True, leave=False, delay=1) as bar:
        for chunk in old.chunks(chunk_rows):
            rising = bool((chunk.ids[1:] > chunk.ids[:-1]).all())
            in_order = in_order and rising and (last is None or chunk.ids[0] > last)
            last = chunk.ids[-1]
            place, found = table.lookup(chunk.ids, ["source_hash"], dense=rising)
            known = place >= 0
            changed, moved = np.zeros((2, len(known)), bool)
            if known.any():
                changed[known], moved[known] = changes(table, found, place[known], chunk.hashes[known])
            unchanged = known & ~changed & ~moved
            kinds = {"unchanged": unchanged, "added": ~known, "changed": changed, "moved": moved}
            for kind, rows in kinds.items():
                counts[kind] += int(rows.sum())
                if kind in ids and len(ids[kind]) < NAMED:
                    ids[kind] += chunk.ids[rows][: NAMED - len(ids[kind])].tolist()
            if in_order and found.num_rows > known.sum() and len(ids["deleted"]) < NAMED:
                gone = np.setdiff1d(values(found["id"]), chunk.ids)
                ids["deleted"] += gone[: NAMED - len(ids["deleted"])].tolist()
            bar.update(len(chunk.ids))
    deleted = table.dataset.count_rows() - sum(counts.values()) + counts["added"]
    return Drift(**counts, deleted=deleted, ids=ids)


def changes(table: Table, found: pa.Table, place: Array, hashes: Array) -> tuple[Array, Array]:
    """Which items have changed, (m,), and which are merely of another state in an old gallery with such, (m,).

    Args:
        table: with its old hashes.
        found: rows of it, and where those of the items are, (m,).
        hashes: of the items as they are now, (m,).
    """
    before = values(found["source_hash"])[place]
    moved = np.zeros(len(place), bool) if table.state.earlier is None else ((before ^ hashes) & BEHIND) > 0
    return (before != hashes) & ~moved, moved
