"""Which space embeddings are in: their model's name, their dimension, and whether they have length 1."""

from collections.abc import Mapping

import numpy as np
import torch

from data.items import Array
from data.lengths import LENGTH_TOLERANCE, lengths_of
from data.sources.embeddings import Source, open_source, stated_space
from upgrade.state import State
from utils.errors import UserError


def have_unit_length(rows: Array) -> bool:
    """Whether all rows (m, d) that are not zero have length 1, and there are such."""
    return lengths_of(torch.from_numpy(rows)).are_one


def are_zero(rows: Array) -> Array:
    """Which rows (m, d) are zero, (m,) bool: they stand for nothing, have no direction, and stay as they are."""
    zero: Array = rows[:, 0] == 0
    zero[zero] = ~rows[zero].any(1)
    return zero


def check_lengths(rows: Array, where: str, first_row: int) -> None:
    """Raise a UserError that names the first of `rows` (m, d), counted from `first_row`, whose length is not 1.

    Zero rows may be anywhere.
    """
    found = np.linalg.norm(rows.astype(np.float32), axis=1)
    bad = np.flatnonzero((np.abs(found - 1) > LENGTH_TOLERANCE) & ~are_zero(rows))
    if len(bad):
        raise UserError(
            f"{where}: row {first_row + bad[0]} has length {found[bad[0]]:.4g}, but the embeddings are of length 1"
        )


def open_new(path: str, state: State, *, where: str, may_be_empty: bool = False) -> Source:
    """Open embeddings by the new model of an upgrade; of wider ones the first dimensions, where its space is of those.

    Args:
        path: of the embeddings.
        state: of the upgrade.
        where: the config key that names them, for error messages.
        may_be_empty: let a source without rows pass.

    Raises:
        UserError: they cannot be read, or are of another space.
    """
    source = open_source(path, where=where, may_be_empty=may_be_empty)
    if may_be_empty and not len(source):
        return source
    named, wider = f"{where}: {path}", state.wider
    if source.dim not in (state.dim, wider["dim"] if wider else None):
        raise UserError(f"{named} is {source.dim}-d, but the gallery's embeddings are {state.dim}-d")
    check_stated(stated_space(source.path, where), named, state.new_model, source.dim, state.normalised)
    if wider is None or source.dim == state.dim:
        return source
    return source.first_dimensions(state.dim, unit=wider["of_length_1"])


def check_stated(stated: Mapping[str, object], path: object, model: str, dim: int, normalised: bool) -> None:
    """Check that what a manifest states of embeddings is what they should be.

    Raises:
        UserError: another model, dimension or normalisation.
    """
    expected = {"model": model, "dim": dim, "normalised": normalised}
    for name, value in stated.items():
        if value != expected[name]:
            raise UserError(f"{path}: its manifest says {name} {value!r}, but here it should be {expected[name]!r}")
