"""Backward-compatible training as a user runs it: a new model that queries the old gallery as it is."""

import json
from pathlib import Path

import pytest
import torch

from tests.end_to_end.test_bad_input import write_backbone
from tests.tiny import fail, same_bits, state_of, succeed

SCRIPT = "train_backbone.py"
BCT = ("bct_params.old_model_path=checkpoints/old.pt", "output_model_path=checkpoints/bct.pt")


def test_a_compatible_model_queries_the_old_gallery(work: Path) -> None:
    succeed(SCRIPT, "--config", "backbone.yaml", *BCT, "epochs=6", cwd=work, processes=None)
    assert not same_bits(state_of(work / "checkpoints" / "bct.pt"), state_of(work / "checkpoints" / "new.pt"))
    gallery = ("gallery_model_path=checkpoints/old.pt", "eval_params.backfilling=null")
    figures = {}
    for query in ("bct", "new"):
        arguments = (f"query_model_path=checkpoints/{query}.pt", *gallery, "--output", f"{query}.json")
        succeed("eval.py", "--config", "eval.yaml", *arguments, cwd=work, processes=None)
        figures[query] = json.loads((work / f"{query}.json").read_text())["metrics"]
    assert figures["bct"]["map"] > figures["new"]["map"] + 0.1


def test_two_processes_start_from_the_rows_of_one(work: Path) -> None:
    """With a tiny learning rate the loss of the first epoch is that of the rows and the weights at the start."""
    losses = []
    for processes in (None, 2):
        arguments = ("epochs=1", "optimizer_params.lr=1e-9", "dataset_params.augmentation=none", "resume=False")
        succeed(SCRIPT, "--config", "backbone.yaml", *BCT, *arguments, cwd=work, processes=processes)
        (line,) = (work / "checkpoints" / "bct.log.jsonl").read_text().splitlines()
        losses.append(json.loads(line)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # batch statistics are each process's own


def test_old_models_that_will_not_do_are_refused(work: Path) -> None:
    def refuse(*overrides: str) -> str:
        return fail(SCRIPT, "--config", "backbone.yaml", *BCT, *overrides, cwd=work, processes=None)

    where = "bct_params.old_model_path: "
    transformed = "bct_params.old_model_path=checkpoints/old_transformed.pt"
    assert f"{where}checkpoints/old_transformed.pt has no classifier of its own" in refuse(transformed)
    message = refuse("arch_params.embedding_dim=8")
    assert "has embeddings of 16 dimensions, the new model of 8" in message
    assert "set arch_params.embedding_dim=16" in message
    assert "bct_params.old_classes: needs the number of classes" in refuse("bct_params.old_classes=7")
    assert "bct_params.weight: should be at least 0.0" in refuse("bct_params.weight=-1")
    assert "bct_params.old_model_path: there is no none.pt" in refuse("bct_params.old_model_path=none.pt")
    simclr = ("objective=simclr", "dataset_params.augmentation=null", "label_smoothing=0")
    assert "bct_params: is for objective classification" in refuse(*simclr)

    write_backbone(work / "checkpoints" / "old.pt")  # a file that does not say what it was trained on
    assert "bct_params.old_classes: needs the number of classes that checkpoints/old.pt was trained on" in refuse()
    content = torch.load(work / "checkpoints" / "old.pt", weights_only=True)
    content["provenance"]["config"]["objective"] = "simclr"
    torch.save(content, work / "checkpoints" / "old.pt")
    assert f"{where}checkpoints/old.pt was trained without labels" in refuse()
