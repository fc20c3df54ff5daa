"""Which space embeddings are in: their model's name, their dimension, and whether they have length 1."""

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn import functional as F

from upgrade.rows import Array
from utils.errors import UserError

# Of a length: more than the rounding of float16 moves it, less than what a model without normalisation keeps to.
LENGTH_TOLERANCE = 5e-3


def lengths(rows: Array) -> Array:
    """(m, d) -> (m,) float32."""
    values: Array = np.linalg.norm(rows.astype(np.float32), axis=1)
    return values


def have_unit_length(rows: Array) -> bool:
    """Whether all rows (m, d) have length 1."""
    return bool((np.abs(lengths(rows) - 1) <= LENGTH_TOLERANCE).all())


def check_lengths(rows: Array, where: str, first_row: int) -> None:
    """Raise a UserError that names the first of `rows` (m, d), counted from `first_row`, whose length is not 1."""
    found = lengths(rows)
    bad = np.flatnonzero(np.abs(found - 1) > LENGTH_TOLERANCE)
    if len(bad):
        raise UserError(
            f"{where}: row {first_row + bad[0]} has length {found[bad[0]]:.4g}, but the embeddings are of length 1"
        )


def unit_rows(vectors: torch.Tensor) -> torch.Tensor:
    """(m, d) -> (m, d) of length 1."""
    return F.normalize(vectors, dim=1)


def check_stated(stated: Mapping[str, object], path: object, model: str, dim: int, normalised: bool) -> None:
    """Check that what a manifest states of embeddings is what they should be.

    Raises:
        UserError: another model, dimension or normalisation.
    """
    expected = {"model": model, "dim": dim, "normalised": normalised}
    for name, value in stated.items():
        if value != expected[name]:
            raise UserError(f"{path}: its manifest says {name} {value!r}, but here it should be {expected[name]!r}")
