"""Backward-compatible training as a user runs it: a new model that queries the old gallery as it is."""

from pathlib import Path

import torch

from tests.end_to_end.conftest import evaluate, write_backbone
from tests.tiny import OLD_MODEL, fail, succeed

SCRIPT = "train_backbone.py"
BCT = ("bct_params.old_model_path=checkpoints/old.pt", "output_model_path=checkpoints/bct.pt")
LONGER = (
    *("epochs=12", "dataset_params.batch_size=8", "optimizer_params.lr=0.05", "precision=fp32"),
    *("validate_every=0", "dataset_params.augmentation=flip"),
)


def test_a_compatible_model_queries_the_old_gallery(work: Path) -> None:
    for overrides in (OLD_MODEL, BCT):
        succeed(SCRIPT, "--config", "backbone.yaml", *overrides, *LONGER, cwd=work, processes=None)
    gallery = ("gallery_model_path=checkpoints/old.pt", "eval_params.backfilling=null")
    figures = {
        query: evaluate(work, f"query_model_path=checkpoints/{query}.pt", *gallery)["metrics"]
        for query in ("bct", "new")
    }
    assert figures["bct"]["map"] > max(0.6, figures["new"]["map"] + 0.1)


def test_old_models_that_will_not_do_are_refused(work: Path) -> None:
    def refuse(*overrides: str) -> str:
        return fail(SCRIPT, "--config", "backbone.yaml", *BCT, *overrides, cwd=work, processes=None)

    transformed = "bct_params.old_model_path=checkpoints/old_transformed.pt"
    assert "old_model_path: checkpoints/old_transformed.pt has no classifier of its own" in refuse(transformed)
    message = refuse("arch_params.embedding_dim=8")
    assert "has embeddings of 16 dimensions, the new model of 8" in message
    assert "set arch_params.embedding_dim=16" in message
    simclr = ("objective=simclr", "dataset_params.augmentation=null", "label_smoothing=0")
    assert "bct_params: is for objective classification" in refuse(*simclr)

    write_backbone(work / "checkpoints" / "old.pt")  # a file that does not say what it was trained on
    assert "bct_params.old_classes: needs the number of classes that checkpoints/old.pt was trained on" in refuse()
    content = torch.load(work / "checkpoints" / "old.pt", weights_only=True)
    content["provenance"]["config"]["objective"] = "simclr"
    torch.save(content, work / "checkpoints" / "old.pt")
    assert "bct_params.old_model_path: checkpoints/old.pt was trained without labels" in refuse()
