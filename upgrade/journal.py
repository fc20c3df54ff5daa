"""The journal: what each batch put into its rows, and what they held before."""

from dataclasses import dataclass

import numpy as np

from upgrade.gallery import Gallery
from upgrade.rows import Array, RowFile


@dataclass(frozen=True)
class Entry:
    """A batch of m items in the journal."""

    batch: int  # counted from 1
    rows: Array  # (m,) of the gallery, in rising order; as it may hold an item twice, so may they
    order: Array  # (m,) where each of `rows` stands in the files
    before: RowFile  # (m, d)
    before_state: RowFile  # (m,)
    after: RowFile  # (m, d)

    def within(self, start: int, stop: int) -> tuple[Array, Array]:
        """Of the batch's rows in [start, stop): where they stand in the files (k,), and how far from `start` (k,)."""
        low, high = np.searchsorted(self.rows, (start, stop))
        return self.order[low:high], self.rows[low:high] - start


def entries_after(gallery: Gallery, batches: int) -> list[Entry]:
    """The batches after the first `batches`, the last one first."""
    entries = []
    for batch in range(gallery.manifest.batches, batches, -1):
        folder = gallery.journal(batch)
        rows, *arrays = (RowFile.open(folder / f"{name}.npy") for name in ("rows", "before", "before_state", "after"))
        values = rows.read(0, rows.shape[0])
        order = values.argsort(kind="stable")
        entries.append(Entry(batch, values[order], order, *arrays))
    return entries
