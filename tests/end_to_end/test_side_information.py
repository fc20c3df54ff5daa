"""Side-information trained here: resumed, on two processes, and in the place of the published one."""

from pathlib import Path

import pytest
import torch

from models.model_files import load_model
from models.resnet import ResNet
from tests.end_to_end.conftest import LONG, OUTPUT, copy_of, kill_after, log_of
from tests.tiny import fail, same_bits, state_of, succeed

SCRIPT = "train_backbone.py"
SIMCLR = (
    *("objective=simclr", "dataset_params.augmentation=null", "label_smoothing=0"),
    *("simclr_params.projection_hidden_dim=32", "simclr_params.knn_items=50"),
)


def test_a_killed_run_goes_on_to_the_same_bits(trained: Path, tmp_path: Path) -> None:
    whole, killed = (copy_of(trained, tmp_path / name, without=SCRIPT) for name in ("whole", "killed"))
    kill_after(SCRIPT, killed, *SIMCLR, epochs=2, delay=0.01)
    state = torch.load(killed / f"{OUTPUT[SCRIPT]}.checkpoint.pt", weights_only=True)["state"]["model"]
    assert {name.partition(".")[0] for name in state} == {"backbone", "head"}
    for folder in (whole, killed):
        shown = succeed(SCRIPT, *LONG[SCRIPT], *SIMCLR, cwd=folder, processes=None)
        assert ("resuming after epoch " in shown) == (folder == killed)
        assert "epoch 5: knn accuracy " in shown or folder == killed
    model = f"{OUTPUT[SCRIPT]}.pt"
    assert same_bits(state_of(killed / model), state_of(whole / model))
    for first, second in zip(*(log_of(folder, OUTPUT[SCRIPT]) for folder in (whole, killed)), strict=True):
        assert (first["loss"], first.get("knn_accuracy")) == (second["loss"], second.get("knn_accuracy"))


def test_two_processes_train_a_model_that_serves_as_side_information(work: Path) -> None:
    side = "checkpoints/side_info.pt"
    arguments = ("--config", "backbone.yaml", *SIMCLR, f"output_model_path={side}")
    output = succeed(SCRIPT, *arguments, cwd=work, processes=2)
    assert output.count("epoch 2: knn accuracy ") == 1
    assert 1 / 6 <= log_of(work, "checkpoints/side_info")[-1]["knn_accuracy"] <= 1
    assert isinstance(load_model(work / side), ResNet)

    transformation = ("train_transformation.py", "--config", "transformation.yaml")
    succeed(*transformation, f"side_info_model_path={side}", cwd=work, processes=None)
    description = torch.load(work / "checkpoints" / "old_transformed.pt", weights_only=True)
    assert same_bits(description["side_info"]["state_dict"], state_of(work / side))
    assert "AUC, sigma order" in succeed("eval.py", "--config", "eval.yaml", cwd=work, processes=None)

    # As the new model it has no classifier: its `fc` has learned nothing.
    as_new = (*transformation, f"new_model_path={side}")
    refused = fail(*as_new, cwd=work, processes=None)
    assert "objective_params.discriminative_loss: needs a new model with a classifier" in refused
    contrast = ("objective_params.discriminative_loss.name=InfoNCE", "refinement_params={held_out: 0.25}")
    refused = fail(*as_new, *contrast, cwd=work, processes=None)
    assert "refinement_params: needs a new model with a classifier" in refused
    succeed(*as_new, *contrast, "refinement_params.clusters=4", cwd=work, processes=None)
    evaluation = ("eval.py", "--config", "eval.yaml", f"query_model_path={side}")
    orders = "eval_params.backfilling_list=[confidence, auto]"
    assert "AUC, confidence order" in succeed(*evaluation, orders, cwd=work, processes=None)  # by clusters
    succeed(*as_new, contrast[0], cwd=work, processes=None)
    assert "order `confidence` needs" in fail(*evaluation, orders, cwd=work, processes=None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("micro_batch=8", "micro_batch: does not go with simclr, which compares all images of a batch"),
        ("dataset_params.augmentation=flip", "dataset_params.augmentation: simclr has its own (simclr_params)"),
        ("label_smoothing=0.1", "label_smoothing: simclr has no labels"),
        ("objective=classification", "simclr_params: is for objective simclr"),
    ],
)
def test_what_does_not_go_with_simclr_is_refused(work: Path, override: str, message: str) -> None:
    assert message in fail(SCRIPT, "--config", "backbone.yaml", *SIMCLR, override, cwd=work, processes=None)
