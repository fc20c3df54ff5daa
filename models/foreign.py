"""Frozen models that are no model files of ours: TorchScript, torch.export, a library's, or what a function returns.

All but those of a library run code of others, and only where the user names them. A description of one says where it
comes from and holds a hash, by which it is told when it is no longer the model that a transformation was trained with.
"""

import hashlib
import importlib
import logging
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from models.libraries import DEFAULT, library_features, library_preprocessing
from utils.errors import UserError, said
from utils.files import sha256_of
from utils.references import ModelReference, parse_reference

FOREIGN = {
    "torchscript": "a TorchScript archive",
    "exported": "a torch.export file",
    "library": "a model of a library",
    "python": "a model that a function returns",
}  # kind -> what it is
TRUSTED = "REFILL_TRUST"  # environment variable: the `python:` models that model files may call, by spaces


class ForeignModel(nn.Module):
    """Gives the embedding alone of a model that may give more.

    Args:
        output: key or place of the embedding among several outputs; None: there is but one.
        label: the config key and the text that name the model, for error messages.
    """

    def __init__(self, model: nn.Module, output: str | None, label: str) -> None:
        super().__init__()
        self.model, self.output, self.label = model, output, label

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) -> embedding (B, d) or (B, d, 1, 1).

        Raises:
            UserError: the model gives several outputs of which none is named, or no embedding there.
        """
        outputs = self.model(images)
        embedding = self._named(outputs)
        if not isinstance(embedding, torch.Tensor):
            among = _outputs(embedding)
            what = f"gives {_listed(among)}" if among else f"gives a {type(embedding).__name__}"
            example = next(iter(among), "NAME")
            raise UserError(f"{self.label}: {what}; name the embedding's, as in ...[{example}]")
        if embedding.ndim < 2 or embedding[0].numel() != embedding.shape[1]:
            raise UserError(f"{self.label}: gives {tuple(embedding.shape)}, and an embedding is (images, dimension)")
        return embedding

    def _named(self, outputs: Any) -> Any:
        """The output that is named, or the only one; else all."""
        among = _outputs(outputs)
        if self.output is None:
            return next(iter(among.values())) if len(among) == 1 else outputs
        if self.output not in among:
            raise UserError(f"{self.label}: there is no output {self.output}; it gives {_listed(among) or 'one alone'}")
        return among[self.output]


class TorchScriptModel(ForeignModel):
    """Of a pair, as ml-fct's archives give logits and embedding, it takes the second where none is named."""

    def _named(self, outputs: Any) -> Any:
        if self.output is None and isinstance(outputs, tuple) and len(outputs) == 2:
            return outputs[1]
        return super()._named(outputs)


class ExportedModel(ForeignModel):
    """A program of torch.export, whose mode is fixed: it stands in the mode in which it was exported."""

    def __init__(self, program: ExportedProgram, output: str | None, label: str) -> None:
        super().__init__(program.module(), output, label)
        self.program, self.device = program, torch.device("cpu")

    def train(self, mode: bool = True) -> "ExportedModel":
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "ExportedModel":
        device = fn(torch.empty(0)).device
        if device != self.device:  # with the constants in it, which are no parameters
            self.model, self.device = move_to_device_pass(self.program, device).module(), device
        return self


def _outputs(outputs: Any) -> dict[str, Any]:
    """The outputs of a model by key, name or place; empty where there is but a tensor."""
    if isinstance(outputs, Mapping):
        return {str(key): value for key, value in outputs.items()}
    if isinstance(outputs, tuple | list):
        names = getattr(outputs, "_fields", map(str, range(len(outputs))))
        return dict(zip(names, outputs, strict=True))
    return {}


def _listed(among: Mapping[str, Any]) -> str:
    """The outputs, each with its shape."""
    return ", ".join(
        f"{name} {tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__}"
        for name, value in among.items()
    )


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive: a zip that holds code and constants."""
    return "constants.pkl" in _members(path)


def is_exported(path: str | Path) -> bool:
    """Whether a file is one of torch.export."""
    return "models/model.json" in _members(path)


def _members(path: str | Path) -> set[str]:
    """The names in a zip archive, below its folder; none of another file."""
    if not zipfile.is_zipfile(path):
        return set()
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2] for name in archive.namelist()}


def foreign_kind(reference: ModelReference) -> str | None:
    """Which of FOREIGN a text names; None for any other file."""
    if reference.kind != "file":
        return "python" if reference.kind == "python" else "library"
    return "torchscript" if is_torchscript(reference.name) else "exported" if is_exported(reference.name) else None


def describe_foreign(text: str, *, where: str) -> dict[str, Any]:
    """The model of FOREIGN that `text` names, as plain values.

    Raises:
        UserError: a library or a function does not give it.
    """
    reference = parse_reference(text)
    kind = foreign_kind(reference)
    if kind in LOADERS:
        named = {} if reference.output is None else {"output": reference.output}
        return {"kind": kind, "path": reference.name, "sha256": sha256_of(reference.name), **named}
    model, module = _built(reference, where)
    description = {"kind": kind, "reference": text, "sha256": _hash_of(model, module)}
    if kind == "python":
        return description
    return {**description, "preprocessing": library_preprocessing(_arch(reference), reference.weights, where=where)}


def check_trusted(functions: Sequence[str], *, where: str) -> None:
    """Check that the `python:` models that a model file calls, which no config names, are those that the user trusts.

    Raises:
        UserError: one is not in the environment variable TRUSTED.
    """
    trusted = os.environ.get(TRUSTED, "").split()
    for text in functions:
        if text not in trusted:
            raise UserError(f"{where} calls {text}, which runs code; if you trust that, set {TRUSTED}='{text}'")


def load_foreign(description: dict[str, Any], *, where: str) -> nn.Module:
    """The model that a description by `describe_foreign` describes, in eval mode, on the CPU.

    Raises:
        UserError: it is not there any more, cannot be read, or is another than the one described.
    """
    if description["kind"] in LOADERS:
        return _from_file(description, where).eval()
    text = description["reference"]
    reference = parse_reference(text)
    model, module = _built(reference, where)
    if _hash_of(model, module) != description["sha256"]:
        raise UserError(f"{where}: {text} is not the model that it was: its weights, or the code, are others")
    return ForeignModel(model, reference.output, f"{where}: {text}").eval()


def _from_file(description: dict[str, Any], where: str) -> nn.Module:
    path, (what, load, kind) = Path(description["path"]), LOADERS[description["kind"]]
    if not path.is_file():
        raise UserError(f"{where}: needs the {what} {path}, which is not there")
    if sha256_of(path) != description["sha256"]:
        raise UserError(f"{where}: the {what} {path} is not the one that was trained with")
    try:
        with _quiet():
            model = load(path)
    except RuntimeError as error:
        raise UserError(f"{where}: the {what} {path} cannot be read; it may be damaged") from error
    return kind(model, description.get("output"), f"{where}: {path}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it TorchScript does not say that it is deprecated, nor torch.export at length that a file is damaged."""
    logger = logging.getLogger("torch.export")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


LOADERS: dict[str, tuple[str, Callable[[Path], Any], Callable[[Any, str | None, str], ForeignModel]]] = {
    "torchscript": ("TorchScript archive", partial(torch.jit.load, map_location="cpu"), TorchScriptModel),
    "exported": ("torch.export file", torch.export.load, ExportedModel),
}


def _arch(reference: ModelReference) -> str:
    return f"{reference.kind}/{reference.name}"


def _built(reference: ModelReference, where: str) -> tuple[nn.Module, ModuleType | None]:
    """The model of a library or of a function, and the module of that function."""
    if reference.kind == "python":
        return _returned_by(reference.name, where)
    return library_features(_arch(reference), reference.weights or DEFAULT, None, where=where).module, None


def _returned_by(target: str, where: str) -> tuple[nn.Module, ModuleType]:
    """The model that `package.module:function` returns, and the module of that function.

    It is imported from where Python looks, and from the current folder.
    """
    label, (name, _, attribute) = f"{where}: python:{target}", target.partition(":")
    if not name or not attribute:
        raise UserError(f"{label}: should be python:package.module:function")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(name)
    except Exception as error:  # of the user's code, which may raise anything
        raise UserError(f"{label}: {name} cannot be imported ({said(error)})") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        what = f"has no {attribute}" if function is None else f"has a {type(function).__name__} as {attribute}"
        raise UserError(f"{label}: {name} {what}; name a function that returns a torch.nn.Module")
    try:
        model = function()
    except Exception as error:
        raise UserError(f"{label}: {attribute}() failed ({said(error)})") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{label}: {attribute}() returned a {type(model).__name__}, not a torch.nn.Module")
    return model, module


def _hash_of(model: nn.Module, module: ModuleType | None = None) -> str:
    """A hash of a model's parameters and buffers, by name, and of the code of a module."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\0".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    if module is not None and (source := getattr(module, "__file__", None)) is not None:
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()
