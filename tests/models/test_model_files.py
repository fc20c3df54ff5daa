"""Model files: what is saved comes back, and what is no model is refused without running it."""

import errno
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from models import Transformed, TransformedModel, embed
from models.backbones import build_backbone
from models.foreign import is_torchscript
from models.model_files import (
    VERSION,
    Description,
    build_model,
    check_inputs,
    describe_backbone,
    describe_refined,
    describe_transformation,
    describe_transformed,
    load_model,
    read_description,
    save_model,
)
from models.refinement import RefinedTransformation
from models.transformations import TRANSFORMATIONS, build_transformation
from models.transformed import Transformation
from tests.tiny import write_torchscript
from utils.errors import UserError

ARGUMENTS: dict[str, Any] = {"arch": "ResNet18", "num_classes": 4, "embedding_dim": 6, "width": 0.0625, "stem": "cifar"}
DIMS = {"old_embedding_dim": 6, "new_embedding_dim": 8, "side_info_dim": 6}
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def backbone() -> tuple[nn.Module, Description]:
    model = build_backbone(**ARGUMENTS).train()
    model(torch.randn(8, 3, 16, 16))  # statistics that differ from fresh ones
    return model.eval(), describe_backbone(model, ARGUMENTS)


def transformation(**arguments: Any) -> tuple[Transformation, Description]:
    arguments = {"arch": "fastfill", "inner_dim": 10, **DIMS} if not arguments else {**DIMS, **arguments}
    model = build_transformation(**arguments).eval()
    return model, describe_transformation(model, arguments)


def save(path: Path, description: Description) -> Path:
    save_model(path, description, config={"epochs": 3}, seed=5)
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path / "model.pt", backbone()[1])


def test_a_model_comes_back_as_it_was_when_it_was_described(tmp_path: Path) -> None:
    model, description = backbone()
    expected = model(IMAGES)
    nn.init.zeros_(model.get_parameter("fc.weight"))
    loaded = load_model(save(tmp_path / "new" / "m.pt", description))
    assert not loaded.training
    for actual, right in zip(loaded(IMAGES), expected, strict=True):
        assert torch.equal(actual, right)


@pytest.mark.parametrize("with_side", [False, True])
def test_a_transformed_model_comes_back_whole(tmp_path: Path, with_side: bool) -> None:
    (old, old_file), (h, h_file), (side, side_file) = backbone(), transformation(), backbone()
    description = describe_transformed(old_file, side_file if with_side else None, h_file)
    loaded = load_model(save(tmp_path / "x.pt", description))
    assert isinstance(loaded, TransformedModel)
    with torch.inference_mode():
        expected = h(old(IMAGES)[1].flatten(1), side(IMAGES)[1].flatten(1) if with_side else None)
        for actual, right in zip(embed(loaded, IMAGES), expected, strict=True):
            assert torch.equal(actual, right)  # type: ignore[arg-type]


@torch.inference_mode()
def test_a_torchscript_archive_is_a_model_and_a_part_is_kept_by_path_and_hash(tmp_path: Path) -> None:
    archive = tmp_path / "side.pt"
    write_torchscript(archive, dim=6)
    expected = load_model(archive)(IMAGES).flatten(1)
    assert torch.equal(expected, torch.jit.load(archive)(IMAGES).flatten(1))
    with pytest.raises(UserError, match=r"new_model_path: .*side\.pt is a TorchScript archive; this place needs"):
        read_description(archive, where="new_model_path", foreign=False)
    (old, old_file), (h, h_file) = backbone(), transformation()
    side = read_description(archive, where="side_info_model_path")
    path = save(tmp_path / "x.pt", describe_transformed(old_file, side, h_file))
    assert torch.equal(embed(load_model(path), IMAGES).embedding, h(old(IMAGES)[1], expected).embedding)
    write_torchscript(archive, dim=6)  # of other weights
    with pytest.raises(UserError, match=r"gallery: the TorchScript archive .*side\.pt is not the one"):
        load_model(path, where="gallery")
    archive.unlink()
    with pytest.raises(UserError, match=r"gallery: needs the TorchScript archive .*side\.pt, which is not there"):
        load_model(path, where="gallery")
    with zipfile.ZipFile(archive, "w") as damaged:
        damaged.writestr("side/constants.pkl", "nothing")
    with pytest.raises(UserError, match=r"where: the TorchScript archive .*side\.pt cannot be read"):
        load_model(archive, where="where")


def test_the_file_holds_plain_values_with_their_provenance(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    assert content["arguments"] == ARGUMENTS
    provenance = content["provenance"]
    assert (provenance["config"], provenance["seed"]) == ({"epochs": 3}, 5)
    assert provenance["versions"]["torch"] == str(torch.__version__)
    assert {"git_revision", "created"} <= set(provenance)
    assert not is_torchscript(saved)


class Bomb:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    torch.save({"format": "refill-model", "version": 1, "bomb": Bomb(trace)}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb(trace), protocol=2))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(UserError, match=rf"old_model_path: .*{name} is no model file"):
            load_model(tmp_path / name, where="old_model_path")
    assert not trace.exists()
    pickle.loads((tmp_path / "plain.pt").read_bytes())
    assert trace.exists()  # the bomb was live


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
@example(content=b"")
@example(content=b"PK\x03\x04 torn")
def test_any_bytes_are_refused_as_a_users_mistake(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    reason = r"neither written by torch\.save nor TorchScript" if content else "it is empty"
    with pytest.raises(UserError, match=rf"where: .*m\.pt is no model file \({reason}"):
        load_model(path, where="where")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_file_cut_short_is_refused(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"is no model file \(neither written by torch\.save nor TorchScript, or cut"):
        load_model(saved)


def test_what_torch_saved_for_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    for foreign in (backbone()[0].state_dict(), torch.zeros(3), [1, 2], {"format": "another"}):
        torch.save(foreign, path)
        with pytest.raises(UserError, match=r"is no model file of ours \(a \w+ saved by torch\)"):
            load_model(path)
    torch.save(backbone()[0], path)  # a pickled module
    with pytest.raises(UserError, match=r"is no model file \(a zip archive without"):
        load_model(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"is no model file \(a zip archive without"):
        load_model(path)


def test_a_missing_file_a_folder_and_a_transformation_where_images_are_embedded(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(UserError, match=f"where: there is no model file {path}"):
            load_model(path, where="where")
    h, description = transformation()
    outer = RefinedTransformation(h, num_classes=2, new_embedding_dim=8, strength=0.1)
    for alone in (description, describe_refined(outer, description, {})):
        path = save(tmp_path / "t.pt", alone)
        with pytest.raises(UserError, match=r"query: .*t\.pt is a transformation alone; this place needs a model that"):
            load_model(path, where="query", transformation=False)


def test_weights_of_another_architecture_name_the_first_difference() -> None:
    description = backbone()[1]
    with pytest.raises(UserError, match=r"w: the file's weights do not fit its architecture \(size mismatch for fc"):
        build_model({**description, "arguments": {**ARGUMENTS, "num_classes": 9}}, where="w")
    del description["state_dict"]["fc.weight"]
    with pytest.raises(UserError, match=r'architecture \(Missing key\(s\) in state_dict: "fc\.weight"'):
        build_model(description, where="w")


def test_a_newer_format_and_an_unknown_kind(tmp_path: Path, saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    torch.save({**content, "version": VERSION + 1}, saved)
    with pytest.raises(UserError, match=rf"format version {VERSION + 1}; this code reads up to {VERSION}"):
        load_model(saved)
    torch.save({**content, "kind": "gan"}, saved)
    with pytest.raises(UserError, match="unknown kind of model, 'gan'"):
        load_model(saved)


def test_a_failed_save_leaves_the_old_model(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"model\.pt: no space left"):
        save(saved, backbone()[1])
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_embed_takes_any_models_output() -> None:
    raw = torch.arange(6.0, dtype=torch.bfloat16).view(2, 3)
    outputs: list[Any] = [raw, raw[:, :, None, None], (raw.new_zeros(2, 9), raw[:, :, None, None])]
    for output in (*outputs, Transformed(raw, None), Transformed(raw, raw[:, :1])):
        embedded = embed(nn.Identity(), output)
        assert embedded.embedding.dtype == torch.float32
        assert torch.equal(embedded.embedding, raw.float())
    assert embedded.log_variance is not None
    assert embedded.log_variance.tolist() == [[0.0], [3.0]]


@pytest.mark.parametrize("arch", sorted(TRANSFORMATIONS))
@pytest.mark.parametrize("side_info_dim", [0, 5, 6])
@pytest.mark.parametrize("head", [None, 0, 5, 6])
@pytest.mark.parametrize("refined", [False, True])
def test_inputs_are_taken_that_the_model_computes_with(
    arch: str, side_info_dim: int, head: int | None, refined: bool
) -> None:
    """Of every transformation, with and without a residual head over the old embedding and side-information."""
    kind = TRANSFORMATIONS[arch]
    if kind.old_stands_in if not side_info_dim else not kind.takes_side_info:
        return  # there is no such transformation
    arguments: dict[str, Any] = {"arch": arch, "side_info_dim": side_info_dim}
    if kind.inner_dim is not None:
        arguments["inner_dim"] = 8
    if head is not None:
        arguments["residual_inputs"] = 6 + head
    model, description = transformation(**arguments)
    if refined:
        outer = RefinedTransformation(model, num_classes=2, new_embedding_dim=8, strength=0.1)
        description = describe_refined(outer, description, {})
    for old, side in ((6, None), (6, 5), (6, 6), (7, None), (8, 5), (4, 6), (7, 5)):
        # An affine map of both side by side would compute with 7 and 5 as with 6 and 6, and mix them up.
        computes = old == 6 and (side is None or kind.takes_side_info)
        try:
            model(torch.randn(2, old), None if side is None else torch.randn(2, side))
        except RuntimeError:
            computes = False
        if computes:
            check_inputs(description, old, side, where="w")
        else:
            given = "no side-information" if side is None else f"side-information of {side}"
            refusal = f"w does not take embeddings of dimension {old} with {given}, but of 6 w"
            with pytest.raises(UserError, match=refusal):
                check_inputs(description, old, side, where="w")
