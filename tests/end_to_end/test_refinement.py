"""A refined transformation by the scripts, from the training to the evaluation."""

from pathlib import Path

import pytest
import torch

from models.embedding import TransformedModel, embed
from models.model_files import load_model
from models.refinement import RefinedTransformation
from retrieval import EVEN_SPREAD
from tests.end_to_end.conftest import evaluate, result_of
from tests.tiny import fail, same_bits, succeed, write_images
from utils.files import read_torch

REFINED = ("refinement_params.held_out=0.25", "output_transformed_old_model_path=refined.pt")


@pytest.fixture
def folder(work: Path) -> Path:
    for path in (work / "checkpoints").glob("*transform*"):
        path.unlink()
    return work


def train(folder: Path, *arguments: str) -> RefinedTransformation:
    command = ["train_transformation.py", "--config", "transformation.yaml", *REFINED, *arguments]
    output = succeed(*command, cwd=folder, processes=None)
    assert "refinement, chosen on held-out training items: {'strength': " in output
    model = load_model(folder / "refined.pt")
    assert isinstance(model, TransformedModel)
    assert isinstance(model.transformation, RefinedTransformation)
    return model.transformation


def test_trained_evaluated_and_exported_without_a_look_at_the_validation_split(folder: Path) -> None:
    refined = train(folder, "export_formats=[torchscript]")
    content = read_torch(folder / "checkpoints" / "transformation.pt")
    # Of models and images it is not known whether the new space is one of length 1, and the file does not say so.
    assert content["transformation"]["arguments"].keys().isdisjoint({"normalised", "standardised"})
    chosen = content["chosen"]
    assert chosen["held_out"] == 36
    assert chosen["quality"][str(chosen["strength"])] == max(chosen["quality"].values())
    assert list(chosen["quality"]) == ["0.0", "0.15"]
    orders = "eval_params.backfilling_list=[confidence, entropy, class_distance, knn_disagreement, sigma]"
    assert len(evaluate(folder, "gallery_model_path=refined.pt", orders)["backfilling"]) == 5
    images = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        embedding, log_variance = embed(load_model(folder / "refined.pt"), images)
        exported = torch.jit.load(folder / "refined.torchscript.pt")(images)
    for found, expected in zip(exported, (embedding, log_variance), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    # Other validation images, same training images: the same model, to the last bit.
    other = write_images(folder / "other", classes=6, training=1, validation=5, seed=9)
    (folder / "both").mkdir()
    (folder / "both" / "training").symlink_to(folder / "data" / "training")
    (folder / "both" / "validation").symlink_to(other / "validation")
    again = train(folder, "dataset_params.data_root=both", "output_transformation_path=again.pt")
    assert same_bits(dict(refined.state_dict()), dict(again.state_dict()))
    assert refined.arguments == again.arguments


def test_clusters_stand_in_for_classes(folder: Path) -> None:
    refined = train(folder, "refinement_params.clusters=9", "arch_params={arch: ridge}", "objective_params={}")
    assert refined.class_means.shape == (9, 16)
    orders = "eval_params.backfilling_list=[confidence, class_distance]"
    assert len(evaluate(folder, "gallery_model_path=refined.pt", orders)["backfilling"]) == 2


FILES = """
old: old
new: new
classifier: classifier.npy
views: 2
held_out: 0.25
method: ridge
refinement_params: {}
output: refined.pt
"""


def test_from_embedding_files_to_an_evaluation_of_them(folder: Path) -> None:
    for name in ("old", "new"):
        model = ["embed.py", "--config", "embed.yaml", f"model_path=checkpoints/{name}.pt"]
        training = ["split=training", "views=all", f"output_embeddings_path={name}"]
        succeed(*model, *training, "output_classifier_path=classifier.npy", cwd=folder, processes=None)
        succeed(*model, f"output_embeddings_path={name}_validation", cwd=folder, processes=None)
    (folder / "files.yaml").write_text(FILES)
    succeed("fit_embeddings.py", "--config", "files.yaml", cwd=folder, processes=None)
    assert read_torch(folder / "refined.pt")["chosen"]["held_out"] == 36
    (folder / "eval.yaml").write_text(
        "embeddings_params: {query: new_validation, gallery: old_validation, transformation: refined.pt}\n"
        "eval_params: {backfilling: 3, backfilling_list: [confidence, class_distance, random]}\n"
    )
    evaluation = ["eval.py", "--config", "eval.yaml", "--output", "result.json"]
    results, outputs = [], []
    for representatives in ("off", "on", "auto"):
        arguments = [*evaluation, f"eval_params.representatives={representatives}"]
        outputs.append(succeed(*arguments, cwd=folder, processes=None))
        results.append(result_of(folder))
    plain, placed, auto = results
    assert list(plain["backfilling"]) == ["confidence", "class_distance", "random"]
    assert "representatives" not in plain
    assert placed["representatives"]["placed"]
    assert placed["metrics"] != plain["metrics"]
    last = [result["backfilling"]["random"]["map"][-1] for result in (plain, placed)]
    assert last[0] == pytest.approx(last[1], rel=1e-12)  # everything is backfilled then, representatives too
    found = auto["representatives"]
    assert found["class_spread"] == placed["representatives"]["class_spread"]
    assert found["placed"] == (found["class_spread"] >= EVEN_SPREAD)
    assert found["placed"] == ("no representatives: the gallery" not in outputs[2])
    without_means = ["embeddings_params.transformation=null", "embeddings_params.gallery=new_validation"]
    arguments = [*without_means, "eval_params.representatives=on", "eval_params.backfilling=null"]
    message = fail(*evaluation, *arguments, cwd=folder, processes=None)
    assert "eval_params.representatives: need a classifier and class means" in message


def test_strengths_beyond_one_are_refused(folder: Path) -> None:
    command = ["train_transformation.py", "--config", "transformation.yaml", *REFINED]
    message = "refinement_params.strengths: should be one or more from 0 to 1, got"
    assert message in fail(*command, "refinement_params.strengths=[0, 2]", cwd=folder, processes=None)
