"""The whole way: old and new model, transformation, evaluation from models and from embedding files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.end_to_end.conftest import evaluate, log_of, result_of
from tests.retrieval.oracle import evaluate_slowly
from tests.tiny import same_bits, state_of, succeed

FIGURES = ["cmc_top1", "cmc_top5", "map"]
ORDERS = ["sigma", "random", "distance"]


def train(folder: Path, *arguments: str) -> list[float]:
    """Train a transformation -> the loss of each epoch."""
    succeed("train_transformation.py", "--config", "transformation.yaml", *arguments, cwd=folder, processes=None)
    return [record["loss"] for record in log_of(folder, "checkpoints/transformation")]


# --------------------------------------------------------------------------------------------------------- the result


def test_the_result_has_the_shape_that_readers_rely_on(evaluated: Path) -> None:
    result = result_of(evaluated)
    counts = ["num_queries", "num_skipped", "num_gallery", "distance_metric"]
    assert list(result) == [*counts, "metrics", "backfilling", "risk_coverage"]
    assert list(result["risk_coverage"]) == ["sigma", "distance"]  # a random order needs no judging
    for of_order in result["risk_coverage"].values():
        assert list(of_order) == ["alignment_error", "cmc_top1", "average_precision"]
        assert set(of_order["cmc_top1"]) == {"spearman", "coverages", "kept", "oracle", "random", "aurc"}
    by_distance = result["risk_coverage"]["distance"]["alignment_error"]  # which sorts by this very risk
    assert by_distance["spearman"] == pytest.approx(1)
    assert by_distance["kept"] == pytest.approx(by_distance["oracle"])
    assert (result["num_queries"], result["num_skipped"], result["num_gallery"]) == (48, 0, 48)
    assert result["distance_metric"] == "l2"
    assert list(result["metrics"]) == FIGURES
    assert list(result["backfilling"]) == ORDERS
    array = np.load(evaluated / "curves.npy")  # (orders, points, figures)
    assert array.tolist() == [
        np.transpose([one[name] for name in FIGURES]).tolist() for one in result["backfilling"].values()
    ]
    for curve in result["backfilling"].values():
        assert list(curve) == ["cutoffs", "fractions", *FIGURES, "auc"]
        assert curve["cutoffs"] == [0, 12, 24, 36, 48]
        assert curve["fractions"] == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert list(curve["auc"]) == FIGURES
        for name in FIGURES:
            assert all(0 <= value <= 1 for value in curve[name])
            assert curve["auc"][name] == pytest.approx(sum(curve[name]) / 5, abs=1e-15)
            assert curve[name][0] == result["metrics"][name]


def test_a_curve_ends_at_the_new_model_in_both_roles(evaluated: Path, work: Path) -> None:
    new_new = evaluate(work, "gallery_model_path=checkpoints/new.pt", "eval_params.backfilling=null")
    assert "backfilling" not in new_new
    for curve in result_of(evaluated)["backfilling"].values():
        assert {name: curve[name][-1] for name in FIGURES} == pytest.approx(new_new["metrics"])


@pytest.mark.parametrize("point", [0, 2, 4])
def test_the_figures_are_scikit_learns(evaluated: Path, point: int) -> None:
    new, gallery = (dict(np.load(evaluated / "embeddings" / f"{name}.npz")) for name in ("query", "gallery"))
    curve = result_of(evaluated)["backfilling"]["sigma"]
    backfilled = np.argsort(-gallery["sigma"][:, 0], kind="stable")[: curve["cutoffs"][point]]
    gallery["embeddings"][backfilled] = new["embeddings"][backfilled]
    query, mixed = torch.from_numpy(new["embeddings"]), torch.from_numpy(gallery["embeddings"])
    expected = evaluate_slowly(query, mixed, torch.from_numpy(new["labels"]))
    assert {name: curve[name][point] for name in FIGURES} == pytest.approx(expected, abs=1e-6)


def test_figures_of_each_query_and_their_intervals_from_mapped_files(evaluated: Path, tmp_path: Path) -> None:
    for name in ("query", "gallery"):
        (tmp_path / name).mkdir()
        with np.load(evaluated / "embeddings" / f"{name}.npz") as file:
            for array in file.files:
                np.save(tmp_path / name / f"{array}.npy", file[array])
    (tmp_path / "eval.yaml").write_text(
        "eval_params: {backfilling: 3, backfilling_list: [sigma, random], recall_at: [3, 10], precision_at: [3],\n"
        "              confidence: 0.9, per_query: queries.npz}\n"
        "embeddings_params: {query: query, gallery: gallery}\n"
    )
    result, before = evaluate(tmp_path), result_of(evaluated)
    figures = [*FIGURES, "recall_at_3", "recall_at_10", "precision_at_3"]
    assert list(result["metrics"]) == figures
    assert {name: result["metrics"][name] for name in FIGURES} == before["metrics"]
    assert result["intervals"]["confidence"] == 0.9
    for name, (low, high) in result["intervals"]["metrics"].items():
        assert low <= result["metrics"][name] <= high
    sigma = result["backfilling"]["sigma"]
    assert list(sigma["intervals"]) == [*figures, "auc"]
    assert all(len(sigma["intervals"][name]) == 5 for name in figures)
    for name, (low, high) in sigma["intervals"]["auc"].items():
        assert low <= sigma["auc"][name] <= high
    with np.load(tmp_path / "queries.npz") as file:
        queries = dict(file)
    assert queries["ids"].tolist() == list(range(48))
    assert queries["cutoffs"].tolist() == sigma["cutoffs"]
    assert queries["average_precision"].mean() == pytest.approx(result["metrics"]["map"])
    for name in ("sigma", "random"):
        curve = result["backfilling"][name]
        assert queries[f"{name}_average_precision"].mean(0).tolist() == pytest.approx(curve["map"])
        assert (queries[f"{name}_first_rank"] <= 5).mean(0).tolist() == pytest.approx(curve["cmc_top5"])
    hits = np.split(queries["hit_ranks"], queries["hit_offsets"][1:-1])
    assert [len(ranks) for ranks in hits] == queries["num_relevant"].tolist()
    assert [ranks[0] for ranks in hits] == queries["first_rank"].tolist()
    assert np.mean([(ranks <= 10).mean() for ranks in hits]) == pytest.approx(result["metrics"]["recall_at_10"])
    assert np.mean([(ranks <= 3).sum() / 3 for ranks in hits]) == pytest.approx(result["metrics"]["precision_at_3"])


def test_without_map_it_is_null(work: Path) -> None:
    result = evaluate(work, "eval_params.compute_map=False", "eval_params.backfilling_result_path=curves.npy")
    assert result["metrics"]["map"] is None
    for curve in result["backfilling"].values():
        assert curve["map"] is None
        assert curve["auc"]["map"] is None
        assert len(curve["cmc_top5"]) == 5
    assert np.array_equal(np.isnan(np.load(work / "curves.npy")).any((0, 1)), [False, False, True])


# ------------------------------------------------------------------------------------------------------- the trainings


def test_config_and_log_stand_beside_the_model(trained: Path) -> None:
    names = {path.name for path in (trained / "checkpoints").iterdir()}
    assert names == {
        *("old.pt", "old.config.yaml", "old.log.jsonl", "new.pt", "new.config.yaml", "new.log.jsonl"),
        *("transformation.pt", "transformation.config.yaml", "transformation.log.jsonl", "old_transformed.pt"),
        "embeddings",
    }
    log = log_of(trained, "checkpoints/new")
    assert [record["epoch"] for record in log] == [1, 2]
    assert log[1]["loss"] < log[0]["loss"]
    assert 0 <= log[1]["validation_accuracy"] <= 1


def test_a_resolved_config_gives_the_same_weights_again(work: Path) -> None:
    train(work)
    outputs = ["output_transformation_path=again.pt", "output_transformed_old_model_path=again_transformed.pt"]
    config = "checkpoints/transformation.config.yaml"
    succeed("train_transformation.py", "--config", config, *outputs, cwd=work, processes=None)
    assert same_bits(state_of(work / "again.pt"), state_of(work / "checkpoints" / "transformation.pt"))


def test_embedding_every_epoch_trains_as_embedding_once(work: Path) -> None:
    """Without augmentation there is one view, so the two differ by rounding to half precision alone."""
    # A small rate: with the usual one this tiny training is so unstable that it magnifies any rounding.
    arguments = ["dataset_params.augmentation=none", "precision=fp32", "optimizer_params.lr=1e-4"]
    assert train(work, *arguments, "cache_embeddings=off") == pytest.approx(train(work, *arguments), rel=5e-4)


def test_one_log_variance_a_dimension(work: Path) -> None:
    train(work, "arch_params.sigma_dim=16")
    assert len(evaluate(work, "eval_params.embeddings_output_dir=.")["backfilling"]["sigma"]["map"]) == 5
    with np.load(work / "gallery.npz") as file:
        assert file["sigma"].shape == (48, 16)
