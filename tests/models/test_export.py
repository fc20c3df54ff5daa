"""Exports: what each format gives without this code equals what the model gives, for any batch size."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.backbones import build_backbone
from models.embedding import TransformedModel
from models.export import PACKAGES, SUFFIXES, check_formats, export_model
from models.refinement import RefinedTransformation
from models.transformations import build_transformation
from tests.tiny import write_torchscript
from utils.errors import UserError

EXAMPLE = (torch.zeros(2, 3, 16, 16),)
DIMS = {"old_embedding_dim": 8, "new_embedding_dim": 12, "inner_dim": 16}


def backbone(dim: int = 8) -> nn.Module:
    return build_backbone("ResNet18", num_classes=5, embedding_dim=dim, stem="cifar", width=0.125)


def with_side_info(side_info: nn.Module) -> nn.Module:
    return TransformedModel(backbone(), side_info, build_transformation("fastfill", **DIMS, side_info_dim=6))


def with_torchscript(folder: Path) -> nn.Module:
    write_torchscript(folder / "side.pt", 6)
    return with_side_info(torch.jit.load(folder / "side.pt"))


def standardised_and_refined(folder: Path) -> nn.Module:
    """h' of length 1, of a transformation that works in a scale of its own and has no log variance."""
    h = build_transformation("fct", **DIMS, side_info_dim=8, normalised=True, standardised=True)
    for buffer in h.standards.buffers():  # type: ignore[union-attr]
        nn.init.uniform_(buffer, 0.5, 2.0)
    refined = RefinedTransformation(h, num_classes=5, new_embedding_dim=12, strength=0.5)
    for buffer in refined.buffers(recurse=False):
        nn.init.normal_(buffer)
    return TransformedModel(backbone(), None, refined)


MODELS: dict[str, Callable[[Path], nn.Module]] = {
    "backbone": lambda folder: backbone(),
    "fastfill": lambda folder: with_side_info(backbone(6)),
    "torchscript side-information": with_torchscript,
    "refined": standardised_and_refined,
}


def run_onnx(path: Path, images: Tensor) -> list[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (argument,) = session.get_inputs()
    return [torch.from_numpy(output) for output in session.run(None, {argument.name: images.numpy()})]


RUNNERS: dict[str, Callable[[Path, Tensor], list[Tensor]]] = {
    "torchscript": lambda path, images: list(torch.jit.load(path)(images)),
    "pt2": lambda path, images: list(torch.export.load(path).module()(images)),
    "onnx": run_onnx,
}
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in (*PACKAGES["onnx"], "onnxruntime")), reason="no ONNX here"
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("format_", "kind"),
    [
        *(("torchscript", kind) for kind in MODELS),
        ("pt2", "fastfill"),  # has each kind of part: two backbones and the transformation
        ("pt2", "refined"),
        pytest.param("onnx", "fastfill", marks=needs_onnx),
        pytest.param("onnx", "refined", marks=needs_onnx),
    ],
)
def test_an_export_computes_what_the_model_does(format_: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[kind](tmp_path).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):  # statistics that matter
            nn.init.normal_(module.get_buffer("running_mean"))
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
    export_model(model, EXAMPLE, tmp_path / "old.pt", [format_])
    for batch in (1, 5):
        images = torch.randn(batch, 3, 16, 16)
        with torch.inference_mode():
            expected = [output for output in model(images) if output is not None]
            outputs = RUNNERS[format_](tmp_path / f"old{SUFFIXES[format_]}", images)
        for output, right in zip(outputs, expected, strict=True):
            torch.testing.assert_close(output, right, rtol=1e-4, atol=1e-4)
        if kind == "refined":
            torch.testing.assert_close(outputs[0].norm(dim=1), torch.ones(batch))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_models_that_differ_behind_a_dot_have_exports_of_their_own(tmp_path: Path) -> None:
    for name in ("fct_v1.0", "fct_v1.1"):
        export_model(backbone().eval(), EXAMPLE, tmp_path / name, ["torchscript"])
    assert {path.name for path in tmp_path.iterdir()} == {"fct_v1.0.torchscript.pt", "fct_v1.1.torchscript.pt"}


def test_what_cannot_be_exported_shows_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    check_formats(["torchscript"], torchscript_inside=True)
    with pytest.raises(UserError, match="export_formats: a model with a TorchScript archive in it"):
        check_formats(["torchscript", "pt2"], torchscript_inside=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_formats(["torchscript", "pt2"])
    with pytest.raises(UserError, match=r"export_formats: onnx needs packages .*: pip install onnx onnxscript"):
        check_formats(["pt2", "onnx"])
