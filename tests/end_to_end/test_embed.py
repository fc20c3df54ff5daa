"""embed.py: the embedding files of models are what the models give, and evaluate to the same figures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.embeddings import read_embeddings
from models.model_files import load_model
from models.resnet import ResNet
from tests.end_to_end.conftest import evaluate, result_of
from tests.tiny import fail, state_of, succeed
from utils.config import parse_yaml


def embed(work: Path, *arguments: str, processes: int | None = None) -> str:
    return succeed("embed.py", "--config", "embed.yaml", *arguments, cwd=work, processes=processes)


def test_files_evaluate_as_their_models_do(work: Path, evaluated: Path) -> None:
    """The transformed embeddings by the transformed model, and by the transformation of the old ones."""
    embed(work)
    transformed = ("model_path=checkpoints/old_transformed.pt", "output_embeddings_path=embeddings/h")
    assert "embeddings: embeddings/h, (48, 16) float32" in embed(work, *transformed)
    embed(work, "model_path=checkpoints/old.pt", "output_embeddings_path=embeddings/old.npz")
    (work / "files.yaml").write_text(
        "embeddings_params: {query: embeddings/new.npz, gallery: embeddings/h}\n"
        "eval_params: {backfilling: 3, backfilling_list: [sigma, random, distance]}\n"
    )
    of_models = result_of(evaluated)["backfilling"]
    old, transformation = "embeddings_params.gallery=embeddings/old.npz", "embeddings_params.transformation=checkpoints"
    for gallery in ((), (old, f"{transformation}/transformation.pt")):
        of_files = evaluate(work, *gallery, config="files.yaml")["backfilling"]
        assert list(of_files) == list(of_models)
        for order, curve in of_models.items():
            assert of_files[order]["auc"] == pytest.approx(curve["auc"], abs=1e-6)
    files = ("--config", "files.yaml", old, f"{transformation}/new.pt")
    refused = fail("eval.py", *files, cwd=work, processes=None)
    assert "is a model of images" in refused


def test_all_views_and_the_classifier(work: Path) -> None:
    files = ("output_embeddings_path=embeddings/views", "output_classifier_path=embeddings/classifier.npy")
    embed(work, "split=training", "views=all", "embedding_dtype=float16", *files)
    views = read_embeddings(work / "embeddings" / "views", where="views")
    count = 6 * 24
    assert views.embeddings.dtype == torch.float16
    assert views.ids is not None
    assert views.ids.tolist() == list(range(2 * count))
    assert views.labels is not None
    assert views.labels.tolist() == 2 * [label for label in range(6) for _ in range(24)]

    model = load_model(work / "checkpoints" / "new.pt")
    assert isinstance(model, ResNet)
    assert np.array_equal(np.load(work / "embeddings" / "classifier.npy"), model.fc.weight.flatten(1).detach())
    embed(work, "split=training", "output_embeddings_path=embeddings/first.npz")
    first = read_embeddings(work / "embeddings" / "first.npz", where="first").embeddings
    torch.testing.assert_close(views.embeddings[:count].float(), first, rtol=2e-3, atol=1e-4)
    assert not torch.allclose(views.embeddings[count:].float(), first, rtol=1e-2)


def test_a_transformation_of_files_is_the_one_of_the_models(work: Path) -> None:
    """With nothing held out the recipe is the papers', as from models and images."""
    for model in ("old", "new"):
        embed(
            work,
            f"model_path=checkpoints/{model}.pt",
            *("split=training", "embedding_dtype=float16", f"output_embeddings_path=embeddings/{model}_training"),
            *(["output_classifier_path=embeddings/classifier.npy"] if model == "new" else []),
        )
    images = ("--config", "transformation.yaml", "dataset_params.augmentation=none", "cache_embeddings=memory")
    succeed("train_transformation.py", *images, "precision=fp32", cwd=work, processes=None)
    of_models = state_of(work / "checkpoints" / "transformation.pt")
    recipe = parse_yaml((work / "transformation.yaml").read_text())
    kept = ("optimizer_params", "lr_policy_params", "objective_params", "epochs", "switch_mode_to_eval")
    fit = {name: recipe[name] for name in kept} | {
        "old": "embeddings/old_training",
        "new": "embeddings/new_training",
        "classifier": "embeddings/classifier.npy",
        "method": "fastfill",
        "inner_dim": 32,
        "held_out": 0,
        "batch_size": 32,
        "output": "checkpoints/of_files.pt",
    }
    (work / "files.yaml").write_text(json.dumps(fit))
    files = ("--config", "files.yaml", "precision=fp32")
    succeed("fit_embeddings.py", *files, cwd=work, processes=None)
    of_files = state_of(work / "checkpoints" / "of_files.pt")
    for name, weights in of_models.items():
        torch.testing.assert_close(of_files[name], weights, rtol=1e-4, atol=1e-5)
    auto = fail("fit_embeddings.py", *files, "method=auto", cwd=work, processes=None)
    assert "auto chooses by held-out pairs" in auto
    before = fail("train_transformation.py", *images, "embeddings_params.old=old.npz", cwd=work, processes=None)
    assert "embeddings_params: embedding files have a script of their own now: python fit_embeddings.py" in before


def test_two_processes_write_the_file_of_one(work: Path) -> None:
    embed(work)
    embed(work, "output_embeddings_path=embeddings/two.npz", processes=2)
    one, two = (read_embeddings(work / "embeddings" / f"{name}.npz", where=name) for name in ("new", "two"))
    assert np.array_equal(one.ids, two.ids)  # type: ignore[arg-type]
    torch.testing.assert_close(one.embeddings, two.embeddings, rtol=1e-5, atol=1e-6)


def test_views_that_are_too_many_and_a_classifier_that_is_not_there(work: Path) -> None:
    transformed = ("model_path=checkpoints/old_transformed.pt", "output_classifier_path=fc.npy")
    for arguments, message in [
        (("views=all", "dataset_params.augmentation=crop"), "views: random crops are too many to embed"),
        (transformed, "output_classifier_path: checkpoints/old_transformed.pt has no classifier"),
    ]:
        assert message in fail("embed.py", "--config", "embed.yaml", *arguments, cwd=work, processes=None)
