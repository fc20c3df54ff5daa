"""An upgrade between networks of a library, and frozen models of others in every place of the scripts."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from torch import nn

from models.model_files import load_model
from tests.end_to_end.conftest import evaluate
from tests.tiny import fail, state_of, succeed, write_configs, write_images

OLD, NEW = "squeezenet1_1", "mobilenet_v3_small"
SMALL = ("dataset_params.image_size=32", "dataset_params.augmentation=flip", "epochs=1")
# What the tiny config says of a residual network.
BACKBONE = (
    "arch_params={num_classes: 6, arch: ARCH, embedding_dim: DIM, weights: none}",
    "optimizer_params.lr=0.01",
    *SMALL,
    "lr_policy_params.warmup_length=0",
)


def backbone(arch: str, dim: str) -> list[str]:
    return [each.replace("ARCH", arch).replace("DIM", dim) for each in BACKBONE]


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, two networks of torchvision and the transformation between them; not to be written to."""
    folder = tmp_path_factory.mktemp("libraries")
    write_images(folder / "data", classes=6, training=8, validation=4)
    write_configs(folder)
    (folder / "backbone.yaml").write_text(
        (folder / "backbone.yaml").read_text().replace("\narch_params: {", "\n# arch_params: {")
    )
    old = [*backbone(f"torchvision/{OLD}", "null"), "output_model_path=checkpoints/old.pt"]
    new = [*backbone(f"torchvision/{NEW}", "16"), "export_formats=[safetensors]"]
    for arguments in (old, new):
        succeed("train_backbone.py", "--config", "backbone.yaml", *arguments, cwd=folder, processes=None)
    succeed("train_transformation.py", "--config", "transformation.yaml", *SMALL, cwd=folder, processes=None)
    return folder


def test_old_and_new_network_transformation_and_evaluation(upgraded: Path) -> None:
    result = evaluate(upgraded, "dataset_params.image_size=32")
    assert set(result["backfilling"]) == {"sigma", "random", "distance"}
    content = torch.load(upgraded / "checkpoints" / "old.pt", weights_only=True)
    assert content["arguments"] == {
        "arch": f"torchvision/{OLD}",
        "num_classes": 6,
        "embedding_dim": None,
        "image_size": 32,
    }
    assert content["classes"] == list("012345")
    assert content["preprocessing"]["image_size"] == 32


def test_safetensors_are_the_librarys_parameters_by_name(upgraded: Path) -> None:
    """What another program does: numpy and torchvision alone, by what the JSON says."""
    path = upgraded / "checkpoints" / "new.safetensors"
    described = json.loads(path.with_suffix(".json").read_text())
    assert described["arguments"] == {
        "arch": f"torchvision/{NEW}",
        "num_classes": 6,
        "embedding_dim": 16,
        "image_size": 32,
    }
    assert described["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    state, arrays = load_file(path), load_arrays(path)
    assert {name: array.shape for name, array in arrays.items()} == {
        name: tuple(tensor.shape) for name, tensor in state_of(path.with_suffix(".pt")).items()
    }
    plain = torchvision.models.get_model(NEW)
    plain.classifier[-1] = nn.Identity()
    of_network = {n.removeprefix("features."): t for n, t in state.items() if n.startswith("features.")}
    plain.load_state_dict(of_network)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        embedding = plain.eval()(images).numpy() @ arrays["projection.weight"].T
        logits = embedding @ arrays["fc.weight"][:, :, 0, 0].T
        expected = load_model(path.with_suffix(".pt"))(images)
    np.testing.assert_allclose(logits, expected[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(embedding, expected[1].flatten(1), rtol=1e-3, atol=1e-5)


MODULE = """
import torch
from torch import nn


class Named(nn.Module):
    def forward(self, images):
        pooled = nn.functional.adaptive_avg_pool2d(images, 2)
        return {"tokens": images, "pooled": pooled.flatten(1)}


def model():
    return Named()
"""


def test_models_of_others_are_old_new_side_information_query_and_gallery(
    upgraded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library's with weights in a file, an exported program and a function's."""
    write_configs(tmp_path)
    (tmp_path / "data").symlink_to(upgraded / "data")
    (tmp_path / "pooled_model.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(OLD).state_dict(), tmp_path / "w.pth")
    program = torch.export.export(
        nn.Sequential(nn.Conv2d(3, 5, 3, 4), nn.AdaptiveAvgPool2d(1)),
        (torch.zeros(2, 3, 32, 32),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    torch.export.save(program, tmp_path / "side.pt2")
    library, function = f"torchvision/{OLD}:w.pth", "python:pooled_model:model[pooled]"
    models = [
        f"old_model_path={library}",
        f"new_model_path={function}",
        "side_info_model_path=side.pt2",
        "objective_params={similarity_loss: {name: mse}}",
    ]
    run = ("--config", "transformation.yaml", *models, *SMALL, "arch_params={arch: fct, inner_dim: 16}")
    succeed("train_transformation.py", *run, "export_formats=[safetensors]", cwd=tmp_path, processes=None)
    transformed = json.loads((tmp_path / "checkpoints" / "old_transformed.json").read_text())
    assert (transformed["old"]["reference"], transformed["side_info"]["path"]) == (library, "side.pt2")
    assert transformed["transformation"]["arguments"]["new_embedding_dim"] == 12
    kept = sorted((tmp_path / "checkpoints" / "embeddings").iterdir())
    assert len(kept) == 6  # three models in two views
    succeed("train_transformation.py", *run, "seed=1", cwd=tmp_path, processes=None)
    assert sorted((tmp_path / "checkpoints" / "embeddings").iterdir()) == kept  # they are known again

    size = "dataset_params.image_size=32"
    result = evaluate(tmp_path, f"query_model_path={function}", size, "eval_params.backfilling=null")
    assert result["num_queries"] == 24
    for model, name in ((function, "new"), ("checkpoints/old_transformed.pt", "h")):
        files = (f"model_path={model}", f"output_embeddings_path={name}.npz", size)
        succeed("embed.py", "--config", "embed.yaml", *files, cwd=tmp_path, processes=None)
    of_files = "embeddings_params: {query: new.npz, gallery: h.npz}\n"
    (tmp_path / "files.yaml").write_text(of_files)
    assert evaluate(tmp_path, config="files.yaml")["metrics"] == pytest.approx(result["metrics"], abs=1e-6)

    evaluation = ("--config", "eval.yaml", "eval_params.backfilling=null")
    for arguments, message in (
        (("gallery_model_path=side.pt2[1]", size), "side.pt2: there is no output 1"),
        ((f"gallery_model_path={function.partition('[')[0]}", size), "gives tokens (2, 3, 32, 32), pooled (2, 12);"),
        (("gallery_model_path=torchvision/squeezenet1_2", size), "names like it: squeezenet1_1, squeezenet1_0"),
        (("gallery_model_path=side.pt2", "dataset_params.image_size=2"), "gallery_model_path: the model does not take"),
    ):
        query = f"query_model_path={function}"
        assert message in fail("eval.py", *evaluation, query, *arguments, cwd=tmp_path, processes=None, leaves=())
    new = (f"new_model_path={library}", "old_model_path=side.pt2", *SMALL)  # FastFill asks for its classifier
    message = fail("train_transformation.py", "--config", "transformation.yaml", *new, cwd=tmp_path, processes=None)
    assert f"new_model_path: {library} is a model of a library; this place needs a model file" in message


def test_image_sizes_that_models_do_not_agree_on_are_asked_for(upgraded: Path, tmp_path: Path) -> None:
    """The config says none, and the model files do."""
    (tmp_path / "data").symlink_to(upgraded / "data")
    evaluation = {"query_model_path": "old.pt", "gallery_model_path": "new.pt", "eval_params": {"compute_map": False}}
    data = {"name": "cifar100", "data_root": "data", "batch_size": 32}
    (tmp_path / "eval.yaml").write_text(json.dumps({**evaluation, "dataset_params": data}))
    for name, size in (("old", 32), ("new", 40)):
        content = torch.load(upgraded / "checkpoints" / f"{name}.pt", weights_only=True)
        content["preprocessing"]["image_size"] = size
        torch.save(content, tmp_path / f"{name}.pt")
    refused = fail("eval.py", "--config", "eval.yaml", cwd=tmp_path, processes=None)
    listed = "query_model_path of 32 px, gallery_model_path of 40 px"
    assert f"dataset_params.image_size: the models take images of different sizes ({listed}); set it" in refused
    same = ("gallery_model_path=old.pt",)
    (tmp_path / "backbone.yaml").write_text((upgraded / "backbone.yaml").read_text())
    small = ("--config", "backbone.yaml", *backbone(f"torchvision/{OLD}", "16"), "dataset_params.image_size=8")
    refused = fail("train_backbone.py", *small, cwd=tmp_path, processes=None)
    assert f"dataset_params.image_size: torchvision/{OLD}: the model does not take 2 images of 8 px (" in refused
    by_default = evaluate(tmp_path, *same)
    assert by_default == evaluate(tmp_path, *same, "dataset_params.image_size=32")


def test_a_residual_network_gives_way_to_convnext_at_64_px(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if not request.config.getoption("--all-networks"):
        pytest.skip("some minutes: --all-networks")
    write_images(tmp_path / "data", classes=6, training=16, validation=4, size=64)
    write_configs(tmp_path)
    text = (tmp_path / "backbone.yaml").read_text()
    (tmp_path / "backbone.yaml").write_text(text.replace("\narch_params: {", "\n# arch_params: {"))
    size = "dataset_params.image_size=64"
    for arch, name in (("resnet18", "old"), ("convnext_tiny", "new")):
        output = f"output_model_path=checkpoints/{name}.pt"
        run = ("--config", "backbone.yaml", *backbone(f"torchvision/{arch}", "16"), output, size)
        succeed("train_backbone.py", *run, cwd=tmp_path, processes=None)
    succeed("train_transformation.py", "--config", "transformation.yaml", *SMALL, size, cwd=tmp_path, processes=None)
    assert evaluate(tmp_path, size)["num_queries"] == 24
