"""Frozen models of others: which of their outputs is the embedding, and how they are known again."""

import sys
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from models import TransformedModel, build_transformation, embed, load_model, save_model
from models.backbones import build_backbone
from models.export import export_model
from models.foreign import ForeignModel
from models.model_files import (
    build_model,
    describe_backbone,
    describe_transformation,
    describe_transformed,
    identity_of,
    read_description,
)
from utils.errors import UserError

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
ARGUMENTS: dict[str, Any] = {"arch": "ResNet18", "num_classes": 4, "embedding_dim": 6, "width": 0.0625, "stem": "cifar"}

MODULE = """
import torch
from torch import nn


class Named(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 6, 3)

    def forward(self, images):
        tokens = self.conv(images).flatten(2)
        return {"last_hidden_state": tokens, "pooler_output": tokens.mean(2)}


def model():
    return Named(SEED)


def text():
    return "no model"


def broken():
    raise RuntimeError("no such checkpoint")


number = 3
"""


def write_module(folder: Path, name: str, seed: int = 0) -> None:
    (folder / f"{name}.py").write_text(MODULE.replace("SEED", str(seed)))
    sys.modules.pop(name, None)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder, which is forgotten afterwards as a place of modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def test_a_function_gives_the_model_and_a_key_names_its_embedding(here: Path) -> None:
    write_module(here, "mine_named")
    model = load_model("python:mine_named:model[pooler_output]")
    assert not model.training
    expected = sys.modules["mine_named"].model()(IMAGES)["pooler_output"]
    assert torch.equal(embed(model, IMAGES).embedding, expected)
    with pytest.raises(UserError, match=r"x: python:mine_named:model: gives last_hidden_state \(3, 6, 196\), pooler_"):
        load_model("python:mine_named:model", where="x")(IMAGES)
    with pytest.raises(UserError, match=r"there is no output pooled; it gives last_hidden_state \(3, 6, 196\), "):
        load_model("python:mine_named:model[pooled]", where="x")(IMAGES)
    with pytest.raises(UserError, match=r"gives \(3, 6, 196\), and an embedding is \(images, dimension\)"):
        load_model("python:mine_named:model[last_hidden_state]", where="x")(IMAGES)


@pytest.mark.parametrize(
    ("target", "refusal"),
    [
        ("mine_none:model", r"mine_none cannot be imported \(No module named 'mine_none'\)"),
        ("mine:gone", r"mine has no gone; name a function that returns a torch\.nn\.Module"),
        ("mine:number", r"mine has a int as number; name a function"),
        ("mine:text", r"text\(\) returned a str, not a torch\.nn\.Module"),
        ("mine:broken", r"broken\(\) failed \(no such checkpoint\)"),
        ("mine", r"should be python:package\.module:function"),
    ],
)
def test_a_target_that_gives_no_model_is_refused(here: Path, target: str, refusal: str) -> None:
    write_module(here, "mine")
    with pytest.raises(UserError, match=rf"^x: python:{target}: {refusal}"):
        load_model(f"python:{target}", where="x")


Pair = namedtuple("Pair", ["logits", "embedding"])


@pytest.mark.parametrize(
    ("outputs", "named", "listed"),
    [
        (lambda x, y: (x, y), "1", r"0 \(2, 9\), 1 \(2, 4, 1, 1\)"),
        (lambda x, y: [x, y], "1", r"0 \(2, 9\), 1 \(2, 4, 1, 1\)"),
        (Pair, "embedding", r"logits \(2, 9\), embedding \(2, 4, 1, 1\)"),
        (lambda x, y: {"a": x, "b": y, "c": None}, "b", r"a \(2, 9\), b \(2, 4, 1, 1\), c NoneType"),
    ],
)
def test_one_of_several_outputs_is_to_be_named(outputs: Any, named: str, listed: str) -> None:
    class Several(nn.Module):
        def forward(self, images: torch.Tensor) -> Any:
            return outputs(torch.zeros(2, 9), images)

    embedding = torch.randn(2, 4, 1, 1)
    assert torch.equal(ForeignModel(Several(), named, "x")(embedding), embedding)
    with pytest.raises(UserError, match=rf"^x: gives {listed}; name the embedding's, as in \.\.\.\["):
        ForeignModel(Several(), None, "x")(embedding)
    with pytest.raises(UserError, match=rf"^x: there is no output 7; it gives {listed}"):
        ForeignModel(Several(), "7", "x")(embedding)


def test_a_single_output_needs_no_name() -> None:
    class Single(nn.Module):
        def forward(self, images: torch.Tensor) -> Any:
            return (images,)

    images = torch.randn(2, 4)
    for model in (Single(), nn.Identity()):
        assert torch.equal(ForeignModel(model, None, "x")(images), images)
    with pytest.raises(UserError, match=r"^x: there is no output 1; it gives one alone"):
        ForeignModel(nn.Identity(), "1", "x")(images)
    with pytest.raises(UserError, match=r"^x: gives \(4,\), and an embedding is"):
        ForeignModel(nn.Flatten(0), None, "x")(torch.randn(4))


class Paired(nn.Module):
    """Logits and embedding, as our backbones and ml-fct's archives give them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.conv(images).mean((2, 3), keepdim=True)
        return self.fc(embedding).flatten(1), embedding


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("format_", "suffix"), [("pt2", ".pt2"), ("torchscript", ".torchscript.pt")])
def test_an_exported_model_is_a_frozen_model(format_: str, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    paired = Paired().eval()
    export_model(paired, (IMAGES[:2],), tmp_path / "old.pt", [format_])
    path = tmp_path / f"old{suffix}"
    with torch.inference_mode():
        logits, embedding = paired(IMAGES)
        model = load_model(f"{path}[1]").train().eval()
        torch.testing.assert_close(embed(model, IMAGES).embedding, embedding.flatten(1))
        torch.testing.assert_close(embed(load_model(f"{path}[0]"), IMAGES).embedding, logits)
        if format_ == "pt2":
            with pytest.raises(UserError, match=r"old\.pt2: gives 0 \(3, 4\), 1 \(3, 6, 1, 1\); name the embedding's"):
                load_model(path)(IMAGES)
        else:
            torch.testing.assert_close(load_model(path)(IMAGES), embedding)
    description = read_description(f"{path}[1]", where="old_model_path")
    assert identity_of(f"{path}[1]", description) != identity_of(path, read_description(path, where="x"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"x: .* is no model file \("):
        load_model(path, where="x")
    path.write_bytes(content + b" ")
    with pytest.raises(UserError, match=rf"x: the .* {path} is not the one that was trained with"):
        build_model(description, where="x")


class WithConstants(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) + torch.arange(3, dtype=torch.float32) + torch.tensor([1.0, 2.0, 3.0])


def test_an_exported_program_goes_to_a_device_with_its_constants(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(WithConstants(), (IMAGES,)), tmp_path / "m.pt2")
    model = load_model(tmp_path / "m.pt2")
    assert torch.equal(embed(model, IMAGES).embedding, WithConstants()(IMAGES))
    holder = nn.Sequential(model).to("meta").eval()  # as a part of another
    assert holder(IMAGES.to("meta")).device.type == "meta"


def test_a_damaged_exported_program_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("m/models/model.json", "{}")
    with pytest.raises(UserError, match=r"x: the torch\.export file .*m\.pt2 cannot be read; it may be damaged"):
        load_model(tmp_path / "m.pt2", where="x")
    assert "Traceback" not in capsys.readouterr().err


def test_a_transformed_model_keeps_a_reference_and_tells_when_it_has_changed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    write_module(here, "mine_old")
    text = "python:mine_old:model[pooler_output]"
    old = read_description(text, where="old_model_path")
    arguments: dict[str, Any] = {"arch": "ridge", "old_embedding_dim": 6, "new_embedding_dim": 5, "side_info_dim": 0}
    h = build_transformation(**arguments).eval()
    description = describe_transformed(old, None, describe_transformation(h, arguments))
    save_model("x.pt", description, config={}, seed=0)
    del sys.modules["mine_old"]
    with pytest.raises(UserError, match=r"gallery: x.pt calls python:mine_old:model\[pooler_output\], which runs code"):
        load_model("x.pt", where="gallery")
    assert "mine_old" not in sys.modules
    save_model("alone.pt", old, config={}, seed=0)
    with pytest.raises(UserError, match=r"alone.pt holds a model of others, which is named in a config"):
        load_model("alone.pt")
    monkeypatch.setenv("REFILL_TRUST", f"python:mine:other {text}")
    loaded = load_model("x.pt")
    assert isinstance(loaded, TransformedModel)
    with torch.inference_mode():
        expected = h(sys.modules["mine_old"].model()(IMAGES)["pooler_output"]).embedding
        torch.testing.assert_close(embed(loaded, IMAGES).embedding, expected)
    write_module(here, "mine_old", seed=1)
    with pytest.raises(
        UserError, match=r"gallery: python:mine_old:model\[pooler_output\] is not the model that it was"
    ):
        load_model("x.pt", where="gallery")
    other = read_description(text, where="old_model_path")
    assert identity_of(text, other) != identity_of(text, old)


def test_a_network_of_a_library_gives_its_pooled_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = torchvision.models.squeezenet1_1()
    torch.save(plain.state_dict(), tmp_path / "w.pth")
    text = f"torchvision/squeezenet1_1:{tmp_path}/w.pth"
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(
            embed(load_model(text), images).embedding, plain.eval().features(images).mean((2, 3))
        )
    with pytest.raises(UserError, match=rf"x: {text} is a model of a library; this place needs a model file"):
        read_description(text, where="x", foreign=False)
    with pytest.raises(UserError, match=r"x: there is no model file .*gone\.pth"):
        read_description("torchvision/squeezenet1_1:gone.pth", where="x")


def test_a_model_file_of_ours_has_no_outputs_to_name(tmp_path: Path) -> None:
    save_model(tmp_path / "m.pt", describe_backbone(build_backbone(**ARGUMENTS), ARGUMENTS), config={}, seed=0)
    with pytest.raises(UserError, match=r"x: .*m\.pt\[1\]: a model file of ours has one embedding; leave \[1\] out"):
        load_model(f"{tmp_path}/m.pt[1]", where="x")


NORMALISATIONS: list[dict[str, Any]] = [
    {"image_size": 16, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": None},
    {"image_size": 16, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": None},
    {"image_size": 16, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": None},
]


def normalised(levels: torch.Tensor, by: dict[str, Any]) -> torch.Tensor:
    return torch.stack([(levels[:, c] - by["mean"][c]) / by["std"][c] for c in range(3)], dim=1)


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_each_model_sees_images_as_it_was_trained_whatever_the_batch_is(batch: int) -> None:
    """Old model and side-information of two normalisations, within a transformed model and alone."""
    torch.manual_seed(0)
    levels, (first, second, third) = torch.rand(3, 3, 16, 16), NORMALISATIONS
    parts = []
    for expected in (first, second):
        model = build_backbone(**ARGUMENTS).eval()
        parts.append((model, describe_backbone(model, ARGUMENTS, preprocessing=expected)))
    (old, old_file), (side, side_file) = parts
    arguments: dict[str, Any] = {"arch": "ridge", "old_embedding_dim": 6, "new_embedding_dim": 5, "side_info_dim": 6}
    h = build_transformation(**arguments).eval()
    transformed = describe_transformed(old_file, side_file, describe_transformation(h, arguments), third)
    seen = NORMALISATIONS[batch]
    with torch.inference_mode():
        of_old, of_side = (
            embed(model, normalised(levels, by)).embedding for model, by in ((old, first), (side, second))
        )
        images = normalised(levels, seen)
        for description, expected_output in (
            (old_file, of_old),
            (side_file, of_side),
            (transformed, h(of_old, of_side).embedding),
        ):
            found = embed(build_model(description, where="x", seen=seen), images).embedding
            torch.testing.assert_close(found, expected_output, rtol=1e-4, atol=1e-5)
        alone = build_model(transformed, where="x")  # takes images as the transformation's training saw them
        found = embed(alone, normalised(levels, third)).embedding
        torch.testing.assert_close(found, h(of_old, of_side).embedding, rtol=1e-4, atol=1e-5)


def test_a_model_that_says_nothing_of_its_images_takes_them_as_they_are() -> None:
    model = build_backbone(**ARGUMENTS).eval()
    built = build_model(describe_backbone(model, ARGUMENTS), where="x", seen=NORMALISATIONS[0])
    with torch.inference_mode():
        assert torch.equal(embed(built, IMAGES).embedding, embed(model, IMAGES).embedding)
