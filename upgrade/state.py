"""What the table of an upgrade says of itself: the two spaces, what they came from, and how far it is."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

from data.sources.lance_tables import STATE, state_of
from retrieval import Calibration
from utils.errors import UserError

FORMAT = 4  # of `State`; folders of .npy files were 1 to 3


@dataclass(frozen=True)
class State:
    """The metadata of a table. Batches are not counted here: the rows say which batch they are of."""

    new_model: str
    dim: int
    dtype: str
    normalised: bool
    has_sigma: bool
    calibration: dict[str, Any] | None  # distance and value, see `Calibration`
    old_model: str
    old_dim: int
    old_normalised: bool
    source: str  # the old vectors, which are never changed: a path, or what a store calls itself
    rows: int  # when it was read
    transformation: str
    transformation_sha256: str
    side_info: str | None
    precision: str
    tool: dict[str, Any]  # version, git revision, torch
    stage: Literal["transforming", "ready"] = "transforming"
    generation: int = 1  # 2 and more: transformed again
    batches_before: int = 0  # batches that were applied when this generation was made
    # Where the old gallery is itself a table of an upgrade: of its rows that are not re-embedded, the `model`, the
    # `transformation` that they have of their own, if any; `made_by`, what tells whether that is the same, or the one
    # that has made them what they are; its `calibration`; and the `gain` by which errors grow in the second one.
    earlier: dict[str, Any] | None = None
    unhelpful: list[str] = dataclasses.field(default_factory=list)  # orders that `auto` does not choose
    # Where the space is of the first dimensions of what the new model gives: how many it gives, as `dim`, and whether
    # they are `of_length_1`.
    wider: dict[str, Any] | None = None
    format: int = FORMAT

    def calibrated(self) -> Calibration | None:
        """By how much transformed items stand back from re-embedded ones, if that is known."""
        return None if self.calibration is None else Calibration(**self.calibration)

    @property
    def has_calibrations(self) -> bool:
        """Whether each row has a calibration of its own, since rows have come by different ways."""
        return self.earlier is not None and self.calibration is not None

    @property
    def made_by(self) -> tuple[Any, ...]:
        """What tells whether transformed rows are still what the transformations make of them."""
        return (self.transformation_sha256, None if self.earlier is None else self.earlier["made_by"])

    def to_metadata(self) -> dict[bytes, bytes]:
        """As it stands in the schema."""
        return {STATE: json.dumps(dataclasses.asdict(self)).encode()}

    def tag(self, batches: int) -> str:
        """What the version after so many batches is called."""
        if batches > self.batches_before:
            return f"batch-{batches}"
        return "transformed" if self.generation == 1 else f"transformed-{self.generation}"


# What no transformation of the same gallery may change.
SPACES = ("new_model", "old_model", "dim", "dtype", "normalised", "old_dim", "old_normalised")


def read_state(metadata: dict[bytes, bytes] | None, where: str) -> State:
    """The state of a table.

    Raises:
        UserError: the table is none of an upgrade, or of a later version of this code.
    """
    content = state_of(metadata)
    if content is None:
        raise UserError(f"{where} is a Lance table, but not one of an upgrade; name another output")
    if content.get("format") != FORMAT:
        raise UserError(f"{where} has format {content.get('format')}; this code reads format {FORMAT}")
    return State(**content)


def difference(found: State, wanted: State, names: tuple[str, ...]) -> str | None:
    """What two states differ in, as `NAME is X, not Y`; None if in none of the names."""
    pairs = ((name, getattr(found, name), getattr(wanted, name)) for name in names)
    return next((f"{name} is {after!r}, not {before!r}" for name, before, after in pairs if before != after), None)
