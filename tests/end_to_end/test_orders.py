"""eval.py by orders that ask for more than embeddings: from models, and from files that bring it along."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.end_to_end.conftest import evaluate
from tests.tiny import fail, succeed

ORDERS = ("confidence", "entropy", "knn_disagreement", "oracle")


def curves(folder: Path, config: str, *arguments: str) -> dict[str, Any]:
    return evaluate(folder, *arguments, config=config)["backfilling"]


@pytest.fixture
def folder(work: Path, evaluated: Path) -> Path:
    """A folder with models, and with the embedding files of an evaluation and the new model's classifier."""
    (work / "kept").symlink_to(evaluated / "embeddings")
    (work / "files.yaml").write_text(
        "embeddings_params: {query: kept/query.npz, gallery: kept/gallery.npz}\neval_params: {backfilling: 3}\n"
    )
    succeed("embed.py", "--config", "embed.yaml", "output_classifier_path=classifier.npy", cwd=work, processes=None)
    np.save(work / "means.npy", np.random.default_rng(0).random((6, 16), np.float32))
    return work


def test_models_and_files_give_the_same_curves(folder: Path) -> None:
    orders = f"eval_params.backfilling_list=[{', '.join(ORDERS)}]"
    of_models = curves(folder, "eval.yaml", orders)
    of_files = curves(folder, "files.yaml", orders, "embeddings_params.classifier=classifier.npy")
    assert tuple(of_models) == ORDERS
    assert of_models == of_files
    random = curves(folder, "files.yaml")["random"]
    assert of_files["oracle"]["auc"]["map"] > random["auc"]["map"]


def test_class_means_come_from_a_file(folder: Path) -> None:
    orders = "eval_params.backfilling_list=[class_distance, knn_disagreement]"
    found = curves(folder, "files.yaml", orders, "embeddings_params.class_means=means.npy")
    assert list(found) == ["class_distance", "knn_disagreement"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval_params.backfilling_list=[confidence]"], "order `confidence` needs a classifier of the new model"),
        (["embeddings_params.classifier=embed.yaml"], "classifier: embed.yaml should be .npy, .npz, "),
        (
            ["embeddings_params.class_means=wide.npy", "eval_params.backfilling_list=[class_distance]"],
            "class_means: embeddings are 17-dimensional, but those of new 16",
        ),
    ],
)
def test_what_an_order_lacks(folder: Path, arguments: list[str], message: str) -> None:
    np.save(folder / "wide.npy", np.zeros((6, 17), np.float32))
    assert message in fail("eval.py", "--config", "files.yaml", *arguments, cwd=folder, processes=None)


def test_a_query_model_without_a_classifier(folder: Path) -> None:
    arguments = ["query_model_path=checkpoints/old_transformed.pt", "eval_params.backfilling_list=[entropy]"]
    error = fail("eval.py", "--config", "eval.yaml", *arguments, cwd=folder, processes=None)
    assert "order `entropy` needs a classifier of the new model; evaluate with a backbone as query model" in error
