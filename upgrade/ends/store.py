"""What the upgrade asks of a store that keeps vectors in a server or table of the user's own."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds."""

    identity: str  # stable text that names the place (host, database, table, column; never a password)
    rows: int  # with an old vector
    without: int  # rows without one (NULL), which are reported and left out
    dim: int  # of the old vectors
    id_type: pa.DataType  # int64 or string


@dataclass(frozen=True)
class Pushed:
    """The store's own record of what was pushed to it; None of them before the first push."""

    table_version: int
    old_model: str
    new_model: str
    transformation: str  # SHA-256
    calibration: dict[str, Any] | None  # {"distance": "l2" | "cosine", "value": v}
    cut_over: bool


class Store(Protocol):
    """A place with old vectors, to which the new ones are pushed beside them, and which is switched as a whole."""

    def info(self) -> StoreInfo: ...

    def read_old(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Columns id, embedding (fixed_size_list<float32, d_old>), label (int64) if the store has them.

        In rising id order, `rows` at a time, in constant memory, from one consistent snapshot.
        """

    def pushed(self) -> Pushed | None:
        """The last push; None before the first, and after one that was interrupted: then every row is to be pushed."""

    def push(self, batches: Iterator[pa.RecordBatch], record: Pushed) -> int:
        """Store new vectors beside the old ones -> how many rows hold what was sent.

        Rows are id, embedding (fixed_size_list<float16 | float32, d_new>), batch (int32: 0 transformed, k re-embedded
        by batch k). Idempotent by id; transactions of bounded size; `record` becomes the store's own when all are in,
        but for `cut_over`, which the store itself knows.
        """

    def cutover(self) -> None:
        """One atomic switch: queries find the new vectors."""

    def undo_cutover(self) -> None:
        """The way back."""
