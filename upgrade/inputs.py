"""What an upgrade is made from: the old embeddings, perhaps side-information, and the transformation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import pyarrow as pa
import torch
from torch import nn

from data.sources.embeddings import Source, open_source, stated_space
from data.sources.rows import reordered
from models.model_files import (
    Description,
    build_model,
    calibration_of,
    read_description,
    unhelpful_orders,
    wider_new,
)
from models.transformed import Transformation
from upgrade.columns import schema_of
from upgrade.config import UpgradeConfig
from upgrade.ends import open_store
from upgrade.mixed import gain_of, old_table, open_gallery
from upgrade.old import Old, check_distinct, old_files, old_store
from upgrade.spaces import check_stated
from upgrade.state import State
from upgrade.table import Table
from utils.errors import UserError
from utils.files import sha256_of
from utils.precision import resolve_precision
from utils.provenance import tool_versions


@dataclass(frozen=True)
class Inputs:
    """What the rows are made of."""

    old: Old
    transformation: Transformation
    earlier: Transformation | None  # of rows that are behind and have one of their own
    state: State  # of the table to make

    @property
    def schema(self) -> pa.Schema:
        """The columns of that table."""
        return schema_of(self.state, self.old.id_type, self.old.has_labels)


def open_old(config: UpgradeConfig, *, checked: bool = False) -> Old:
    """Open the old vectors that a config names; stores see to it themselves that ids are distinct.

    Args:
        config: names them.
        checked: it is known that no id occurs twice.

    Raises:
        UserError: they cannot be read, or the side-information is of other items.
    """
    if config.is_upgraded_again:
        return _open_table(config, open_gallery(config))
    if config.gallery is None:
        assert config.store is not None
        return old_store(open_store(config.store))
    source = open_source(config.gallery, where="gallery", ids=config.ids)
    if not checked:
        check_distinct(source, "gallery")
    old = old_files(source, _side_info(config.side_info, source))
    check_stated(stated_space(source.path, "gallery"), config.gallery, config.old_model, source.dim, old.unit)
    return old


def _side_info(path: str | None, source: Source, section: str = "") -> Source | None:
    where = f"{section}side_info"
    return None if path is None else open_source(path, where=where).in_order_of(source, where)


def _open_table(config: UpgradeConfig, table: Table) -> Old:
    """The old gallery in a table of an upgrade, and the vectors that this was made from, where they are named."""
    section, params = "earlier.", config.earlier
    if params.transformation_path is not None and table.state.earlier is not None:
        raise UserError(f"earlier: {table.uri} was itself made from such a gallery; leave it out")
    earlier = None
    if params.store is not None:
        earlier = old_store(open_store(params.store))
    elif params.gallery is not None:
        source = open_source(params.gallery, where=f"{section}gallery", ids=params.ids)
        check_distinct(source, f"{section}gallery")
        side_info = _side_info(params.side_info, source, section)
        if source.ids is not None:
            order = source.ids.read(0, len(source)).argsort()
            source = Source(source.path, reordered(source.vectors, order), reordered(source.ids, order))
            side_info = side_info and replace(side_info, vectors=reordered(side_info.vectors, order))
        earlier = old_files(source, side_info, section)
    if earlier is not None and earlier.id_type != table.schema.field("id").type:
        raise UserError(f"{earlier.name}: its ids are {earlier.id_type}, those of {table.uri} are not")
    side_info = None if config.side_info is None else open_source(config.side_info, where="side_info")
    return old_table(table, side_info, earlier)


def open_inputs(config: UpgradeConfig, device: torch.device, *, checked: bool = False) -> Inputs:
    """Open what a config names, see `open_old`; the state is that of the table to make.

    Raises:
        UserError: a file that cannot be read, or files that do not fit together.
    """
    table = open_gallery(config) if config.is_upgraded_again else None
    old = open_old(config, checked=checked) if table is None else _open_table(config, table)
    description = _describe_transformation(config.transformation_path)
    normalised = _is_normalised(config, description)
    transformation = cast(Transformation, build_model(description, where="transformation_path"))
    named = str(config.gallery or "the store") + (f" with {config.side_info}" if config.side_info else "")
    where = f"transformation_path: {config.transformation_path}"
    dim, has_sigma = output_of(transformation, where, named, old.dim, old.side_dim)
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
        wider=wider_new(description),
    )
    inputs = Inputs(old, transformation, None, state)
    return inputs if table is None else _with_earlier(inputs, config, table)


def _with_earlier(inputs: Inputs, config: UpgradeConfig, table: Table) -> Inputs:
    """The inputs of a gallery in a table of an upgrade, with what its rows go through that are behind.

    Raises:
        UserError: their transformation does not fit what it is given, or the other one.
    """
    state, path, module = inputs.state, config.earlier.transformation_path, None
    earlier: dict[str, Any] = {"model": table.state.old_model, "transformation": path}
    if path is None:
        gain = gain_of(inputs.transformation, table, inputs.old.side_dim, normalised=state.normalised)
        earlier |= {"made_by": repr(table.state.made_by), "calibration": table.state.calibration, "gain": gain}
    else:
        where, old = f"earlier.transformation_path: {path}", inputs.old.earlier
        assert old is not None
        description = _describe_transformation(path, "earlier.transformation_path")
        module = cast(Transformation, build_model(description, where="earlier.transformation_path"))
        dim, has_sigma = output_of(module, where, old.name.partition(": ")[2], old.dim, old.side_dim)
        if dim != state.dim or _recorded(description) not in (None, state.normalised):
            raise UserError(
                f"{where}: is into another space than transformation_path: {state.transformation}: {dim}-d, not "
                f"{state.dim}-d, or of other lengths"
            )
        state = replace(state, has_sigma=state.has_sigma and has_sigma)
        earlier |= {"made_by": sha256_of(path), "calibration": calibration_for(description, state.normalised)}
    known = earlier["calibration"] is not None
    state = replace(state, calibration=state.calibration if known else None, earlier=earlier)
    return replace(inputs, earlier=module, state=state)


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
    recorded = _recorded(description)
    if recorded is None:
        return config.normalised == "on"
    if config.normalised not in ("auto", "on" if recorded else "off"):
        lengths = "of length 1" if recorded else "of any length"
        raise UserError(
            f"normalised: {config.normalised} contradicts transformation_path: {config.transformation_path}, which was "
            f"fitted to new embeddings {lengths}; leave it at auto, or fit anew with another `normalised`"
        )
    return bool(recorded)


def _recorded(description: Description) -> bool | None:
    """Whether a transformation was fitted to new embeddings of length 1, if its file tells."""
    while description["kind"] == "refined":
        description = description["transformation"]
    recorded: bool | None = description["arguments"].get("normalised")
    return recorded


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


def _describe_transformation(path: str, where: str = "transformation_path") -> Description:
    description = read_description(path, where=where, foreign=False)
    if description["kind"] in ("backbone", "transformed"):
        raise UserError(f"{where}: {path} is a model that takes images; name the transformation alone")
    return description


def output_of(module: nn.Module, where: str, named: str, dim: int, side_dim: int | None) -> tuple[int, bool]:
    """The dimension of what a transformation makes of such inputs, and whether it gives a log variance.

    Args:
        module: the transformation.
        where: the config key and the file that name it, for error messages.
        named: what it is given, likewise.
        dim: of that.
        side_dim: of the side-information, if any.

    Raises:
        UserError: it does not take their dimensions.
    """
    example = [torch.zeros(2, size) for size in (dim, side_dim) if size is not None]
    try:
        with torch.inference_mode(), memory_named():
            output = module(*example)
    except RuntimeError:
        dims = " and ".join(f"{given.shape[1]}-d" for given in example)
        raise UserError(f"{where} does not take the {dims} embeddings of {named}") from None
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
