"""Lengths of embeddings: which have length 1, which are zero, and what becomes of those."""

from dataclasses import dataclass

import torch

# Of a length of 1: more than the rounding of float16 moves it, less than what a model without normalisation keeps to.
LENGTH_TOLERANCE = 5e-3
CHUNK = 1 << 16  # rows looked at at once


@dataclass(frozen=True)
class Lengths:
    """What there is to say about the lengths of n embeddings."""

    rows: int
    zero: int  # rows that are zero in every dimension, as of items that a model could not embed
    first_zero: int | None
    unit: int  # rows of length 1
    first_other: int | None  # the first row that is neither

    @property
    def are_one(self) -> bool:
        """Whether all that are not zero have length 1."""
        return 0 < self.unit == self.rows - self.zero


def lengths_of(embeddings: torch.Tensor) -> Lengths:
    """Look at the lengths of embeddings (n, d), a chunk at a time."""
    zero, unit = torch.zeros(2, len(embeddings), dtype=torch.bool)
    for start in range(0, len(embeddings), CHUNK):
        rows = embeddings[start : start + CHUNK]
        zero[start : start + CHUNK] = are_zero(rows)
        unit[start : start + CHUNK] = (rows.float().norm(dim=1) - 1).abs() <= LENGTH_TOLERANCE
    return Lengths(len(embeddings), int(zero.sum()), _first(zero), int(unit.sum()), _first(~(zero | unit)))


def _first(rows: torch.Tensor) -> int | None:
    return int(rows.int().argmax()) if rows.any() else None


def are_zero(embeddings: torch.Tensor) -> torch.Tensor:
    """Which of embeddings (n, d) are zero in every dimension, (n,) bool."""
    return (embeddings == 0).all(1)


def zeros_kept(transformed: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Transformed embeddings (n, d_new), but zero where the old ones (n, d_old) are.

    A zero vector says nothing of its item, and what a transformation makes of it would look like an embedding of one.
    """
    return transformed.masked_fill(are_zero(old).unsqueeze(1), 0)


def about_zeros(where: str, count: int, first: int | None) -> str:
    """A line that says how many rows of an embedding file are zero, and the first of them."""
    return f"{where}: {count} zero vector{'s' if count > 1 else ''}, the first in row {first}; kept as zero"
