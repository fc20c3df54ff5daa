"""A calibrated upgrade: what an index serves, what `plan` predicts, and what a refit changes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retrieval import Calibration, backfilling_order, cutoffs, evaluate
from retrieval.prediction import predict_recall
from tests.tiny import fail, succeed
from tests.upgrade.conftest import BATCHES, IDS, Case, N, make_case, prepared, write_transformation

CALIBRATIONS = {"l2": 2.25, "cosine": 0.6}


@pytest.fixture(params=[False, True], ids=["l2", "cosine"])
def calibrated(tmp_path: Path, request: pytest.FixtureRequest) -> Case:
    """A case whose transformation has calibrations for both distances; new embeddings of length 1 in one of them."""
    case = make_case(tmp_path, unit=request.param)
    recorded: dict[str, Any] = {"normalised": True} if request.param else {}
    write_transformation(tmp_path / "transformation.pt", "fastfill", CALIBRATIONS, **recorded)
    return case


def calibration_of(case: Case) -> Calibration:
    distance = "cosine" if case.table().state.normalised else "l2"
    return Calibration(distance, CALIBRATIONS[distance])


def served(case: Case) -> np.ndarray:
    """What the index must hold, by the files."""
    embeddings = torch.from_numpy(case.array("embedding").astype(np.float32))
    return calibration_of(case).mixed(embeddings, torch.from_numpy(case.array("batch") > 0)).numpy()


def test_the_index_has_the_coordinate_whatever_happens_to_a_row(calibrated: Case) -> None:
    faiss = pytest.importorskip("faiss")

    def check() -> None:
        calibrated.run("export", "--to", "gallery.faiss")
        index = faiss.read_index(str(calibrated.folder / "gallery.faiss"))
        assert np.allclose(index.reconstruct_batch(IDS), served(calibrated), atol=2e-3)  # it keeps float16

    prepared(calibrated)
    check()
    for batch in BATCHES:
        calibrated.run("apply", "--batch", batch)
        check()
    assert f"{calibration_of(calibrated).value:.4g}" in calibrated.run("status", "--verify")
    calibrated.run("rollback", "--to", "1")
    check()


def test_the_plan_is_that_of_the_calibrated_mix(calibrated: Case) -> None:
    calibrated.run("transform")
    rows = np.arange(200)
    np.savez(calibrated.folder / "pairs_old.npz", embeddings=calibrated.old[rows])
    np.savez(calibrated.folder / "pairs_new.npz", embeddings=calibrated.new[rows])
    calibrated.run("plan", "plan_params.old=pairs_old.npz", "plan_params.new=pairs_new.npz", "plan_params.points=3")
    curve = calibrated.json("plan")["curves"]["random"]

    transformed, new = (
        torch.from_numpy(values[rows].astype(np.float32)) for values in (calibrated.array("embedding"), calibrated.new)
    )
    transformed, new = calibration_of(calibrated).transformed(transformed), calibration_of(calibrated).exact(new)
    orders = {"random": backfilling_order("random", transformed=transformed, new=new)}
    wanted = predict_recall(new, transformed, orders=orders, cutoffs=cutoffs(200, 3), k=10, confidence=0.95, seed=0)
    assert curve["values"] == pytest.approx(wanted["random"].values)


def test_the_gallery_is_judged_as_it_is_served(calibrated: Case) -> None:
    labels = np.arange(N) % 5
    calibrated.write_old(labels=labels)
    prepared(calibrated)
    calibrated.run("apply", "--batch", "first.npz")
    np.savez(calibrated.folder / "new.npz", embeddings=calibrated.new, ids=IDS, labels=labels)
    distance = calibration_of(calibrated).distance
    config = "{embeddings_params: {query: new.npz, gallery: upgraded.lance}, eval_params: {distance_metric_name: %s}}"
    (calibrated.folder / "eval.yaml").write_text(config % distance)
    succeed("eval.py", "--config", "eval.yaml", "--output", "result.json", cwd=calibrated.folder)
    found = json.loads((calibrated.folder / "result.json").read_text())
    new = torch.from_numpy(calibrated.new.astype(np.float32))
    wanted = evaluate(
        calibration_of(calibrated).exact(new),
        torch.from_numpy(served(calibrated)),
        torch.from_numpy(labels),
        distance=distance,
    )
    assert found["metrics"] == pytest.approx(wanted.to_json())
    assert found["calibration"] == {"distance": distance, "value": CALIBRATIONS[distance]}
    plain = evaluate(
        new, torch.from_numpy(calibrated.array("embedding")).float(), torch.from_numpy(labels), distance=distance
    )
    assert plain.mean_average_precision != pytest.approx(wanted.mean_average_precision)


def test_a_table_that_is_not_finished_is_not_evaluated(calibrated: Case) -> None:
    calibrated.write_old(labels=np.arange(N) % 5)
    old = calibrated.old.copy()
    old[300] = np.nan
    calibrated.write_old(embeddings=old, labels=np.arange(N) % 5)
    assert "row 300 holds NaN" in calibrated.refuse_midway("transform", "fragment_rows=64")
    np.savez(calibrated.folder / "new.npz", embeddings=calibrated.new, ids=IDS, labels=np.arange(N) % 5)
    (calibrated.folder / "eval.yaml").write_text("embeddings_params: {query: new.npz, gallery: upgraded.lance}")
    error = fail("eval.py", "--config", "eval.yaml", cwd=calibrated.folder)
    assert "embeddings_params.gallery: upgraded.lance: is not fully transformed yet" in error
