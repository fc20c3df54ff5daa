"""The baselines by the same scripts, configs and files as FCT and FastFill."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.embedding import embed
from models.model_files import load_model
from tests.end_to_end.conftest import evaluate, log_of
from tests.tiny import fail, same_bits, state_of, succeed, write_torchscript

TRANSFORMATION = """
old_model_path: checkpoints/old.pt
new_model_path: checkpoints/new.pt
arch_params: {arch: ridge}
dataset_params: {name: cifar100, data_root: data, batch_size: 32, image_size: 16, augmentation: flip}
output_transformation_path: baseline/transformation.pt
output_transformed_old_model_path: baseline/old_transformed.pt
"""


@pytest.fixture
def folder(work: Path) -> Path:
    (work / "baseline.yaml").write_text(TRANSFORMATION)
    return work


def train(folder: Path, *arguments: str, processes: int | None = None) -> str:
    return succeed("train_transformation.py", "--config", "baseline.yaml", *arguments, cwd=folder, processes=processes)


def evaluated(folder: Path, *arguments: str) -> dict[str, Any]:
    """The result for a gallery of the transformed old model, unless the arguments name another."""
    orders = "eval_params.backfilling_list=[random, distance]"
    result = evaluate(folder, orders, "gallery_model_path=baseline/old_transformed.pt", *arguments)
    assert [len(curve["map"]) for curve in result["backfilling"].values()] == [5, 5]
    return result


def map_of_gallery(folder: Path, *arguments: str) -> float:
    """mAP before any backfilling."""
    return evaluated(folder, *arguments)["metrics"]["map"]


def error_of_gallery(folder: Path, *arguments: str) -> float:
    """The mean distance of the gallery's embeddings from the new model's."""
    return evaluated(folder, *arguments)["risk_coverage"]["distance"]["alignment_error"]["aurc"]["random"]


@pytest.mark.parametrize("arch", ["procrustes", "ridge"])
def test_a_closed_form_is_fitted_evaluated_and_exported(folder: Path, arch: str) -> None:
    output = train(folder, f"arch_params.arch={arch}", "export_formats=[torchscript, pt2]")
    # Each of the 144 images is there twice: as it is, and flipped.
    assert f"{arch}: items 288" in output
    assert [record["items"] for record in log_of(folder, "baseline/transformation")] == [288]
    names = {"transformation.pt", "transformation.config.yaml", "transformation.log.jsonl", "old_transformed.pt"}
    names |= {"old_transformed.torchscript.pt", "old_transformed.pt2", "embeddings"}
    assert {path.name for path in (folder / "baseline").iterdir()} == names
    identity = map_of_gallery(folder, "gallery_model_path=checkpoints/old.pt")
    assert map_of_gallery(folder) > identity
    images = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        expected = embed(load_model(folder / "baseline" / "old_transformed.pt"), images).embedding
        for exported in (
            torch.jit.load(folder / "baseline" / "old_transformed.torchscript.pt"),
            torch.export.load(folder / "baseline" / "old_transformed.pt2").module(),
        ):
            (embedding,) = exported(images)
            torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-4)


def test_the_residual_mlp_is_trained_as_fct_is(folder: Path) -> None:
    train(folder, "arch_params.arch=residual_mlp", "optimizer_params={algorithm: adam, lr: 1e-2}", "epochs=30")
    log = log_of(folder, "baseline/transformation")
    assert len(log) == 30
    assert log[-1]["loss"] < log[0]["loss"] / 2
    assert error_of_gallery(folder) < 0.8 * error_of_gallery(folder, "gallery_model_path=checkpoints/old.pt")


def test_two_processes_fit_what_one_fits_and_again_the_same(folder: Path) -> None:
    outputs = ["output_transformation_path=two/h.pt", "output_transformed_old_model_path=two/old_h.pt"]
    train(folder, "precision=fp32")
    one = state_of(folder / "baseline" / "transformation.pt")
    train(folder, "precision=fp32")
    assert same_bits(one, state_of(folder / "baseline" / "transformation.pt"))
    train(folder, "precision=fp32", *outputs, processes=2)
    for name, two in state_of(folder / "two" / "h.pt").items():
        torch.testing.assert_close(two, one[name], rtol=1e-3, atol=1e-3)  # the embeddings are rounded otherwise


def test_side_information_stands_beside_the_old_embedding(folder: Path) -> None:
    write_torchscript(folder / "side.pt", dim=24)
    train(folder, "side_info_model_path=side.pt")
    assert state_of(folder / "baseline" / "transformation.pt")["affine.weight"].shape == (16, 16 + 24)
    map_of_gallery(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["arch_params.arch=fct"], "baseline.yaml: optimizer_params: is missing, and fct needs training"),
        (
            ["objective_params.discriminative_loss={}"],
            "baseline.yaml: objective_params.discriminative_loss: ridge is a closed form and cannot use it",
        ),
        (
            ["objective_params.similarity_loss.name=l1"],
            "objective_params.similarity_loss.name: ridge minimises mse in closed form, not l1",
        ),
        (["arch_params.sigma_dim=1"], "arch_params.sigma_dim: ridge has no uncertainty"),
        (["arch_params.arch=procrustes", "side_info_model_path=side.pt"], "procrustes maps the old embedding alone"),
    ],
)
def test_what_does_not_go_with_a_closed_form(folder: Path, arguments: list[str], message: str) -> None:
    write_torchscript(folder / "side.pt", dim=24)
    command = ("train_transformation.py", "--config", "baseline.yaml", *arguments)
    assert message in fail(*command, cwd=folder, processes=None)
