"""Export of models for use without this code: TorchScript, torch.export, ONNX, safetensors and the JSON beside it."""

import importlib.util
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from models.model_files import Description
from models.states import plain_state
from utils.errors import UserError
from utils.files import read_torch, write_bytes, write_json
from utils.paths import without_suffix

PACKAGES = {"onnx": ("onnx", "onnxscript"), "safetensors": ("safetensors",)}  # by format
SUFFIXES = {"torchscript": ".torchscript.pt", "pt2": ".pt2", "onnx": ".onnx", "safetensors": ".safetensors"}


class _Outputs(nn.Module):
    """The model with plain tensors as outputs: what is None (a log variance that there is not) is left out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(output for output in self.model(*inputs) if output is not None)


def check_formats(formats: Sequence[str], *, torchscript_inside: bool = False) -> None:
    """Check, before a training, that its model can be written in each of `formats`.

    Args:
        torchscript_inside: whether a part of the model is a TorchScript archive.

    Raises:
        UserError: a format's packages are not installed, or it cannot hold a TorchScript archive.
    """
    if torchscript_inside and set(formats) - {"torchscript"}:
        raise UserError("export_formats: a model with a TorchScript archive in it can be exported as torchscript only")
    for format_, packages in PACKAGES.items():
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if format_ in formats and missing:
            raise UserError(
                f"export_formats: {format_} needs packages that are not here: pip install {' '.join(missing)}"
            )


def export_model(model: nn.Module, inputs: tuple[torch.Tensor, ...], path: str | Path, formats: Sequence[str]) -> None:
    """Write `model` beside its model file `path`, in each of `formats`; the batch size stays free.

    Args:
        model: in eval mode, on the CPU; its outputs keep their order.
        inputs: an example batch of at least 2.
        path: e.g. `old.pt`, which becomes `old.torchscript.pt`, `old.pt2`, `old.onnx`, `old.safetensors`; with this
            goes `old.json`, which holds all that `old.pt` says of the model.
        formats: of SUFFIXES, as `check_formats` has found them possible.
    """
    path = Path(path)
    stem = path.with_name(without_suffix(path).name)
    exporters: dict[str, Callable[[nn.Module, tuple[torch.Tensor, ...]], bytes]] = {
        "torchscript": _torchscript,
        "pt2": _pt2,
        "onnx": _onnx,
        "safetensors": _safetensors,
    }
    for name in formats:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters' own deprecations
            content = exporters[name](_Outputs(model).eval(), inputs)
        # From memory: torch's own writer aborts the process where the disk is full.
        write_bytes(f"{stem}{SUFFIXES[name]}", content)
        if name == "safetensors":
            write_json(f"{stem}.json", _without_tensors(read_torch(path)))


def _torchscript(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, inputs, check_trace=False), buffer)
    return buffer.getvalue()


def _free_batch(inputs: tuple[torch.Tensor, ...]) -> tuple[tuple[dict[int, object], ...]]:
    batch = torch.export.Dim("batch", min=1)
    return (tuple({0: batch} for _ in inputs),)


def _pt2(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model, inputs, dynamic_shapes=_free_batch(inputs)), buffer)
    return buffer.getvalue()


def _onnx(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> bytes:
    program = torch.onnx.export(model, inputs, dynamic_shapes=_free_batch(inputs), dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def _safetensors(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> bytes:
    from safetensors.torch import save

    del inputs  # parameters and buffers alone
    return save(plain_state(model.get_submodule("model")))


def _without_tensors(description: Description) -> Description:
    """What a model file says, without the parameters, here and in the parts that it is made of."""
    kept = {name: value for name, value in description.items() if name != "state_dict"}
    return {name: _without_tensors(value) if isinstance(value, dict) else value for name, value in kept.items()}
