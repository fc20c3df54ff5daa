"""Model files: the one place that saves and loads models.

A `.pt` file holds plain values and tensors only, so it loads with `weights_only=True`: the format's name and version,
the model's kind, constructor arguments and weights, and its provenance. Models of others (`models.foreign`), ml-fct's
TorchScript archives among them, stand in it by name and hash.
"""

import datetime
import platform
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from models.backbones import Backbone, build_backbone
from models.embedding import TransformedModel, renormalised
from models.foreign import FOREIGN, check_trusted, describe_foreign, foreign_kind, load_foreign
from models.refinement import RefinedTransformation
from models.states import load_state, plain_state
from models.transformations import TRANSFORMATIONS, build_transformation
from models.transformed import Transformation
from utils.errors import UserError
from utils.files import read_torch, sha256_of, write_torch
from utils.provenance import git_revision
from utils.references import parse_reference

FORMAT = "refill-model"
VERSION = 1
Description = dict[str, Any]


def describe_backbone(model: Backbone, arguments: dict[str, Any], **trained_on: Any) -> Description:
    """A backbone as plain values.

    Args:
        arguments: those of `build_backbone`.
        trained_on: plain values about the images: `preprocessing`, with the keys of
            `models.libraries.library_preprocessing`, and `classes`, their names.
    """
    return {"kind": "backbone", "arguments": arguments, "state_dict": plain_state(model), **trained_on}


def describe_transformation(model: Transformation, arguments: dict[str, Any]) -> Description:
    """A transformation as plain values; `arguments` are those of `build_transformation`."""
    return {"kind": "transformation", "arguments": arguments, "state_dict": plain_state(model)}


def describe_refined(model: RefinedTransformation, transformation: Description, chosen: dict[str, Any]) -> Description:
    """A refined transformation: the description of the one within, what pulls, and how its strength was chosen."""
    return {
        "kind": "refined",
        "transformation": transformation,
        "arguments": model.arguments,
        "chosen": chosen,
        "state_dict": {name: tensor.detach().cpu().clone() for name, tensor in model.named_buffers(recurse=False)},
    }


def describe_transformed(
    old: Description,
    side_info: Description | None,
    transformation: Description,
    preprocessing: dict[str, Any] | None = None,
) -> Description:
    """A transformed old model, of the descriptions of its parts; `preprocessing` is of the images that they see."""
    parts = {"kind": "transformed", "old": old, "side_info": side_info, "transformation": transformation}
    return parts if preprocessing is None else {**parts, "preprocessing": preprocessing}


def save_model(
    path: str | Path,
    description: Description,
    *,
    config: dict[str, Any],
    seed: int,
    embeddings: dict[str, Any] | None = None,
) -> None:
    """Write a model file atomically, with its provenance.

    Args:
        description: the model, as plain values.
        config: what it was made by.
        seed: likewise.
        embeddings: the embedding files that it was fitted to, and what came of that, as plain values.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    provenance = {
        "config": config,
        "seed": seed,
        "git_revision": git_revision(),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if embeddings is not None:
        provenance["embeddings"] = embeddings
    write_torch(path, {"format": FORMAT, "version": VERSION, "provenance": provenance, **description})


def read_description(path: str | Path, *, where: str, foreign: bool = True, transformation: bool = True) -> Description:
    """Read a model file of ours, or refer to a model of others by its name and hash.

    Args:
        path: the file, or another model as `utils.references` reads it.
        where: the config key that names it, for error messages.
        foreign: whether a model of others will do in this place.
        transformation: whether a transformation alone, which takes no images, will do.

    Raises:
        UserError: there is no such model, or it is none that will do here; says what it is. Or the file calls a
            `python:` model that it is not trusted with.
    """
    reference = parse_reference(str(path))
    if reference.file is not None and not Path(reference.file).is_file():
        raise UserError(f"{where}: there is no model file {reference.file}")
    kind = foreign_kind(reference)
    if kind is not None and not foreign:
        raise UserError(f"{where}: {path} is {FOREIGN[kind]}; this place needs a model file written here")
    if kind is not None:
        return describe_foreign(str(path), where=where)
    if reference.output is not None:
        raise UserError(f"{where}: {path}: a model file of ours has one embedding; leave [{reference.output}] out")
    path = Path(path)
    try:
        content = read_torch(path)
    except ValueError as error:
        raise UserError(f"{where}: {path} is no model file ({_what_it_is(path)})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{where}: {path} is no model file of ours (a {type(content).__name__} saved by torch)")
    if content["version"] > VERSION:
        raise UserError(f"{where}: {path} has format version {content['version']}; this code reads up to {VERSION}")
    if content["kind"] in ("transformation", "refined") and not transformation:
        raise UserError(f"{where}: {path} is a transformation alone; this place needs a model that takes images")
    if content["kind"] in FOREIGN:
        raise UserError(f"{where}: {path} holds a model of others, which is named in a config and not in a file alone")
    check_trusted(_functions_called(content), where=f"{where}: {path}")
    return content


def _functions_called(description: Description | None) -> list[str]:
    """The `python:` models that a model is made of."""
    if description is None:
        return []
    if description["kind"] == "python":
        return [description["reference"]]
    return [text for part in ("old", "side_info") for text in _functions_called(description.get(part))]


def holds_torchscript(description: Description | None) -> bool:
    """Whether a model or a part of it is a TorchScript archive."""
    if description is None:
        return False
    parts = [description.get("old"), description.get("side_info")]
    return description["kind"] == "torchscript" or any(map(holds_torchscript, parts))


def _what_it_is(path: Path) -> str:
    if path.stat().st_size == 0:
        return "it is empty"
    if zipfile.is_zipfile(path):
        return "a zip archive without a model's plain values"
    return "neither written by torch.save nor TorchScript, or cut short"


def build_model(description: Description, *, where: str, seen: dict[str, Any] | None = None) -> nn.Module:
    """The model that a description describes, in eval mode, on the CPU.

    Args:
        where: the config key that names it, for error messages.
        seen: `mean` and `std` by which the images are normalised that it will be given; None: those that it expects.

    Raises:
        UserError: the file's weights do not fit its arguments, or a model of others has changed.
    """
    kind, expected = description["kind"], description.get("preprocessing")
    if kind == "transformed":
        # A part that does not say what it expects has seen the images that the transformation was trained on.
        parts = (description["old"], description["side_info"])
        old, side = (part and {"preprocessing": expected, **part} for part in parts)
        seen = seen or expected
        model: nn.Module = TransformedModel(
            build_model(old, where=where, seen=seen),
            None if side is None else build_model(side, where=where, seen=seen),
            cast(Transformation, build_model(description["transformation"], where=where)),
        )
        return model.eval()
    if kind in FOREIGN:
        return renormalised(load_foreign(description, where=where), seen, expected).eval()
    if kind == "refined":
        inner = cast(Transformation, build_model(description["transformation"], where=where))
        refined = RefinedTransformation(inner, **description["arguments"])
        _load_state(
            refined,
            description["state_dict"]
            | {f"transformation.{name}": tensor for name, tensor in inner.state_dict().items()},
            where,
        )
        return refined.eval()
    builders: dict[str, Callable[..., nn.Module]] = {
        "backbone": build_backbone,
        "transformation": build_transformation,
    }
    build = builders.get(kind)
    if build is None:
        raise UserError(f"{where}: the file holds an unknown kind of model, {kind!r}")
    model = build(**description["arguments"])
    _load_state(model, description["state_dict"], where)
    return renormalised(model, seen, expected).eval()


def identity_of(path: str | Path, description: Description) -> str:
    """A hash of the model that `path` names, by which what it has embedded is known again."""
    if description["kind"] not in FOREIGN:
        return sha256_of(path)
    output = parse_reference(str(path)).output
    return description["sha256"] if output is None else f"{description['sha256']}[{output}]"


def check_inputs(description: Description, old_dim: int, side_info_dim: int | None, *, where: str) -> None:
    """Check that a transformation takes old embeddings and, where there is any, side-information of these dimensions.

    Raises:
        UserError: it does not; says what it takes.
    """
    arguments = description.get("transformation", description)["arguments"]  # of a refined one, those within
    takes_old, takes_side = arguments["old_embedding_dim"], arguments["side_info_dim"]
    old_dim = takes_old if old_dim == arguments.get("wider_old_dim") else old_dim
    stand_in = takes_old if TRANSFORMATIONS[arguments["arch"]].old_stands_in else 0
    fitted_to = arguments.get("residual_inputs") or arguments.get("start_inputs")  # the sum of both, where it is told
    expected = stand_in if side_info_dim is None else side_info_dim
    given = old_dim + (side_info_dim or 0)
    if (old_dim, expected) == (takes_old, takes_side) and fitted_to in (None, given):
        return
    alone = takes_side == stand_in and fitted_to in (None, takes_old)
    raise UserError(
        f"{where} does not take embeddings of dimension {_dims(old_dim, side_info_dim)}, but of "
        f"{_dims(takes_old, None if alone else takes_side)}"
    )


def _dims(old: int, side_info: int | None) -> str:
    return f"{old} with {'no side-information' if side_info is None else f'side-information of {side_info}'}"


def classifier_of(description: Description) -> torch.Tensor | None:
    """The weight (C, d) of a backbone's classifier; None of other models, and of SimCLR's, whose `fc` is untrained."""
    if description["kind"] != "backbone" or description["provenance"]["config"].get("objective") == "simclr":
        return None
    return description["state_dict"]["fc.weight"].flatten(1)  # (C, d, 1, 1) -> (C, d)


def calibration_of(description: Description) -> dict[str, dict[str, float]]:
    """What is recorded of a transformation, or of a transformed model's: distance -> `value`, and what that reached."""
    return description.get("calibration") or description.get("transformation", {}).get("calibration") or {}


def unhelpful_orders(description: Description) -> list[str]:
    """The orders that were found, when a transformation was fitted, to bring no more than random order does."""
    orders = description.get("orders") or description.get("transformation", {}).get("orders") or {}
    return [name for name, found in orders.items() if not found["beats_random"]]


def wider_new(description: Description) -> dict[str, Any] | None:
    """What the new model gives, where a transformation is into the first dimensions of that; else None.

    Its `dim`, and whether it is `of_length_1`.
    """
    wider: dict[str, Any] = description["provenance"].get("embeddings", {}).get("wider", {})
    return wider.get("new")


def _load_state(model: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    try:
        load_state(model, state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()  # below the title
        raise UserError(f"{where}: the file's weights do not fit its architecture ({first})") from None


def load_model(path: str | Path, *, where: str = "model", transformation: bool = True) -> nn.Module:
    """Load a model file, or a model of others that `path` names, in eval mode on the CPU.

    Returns:
        A backbone, a transformation, a `TransformedModel` or a `ForeignModel`.

    Raises:
        UserError: see `read_description` and `build_model`.
    """
    return build_model(read_description(path, where=where, transformation=transformation), where=where)
