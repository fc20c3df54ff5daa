"""Export of models for use without this code: TorchScript, torch.export and ONNX."""

import importlib.util
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from utils.errors import UserError
from utils.files import write_bytes
from utils.paths import without_suffix

ONNX_PACKAGES = ("onnx", "onnxscript")
SUFFIXES = {"torchscript": ".torchscript.pt", "pt2": ".pt2", "onnx": ".onnx"}


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
        UserError: ONNX is asked for and its packages are not installed, or a format cannot hold a TorchScript archive.
    """
    if torchscript_inside and set(formats) - {"torchscript"}:
        raise UserError("export_formats: a model with a TorchScript archive in it can be exported as torchscript only")
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if "onnx" in formats and missing:
        raise UserError(f"export_formats: onnx needs packages that are not here: pip install {' '.join(missing)}")


def export_model(model: nn.Module, inputs: tuple[torch.Tensor, ...], path: str | Path, formats: Sequence[str]) -> None:
    """Write `model` beside its model file `path`, in each of `formats`; the batch size stays free.

    Args:
        model: in eval mode, on the CPU; its outputs keep their order.
        inputs: an example batch of at least 2.
        path: e.g. `old.pt`, which becomes `old.torchscript.pt`, `old.pt2`, `old.onnx`.
        formats: of SUFFIXES, as `check_formats` has found them possible.
    """
    path = Path(path)
    exporters: dict[str, Callable[[nn.Module, tuple[torch.Tensor, ...]], bytes]] = {
        "torchscript": _torchscript,
        "pt2": _pt2,
        "onnx": _onnx,
    }
    for name in formats:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters' own deprecations
            content = exporters[name](_Outputs(model).eval(), inputs)
        # From memory: torch's own writer aborts the process where the disk is full.
        write_bytes(path.with_name(without_suffix(path).name + SUFFIXES[name]), content)


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
