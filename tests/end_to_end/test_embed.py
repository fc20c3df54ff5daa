"""embed.py: the embedding files of models are what the models give, and evaluate to the same figures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.embeddings import read_embeddings
from models.model_files import load_model
from models.resnet import ResNet
from tests.tiny import fail, succeed

EMBED = """
model_path: checkpoints/new.pt
dataset_params: {name: cifar100, data_root: data, batch_size: 32, image_size: 16, augmentation: flip}
output_embeddings_path: embeddings/new.npz
"""


@pytest.fixture
def folder(work: Path) -> Path:
    (work / "embed.yaml").write_text(EMBED)
    return work


def embed(folder: Path, *arguments: str, processes: int | None = None) -> str:
    return succeed("embed.py", "--config", "embed.yaml", *arguments, cwd=folder, processes=processes)


def test_files_evaluate_as_their_models_do(folder: Path, evaluated: Path) -> None:
    embed(folder)
    gallery = ("model_path=checkpoints/old_transformed.pt", "output_embeddings_path=embeddings/h")
    assert "embeddings: embeddings/h, (48, 16) float32" in embed(folder, *gallery)
    (folder / "files.yaml").write_text(
        "embeddings_params: {query: embeddings/new.npz, gallery: embeddings/h}\n"
        "eval_params: {backfilling: 3, backfilling_list: [sigma, random, distance]}\n"
    )
    succeed("eval.py", "--config", "files.yaml", "--output", "files.json", cwd=folder, processes=None)
    of_files, of_models = (json.loads(path.read_text()) for path in (folder / "files.json", evaluated / "result.json"))
    for order, curve in of_models["backfilling"].items():
        assert of_files["backfilling"][order]["auc"] == pytest.approx(curve["auc"], abs=1e-6)


def test_all_views_and_the_classifier(folder: Path) -> None:
    files = ("output_embeddings_path=embeddings/views", "output_classifier_path=embeddings/classifier.npy")
    embed(folder, "split=training", "views=all", "embedding_dtype=float16", *files)
    views = read_embeddings(folder / "embeddings" / "views", where="views")
    count = 6 * 24
    assert views.embeddings.dtype == torch.float16
    assert views.ids.tolist() == list(range(2 * count))
    assert views.labels is not None
    assert views.labels.tolist() == 2 * [label for label in range(6) for _ in range(24)]

    model = load_model(folder / "checkpoints" / "new.pt")
    assert isinstance(model, ResNet)
    assert np.array_equal(np.load(folder / "embeddings" / "classifier.npy"), model.fc.weight.flatten(1).detach())
    embed(folder, "split=training", "output_embeddings_path=embeddings/first.npz")
    first = read_embeddings(folder / "embeddings" / "first.npz", where="first").embeddings
    torch.testing.assert_close(views.embeddings[:count].float(), first, rtol=2e-3, atol=1e-4)
    assert not torch.allclose(views.embeddings[count:].float(), first, rtol=1e-2)


def test_two_processes_write_the_file_of_one(folder: Path) -> None:
    embed(folder)
    embed(folder, "output_embeddings_path=embeddings/two.npz", processes=2)
    one, two = (read_embeddings(folder / "embeddings" / f"{name}.npz", where=name) for name in ("new", "two"))
    assert torch.equal(one.ids, two.ids)
    torch.testing.assert_close(one.embeddings, two.embeddings, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["views=all", "dataset_params.augmentation=crop"], "views: random crops are too many to embed"),
        (
            ["model_path=checkpoints/old_transformed.pt", "output_classifier_path=fc.npy"],
            "output_classifier_path: checkpoints/old_transformed.pt has no classifier",
        ),
        (["model_path=checkpoints/transformation.pt"], "is a transformation alone"),
    ],
)
def test_bad_input(folder: Path, arguments: list[str], message: str) -> None:
    assert message in fail("embed.py", "--config", "embed.yaml", *arguments, cwd=folder, processes=None)
