"""What a gallery is made from: the old embeddings, perhaps side-information, and the transformation."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from models.model_files import Description, build_model, calibration_of, read_description
from models.transformed import Transformation
from upgrade.config import UpgradeConfig
from upgrade.manifest import Manifest, Origin, Refit
from upgrade.rows import Array, Rows, check_finite
from upgrade.sources import Source, open_source, stated_space
from upgrade.spaces import check_lengths, check_stated, have_unit_length
from utils.distributed import World
from utils.errors import UserError
from utils.files import sha256_of
from utils.precision import resolve_precision
from utils.provenance import tool_versions

SAMPLE_ROWS = 1024  # that tell a gallery from another


@dataclass(frozen=True)
class Inputs:
    """What the chunks are made of."""

    old: Source
    side_info: Source | None
    transformation: Transformation
    manifest: Manifest


def open_inputs(config: UpgradeConfig, world: World) -> Inputs:
    """Open what a config names; the manifest is that of the gallery to make.

    Raises:
        UserError: a file that cannot be read, or files that do not fit together.
    """
    old, side_info = _open_sources(config)
    unit = have_unit_length(_sample(old.vectors))
    check_stated(stated_space(old.path, "gallery"), config.gallery, config.old_model, old.dim, unit)
    if config.faiss and old.has_text_ids:
        raise UserError(
            f"faiss: FAISS takes whole numbers alone, and the ids of {config.gallery} are text; set faiss=False"
        )
    description = _describe_transformation(config.transformation_path)
    normalised = _is_normalised(config, description)
    transformation = cast(Transformation, build_model(description, where="transformation_path"))
    dim, has_sigma = output_of(transformation, config, old, side_info)
    precision = resolve_precision(config.precision, world.device)
    origin = Origin(
        path=config.gallery,
        model=config.old_model,
        dim=old.dim,
        dtype=str(old.vectors.dtype),
        normalised=unit,
        sample_sha256=sample_digest(old),
        transformation=config.transformation_path,
        transformation_sha256=sha256_of(config.transformation_path),
        side_info=config.side_info,
        side_info_sample_sha256=None if side_info is None else sample_digest(side_info),
    )
    manifest = Manifest(
        model=config.new_model,
        dim=dim,
        dtype=config.dtype,
        normalised=normalised,
        rows=len(old),
        origin=origin,
        precision=precision,
        chunk_rows=config.chunk_rows,
        has_sigma=has_sigma,
        has_index=config.faiss,
        tool=tool_versions(),
        calibration=calibration_value(description, normalised),
    )
    return Inputs(old, side_info, transformation, manifest)


def calibration_value(description: Description, normalised: bool) -> float | None:
    """What a transformation's file says of the calibration of galleries of its space; None if nothing."""
    return calibration_of(description).get("cosine" if normalised else "l2", {}).get("value")


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


def _open_sources(config: UpgradeConfig) -> tuple[Source, Source | None]:
    old = open_source(config.gallery, where="gallery", ids=config.ids)
    side_info = None if config.side_info is None else open_source(config.side_info, where="side_info")
    return old, None if side_info is None else side_info.in_order_of(old, "side_info")


def reopen_inputs(config: UpgradeConfig, manifest: Manifest) -> Inputs:
    """What a gallery was made from, with the transformation of `present_transformation`.

    Raises:
        UserError: a file is gone or is not what the gallery was made from.
    """
    old, side_info = _open_sources(config)
    origin = manifest.origin
    digest = None if side_info is None else sample_digest(side_info)
    for where, same in (
        (f"gallery: {config.gallery}", sample_digest(old) == origin.sample_sha256),
        (f"side_info: {config.side_info}", digest == origin.side_info_sample_sha256),
    ):
        if not same:
            raise UserError(f"{where} is not what was transformed")
    return Inputs(old, side_info, load_transformation(present_transformation(config, manifest)), manifest)


def present_transformation(config: UpgradeConfig, manifest: Manifest) -> str:
    """The file of the transformation by which a gallery is what it is: the one of its last refit, else the config's.

    Raises:
        UserError: it is gone or has changed.
    """
    if manifest.refit is not None:
        return refitted_file(Path(config.output), manifest.refit)
    path = config.transformation_path
    if not Path(path).is_file():
        raise UserError(f"transformation_path: there is no model file {path}")
    if sha256_of(path) != manifest.origin.transformation_sha256:
        raise UserError(f"transformation_path: {path} is not what the gallery was made with")
    return path


def refitted_file(folder: Path, refit: Refit) -> str:
    """The transformation of the last refit of the gallery in `folder`.

    Raises:
        UserError: it is gone or has changed.
    """
    path = folder / refit.path
    if not path.is_file() or sha256_of(path) != refit.sha256:
        raise UserError(f"output: {path} is not the transformation of the last refit; the gallery is damaged")
    return str(path)


def load_transformation(path: str) -> Transformation:
    """The transformation in a model file, on the CPU.

    Raises:
        UserError: the file cannot be read, or holds a model that takes images.
    """
    return cast(Transformation, build_model(_describe_transformation(path), where="transformation_path"))


def _describe_transformation(path: str) -> Description:
    description = read_description(path, where="transformation_path", torchscript=False)
    if description["kind"] in ("backbone", "transformed"):
        raise UserError(f"transformation_path: {path} is a model that takes images; name the transformation alone")
    return description


def output_of(module: nn.Module, config: UpgradeConfig, old: Source, side_info: Source | None) -> tuple[int, bool]:
    """The dimension of what a transformation makes of these inputs, and whether it gives a log variance.

    Raises:
        UserError: it does not take their dimensions.
    """
    example = [torch.zeros(2, source.dim) for source in (old, side_info) if source is not None]
    try:
        with torch.inference_mode(), memory_named():
            output = module(*example)
    except RuntimeError:
        dims = " and ".join(f"{values.shape[1]}-d" for values in example)
        named = config.gallery if side_info is None else f"{config.gallery} with {config.side_info}"
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
            f"chunk_rows, in a new output ({(str(error) or type(error).__name__).splitlines()[0]})"
        ) from None


def _sample(rows: Rows) -> Array:
    """Evenly spread rows."""
    count = rows.shape[0]
    blocks = 16
    size = SAMPLE_ROWS // blocks
    starts = sorted({max(0, i * (count - size) // (blocks - 1)) for i in range(blocks)})
    return np.concatenate([rows.read(start, min(start + size, count)) for start in starts])


def sample_digest(source: Source) -> str:
    """SHA-256 of evenly spread rows and their ids: tells a gallery from another without reading all of it."""
    digest = hashlib.sha256(_sample(source.vectors).tobytes())
    if source.ids is not None:
        digest.update(_sample(source.ids).tobytes())
    return digest.hexdigest()


def read_checked(source: Source, where: str, start: int, stop: int, *, unit: bool) -> Array:
    """The rows [start, stop) of a source.

    Raises:
        UserError: a row is not finite, or not of length 1 where `unit`.
    """
    rows = source.vectors.read(start, stop)
    check_finite(rows, f"{where}: {source.path}", start)
    if unit:
        check_lengths(rows, f"{where}: {source.path}", start)
    return rows
