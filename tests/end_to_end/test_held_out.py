"""Choosing without a look at the validation images, and evaluating on a part of the items."""

import shutil
from pathlib import Path

from tests.end_to_end.conftest import evaluate
from tests.tiny import fail, succeed, write_images

HELD_OUT = ("dataset_params.held_out=0.25",)


def test_training_and_evaluation_where_there_are_no_validation_images(work: Path) -> None:
    (work / "data").unlink()
    write_images(work / "data", classes=6, training=24, validation=8)
    shutil.rmtree(work / "data" / "validation")
    backbone = ("--config", "backbone.yaml", "epochs=1", "validate_every=1")
    assert "has no folder `validation`" in fail("train_backbone.py", *backbone, cwd=work, processes=None)
    assert "validation accuracy" in succeed("train_backbone.py", *backbone, *HELD_OUT, cwd=work, processes=None)
    succeed("train_transformation.py", "--config", "transformation.yaml", *HELD_OUT, cwd=work, processes=None)
    result = evaluate(work, *HELD_OUT)
    assert (result["num_queries"], result["num_gallery"]) == (36, 36)  # 6 of the 24 images of each class

    (work / "data" / "training" / "0").rename(work / "class")
    (work / "data" / "training" / "0").mkdir()
    shutil.move(next((work / "class").iterdir()), work / "data" / "training" / "0")
    message = "dataset_params.held_out: class 0 has 1 training images, too few"
    assert message in fail("eval.py", "--config", "eval.yaml", *HELD_OUT, cwd=work, processes=None)


def test_a_part_of_the_items_of_models_and_of_files(work: Path) -> None:
    kept = "eval_params.embeddings_output_dir=kept"
    files = (
        *("embeddings_params={query: kept/query.npz, gallery: kept/gallery.npz}", "query_model_path=null"),
        *("gallery_model_path=null", "dataset_params=null"),
    )
    for arguments, count in [
        (("eval_params.subset.imbalance=4",), 8 + 6 + 5 + 3 + 3 + 2),  # 8 / 4^(r / 5)
        (("eval_params.subset.classes=[0, 1]", kept), 8),
        ((*files, "eval_params.subset.imbalance=2"), 8),
    ]:
        assert evaluate(work, *arguments)["num_gallery"] == count
    command = ("eval.py", "--config", "eval.yaml", *files, "eval_params.subset.classes=[3, 4]")
    message = fail(*command, cwd=work, processes=None)
    assert "eval_params.subset.classes: no item has a label from 3 to 3" in message
