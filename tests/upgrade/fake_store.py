"""A store in memory that does what `Store` says, and counts what it is asked."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from upgrade.columns import values, vectors_column
from upgrade.ends import Pushed, StoreInfo
from utils.errors import UserError


class FakeStore:
    """Items by id: their old vector, None for none, and their new one."""

    def __init__(self, ids: np.ndarray, old: np.ndarray) -> None:
        self.old: dict[int, np.ndarray | None] = dict(zip(ids.tolist(), old, strict=True))
        self.new: dict[int, tuple[np.ndarray, int]] = {}
        self.record: Pushed | None = None
        self.served = "old"

    def info(self) -> StoreInfo:
        rows = sum(vector is not None for vector in self.old.values())
        dim = next(len(vector) for vector in self.old.values() if vector is not None)
        return StoreInfo("fake/items/vector", rows, len(self.old) - rows, dim, pa.int64())

    def read_old(self, rows: int) -> Iterator[pa.RecordBatch]:
        items = sorted((item, vector) for item, vector in self.old.items() if vector is not None)
        for start in range(0, len(items), rows):
            part = items[start : start + rows]
            vectors = vectors_column(np.stack([vector for _, vector in part]))
            yield pa.RecordBatch.from_arrays([pa.array([item for item, _ in part]), vectors], names=["id", "embedding"])

    def pushed(self) -> Pushed | None:
        return None if self.record is None else replace(self.record, cut_over=self.served == "new")

    def push(self, batches: Iterator[pa.RecordBatch], record: Pushed) -> int:
        count = 0
        for batch in batches:
            assert batch.schema.names == ["id", "embedding", "batch"]
            for item, vector, number in zip(
                batch["id"].to_pylist(), values(batch["embedding"]), batch["batch"].to_pylist(), strict=True
            ):
                if item in self.old:
                    self.new[item] = (vector, number)
                    count += 1
        self.record = record
        return count

    def cutover(self) -> None:
        if any(item not in self.new for item, vector in self.old.items() if vector is not None):
            raise UserError("store: rows have no new vector")
        self.served = "new"

    def undo_cutover(self) -> None:
        self.served = "old"
