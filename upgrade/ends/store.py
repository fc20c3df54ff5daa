"""What the upgrade asks of a store that keeps vectors in a server or table of the user's own."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds now."""

    identity: str  # stable text that names the place (host/database/table/column; never a password)
    rows: int  # with an old vector
    without: int  # rows without one (NULL), which are reported and left out
    dim: int  # of the old vectors
    id_type: Any  # pa.DataType: int64 or string


@dataclass(frozen=True)
class Pushed:
    """The store's own record of what was pushed to it; None of them before the first push."""

    table_version: int
    old_model: str
    new_model: str
    transformation: str  # SHA-256
    calibration: dict[str, float] | None  # {"distance": "l2"|"cosine", "value": v}
    cut_over: bool


class Store(Protocol):
    """A place with a column of old vectors, into which new ones are pushed beside them."""

    def info(self) -> StoreInfo:
        """What it holds now."""

    def read_old(self, rows: int) -> Iterator[Any]:
        """Record batches of `rows` rows, in rising order of the ids, in constant memory, from one consistent snapshot.

        Columns: id, embedding (fixed_size_list<float32, d_old>), label (int64) if the store has them.
        """

    def pushed(self) -> Pushed | None:
        """What was pushed last, all of it."""

    def push(self, batches: Iterator[Any], record: Pushed) -> int:
        """Write record batches -> how many rows were written.

        Columns: id, embedding (fixed_size_list<float16|float32, d_new>), batch (int32: 0 transformed, k re-embedded by
        batch k). Idempotent by id, in transactions of bounded size; `record` becomes the store's own when all are in.
        """

    def cutover(self) -> None:
        """One atomic switch to the new vectors."""

    def undo_cutover(self) -> None:
        """The way back."""
