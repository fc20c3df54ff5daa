"""What an upgrade is made from: the old embeddings, perhaps side-information, and the transformation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from models.model_files import Description, build_model, calibration_of, read_description, unhelpful_orders
from models.transformed import Transformation
from upgrade.config import UpgradeConfig
from upgrade.ends import open_store
from upgrade.ends.files import open_source, stated_space
from upgrade.old import Old, check_distinct, old_files, old_store
from upgrade.spaces import check_stated
from upgrade.state import State
from utils.errors import UserError
from utils.files import sha256_of
from utils.precision import resolve_precision
from utils.provenance import tool_versions


@dataclass(frozen=True)
class Inputs:
    """What the rows are made of."""

    old: Old
    transformation: Transformation
    state: State  # of the table to make


def open_old(config: UpgradeConfig) -> Old:
    """Open the old vectors that a config names; stores see to it themselves that ids are distinct.

    Raises:
        UserError: they cannot be read, or the side-information is of other items.
    """
    if config.store is not None:
        return old_store(open_store(config.store))
    assert config.gallery is not None
    source = open_source(config.gallery, where="gallery", ids=config.ids)
    check_distinct(source)
    side_info = None if config.side_info is None else open_source(config.side_info, where="side_info")
    side_info = None if side_info is None else side_info.in_order_of(source, "side_info")
    old = old_files(source, side_info)
    check_stated(stated_space(source.path, "gallery"), config.gallery, config.old_model, source.dim, old.unit)
    return old


def open_inputs(config: UpgradeConfig, device: torch.device) -> Inputs:
    """Open what a config names; the state is that of the table to make.

    Raises:
        UserError: a file that cannot be read, or files that do not fit together.
    """
    old = open_old(config)
    description = _describe_transformation(config.transformation_path)
    normalised = _is_normalised(config, description)
    transformation = cast(Transformation, build_model(description, where="transformation_path"))
    dim, has_sigma = output_of(transformation, config, old.dim, old.side_dim)
    state = State(
        new_model=config.new_model,
        dim=dim,
        dtype=config.dtype,
        normalised=normalised,
        has_sigma=has_sigma,
        calibration=calibration_for(description, normalised),
        old_model=config.old_model,
        old_dim=old.dim,
        old_normalised=old.unit,
        source=old.identity,
        rows=old.rows,
        transformation=config.transformation_path,
        transformation_sha256=sha256_of(config.transformation_path),
        side_info=config.side_info,
        precision=resolve_precision(config.precision, device),
        tool=tool_versions(),
        unhelpful=unhelpful_orders(description),
    )
    return Inputs(old, transformation, state)


def calibration_for(description: Description, normalised: bool) -> dict[str, object] | None:
    """What a transformation's file says of the calibration of galleries of its space; None if nothing."""
    distance = "cosine" if normalised else "l2"
    value = calibration_of(description).get(distance, {}).get("value")
    return None if value is None else {"distance": distance, "value": value}


def _is_normalised(config: UpgradeConfig, description: Description) -> bool:
    """Whether the embeddings of the new space have length 1: as the transformation's file records, if it does.

    What was fitted to embedding files records it; of models and images nothing is recorded, and `normalised` decides.
    The old embeddings say nothing of the new space.

    Raises:
        UserError: `normalised` contradicts the file.
    """
    while description["kind"] == "refined":
        description = description["transformation"]
    recorded = description["arguments"].get("normalised")
    if recorded is None:
        return config.normalised == "on"
    if config.normalised not in ("auto", "on" if recorded else "off"):
        lengths = "of length 1" if recorded else "of any length"
        raise UserError(
            f"normalised: {config.normalised} contradicts transformation_path: {config.transformation_path}, which was "
            f"fitted to new embeddings {lengths}; leave it at auto, or fit anew with another `normalised`"
        )
    return bool(recorded)


def present_transformation(config: UpgradeConfig, state: State) -> Transformation:
    """The transformation by which the rows of a table are what they are.

    Raises:
        UserError: the config names another, or it is gone.
    """
    path = config.transformation_path
    description = _describe_transformation(path)
    if sha256_of(path) != state.transformation_sha256:
        raise UserError(
            f"transformation_path: {path} is not what the gallery was made with ({state.transformation}); to change to "
            "it, run `upgrade_gallery.py transform`"
        )
    return cast(Transformation, build_model(description, where="transformation_path"))


def _describe_transformation(path: str) -> Description:
    description = read_description(path, where="transformation_path", torchscript=False)
    if description["kind"] in ("backbone", "transformed"):
        raise UserError(f"transformation_path: {path} is a model that takes images; name the transformation alone")
    return description


def output_of(module: nn.Module, config: UpgradeConfig, dim: int, side_dim: int | None) -> tuple[int, bool]:
    """The dimension of what a transformation makes of these inputs, and whether it gives a log variance.

    Raises:
        UserError: it does not take their dimensions.
    """
    example = [torch.zeros(2, size) for size in (dim, side_dim) if size is not None]
    try:
        with torch.inference_mode(), memory_named():
            output = module(*example)
    except RuntimeError:
        dims = " and ".join(f"{given.shape[1]}-d" for given in example)
        named = str(config.gallery or "the store")
        named += "" if side_dim is None else f" with {config.side_info}"
        raise UserError(
            f"transformation_path: {config.transformation_path} does not take the {dims} embeddings of {named}"
        ) from None
    return output.embedding.shape[1], output.log_variance is not None


@contextmanager
def memory_named() -> Iterator[None]:
    """Make too little memory, of the GPU or the machine, a UserError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
        if not is_memory:
            raise
        raise UserError(
            "chunk_rows: too little memory for the transformation: free some on the GPU or the machine, or lower "
            f"chunk_rows ({(str(error) or type(error).__name__).splitlines()[0]})"
        ) from None
