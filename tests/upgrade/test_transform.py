"""transform: every form of gallery, in chunks, on any number of processes, after any interruption."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.sources.arrays import write_named_arrays
from models.model_files import load_model
from tests.upgrade.conftest import IDS, NEW_DIM, OLD_DIM, Case, N, make_case, write_transformation


def expected(case: Case, model: nn.Module | None = None, **inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings and sigma that the plain module gives."""
    model = model or load_model(case.folder / "transformation.pt")
    with torch.no_grad():
        output = model(torch.from_numpy(case.old), **{name: torch.from_numpy(rows) for name, rows in inputs.items()})
    return output.embedding.numpy(), output.log_variance.mean(1).numpy()


def check(case: Case, *, ids: np.ndarray = IDS, rtol: float = 2e-3) -> None:
    embeddings, sigma = expected(case)
    np.testing.assert_allclose(case.array("embedding"), embeddings, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(case.array("sigma"), sigma, rtol=rtol, atol=rtol * 0.1)
    assert np.array_equal(np.sort(ids), case.table().all_ids())
    assert not case.array("batch").any()
    assert case.content()["priority"].null_count == N


def as_npy(case: Case) -> tuple[str, ...]:
    np.save(case.folder / "old.npy", case.old)
    np.save(case.folder / "ids.npy", IDS)
    return ("gallery=old.npy", "ids=ids.npy")


def as_folder(case: Case) -> tuple[str, ...]:
    (case.folder / "old").mkdir()
    np.save(case.folder / "old/embeddings.npy", case.old)
    np.save(case.folder / "old/ids.npy", IDS.astype(np.int32))
    return ("gallery=old",)


def as_shards(case: Case) -> tuple[str, ...]:
    """In the order of their numbers."""
    case.write_shards("old", np.array_split(np.arange(N), 12), case.old, IDS)
    (case.folder / "old/3.npz").rename(case.folder / "old/3.NPZ")
    return ("gallery=old",)


def as_parquet(case: Case) -> tuple[str, ...]:
    write_named_arrays(case.folder / "old.parquet", {"embeddings": case.old, "ids": IDS})
    return ("gallery=old.parquet",)


@pytest.mark.parametrize(
    "write",
    [lambda case: (), as_npy, as_folder, as_shards, as_parquet],
    ids=["npz", "npy", "folder", "shards", "parquet"],
)
def test_every_form_of_gallery_gives_what_the_plain_module_gives(
    case: Case, write: Callable[[Case], tuple[str, ...]]
) -> None:
    case.run("transform", *write(case))
    check(case)


def test_without_ids_rows_are_numbered(case: Case) -> None:
    np.save(case.folder / "old.npy", case.old.astype(np.float16))
    case.run("transform", "gallery=old.npy", "dtype=float32")
    check(case, ids=np.arange(N), rtol=1e-2)  # of the old embeddings' rounding
    assert case.array("embedding").dtype == np.float32


def test_half_precision_stays_near(case: Case) -> None:
    case.run("transform", "precision=bf16")
    embeddings, _ = expected(case)
    error = np.linalg.norm(case.array("embedding") - embeddings) / np.linalg.norm(embeddings)
    assert 0 < error < 0.02


def test_side_information_and_a_log_variance_for_each_dimension(case: Case) -> None:
    side = np.random.default_rng(5).normal(size=(N, 3)).astype(np.float32)
    np.savez(case.folder / "side.npz", embeddings=side, ids=IDS)
    model = write_transformation(case.folder / "transformation.pt", side_info_dim=3, sigma_dim=NEW_DIM)
    case.run("transform", "side_info=side.npz")
    embeddings, sigma = expected(case, model, side_info=side)
    np.testing.assert_allclose(case.array("embedding"), embeddings, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(case.array("sigma"), sigma, rtol=1e-4, atol=1e-5)


def test_embeddings_of_length_1_stay_so(tmp_path: Path) -> None:
    case = make_case(tmp_path / "unit", unit=True)
    case.run("transform")
    assert np.linalg.norm(case.array("embedding").astype(np.float32), axis=1) == pytest.approx(1, abs=1e-3)
    embeddings, _ = expected(case)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    np.testing.assert_allclose(case.array("embedding"), embeddings, atol=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": np.zeros((N, OLD_DIM), int)}, "old.npz: embeddings should be (n, d) floating point, got"),
        ({"embeddings": np.zeros((N, 9), np.float32)}, "transformation.pt does not take the 9-d embeddings of old.npz"),
        (
            {"ids": np.zeros(N)},
            "old.npz: ids should be (n,) whole numbers or texts (ids.astype(str)), got",
        ),
        ({"ids": np.append(IDS[1:], IDS[5])}, f"gallery: old.npz: the id {IDS[5]} occurs more than once"),
        ({"ids": IDS[:-1]}, "old.npz: ids is (499,), embeddings (500, 6)"),
    ],
)
def test_a_bad_gallery_is_refused(case: Case, change: dict[str, np.ndarray], message: str) -> None:
    case.write_old(**change)
    assert message in case.refuse("transform")


def test_a_row_with_nan_is_named_and_the_gallery_never_finished(case: Case) -> None:
    case.old[300, 2] = np.nan
    case.write_old()
    assert "gallery: old.npz: row 300 holds NaN or infinity" in case.refuse_midway("transform")
    assert "is not fully transformed yet" in case.refuse("apply", "--batch", case.write_batch("b.npz", np.arange(3)))


def test_a_truncated_shard_is_named(case: Case) -> None:
    arguments = as_shards(case)
    for name in ("4.npz", "5.npz"):
        path = case.folder / "old" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-40])
        assert f"old/{name} cannot be read: " in case.refuse("transform", *arguments)
        path.write_bytes(whole)


def test_another_upgrade_is_not_gone_on_with(upgraded: Case) -> None:
    assert "another upgrade: new_model is 'vit', not 'resnet50-2024'" in upgraded.refuse("transform", "new_model=vit")


def test_a_folder_of_other_files_and_a_manifest_of_another_model_are_refused(case: Case) -> None:
    (case.folder / "upgraded.lance").mkdir()
    (case.folder / "upgraded.lance/thesis.tex").write_text("x")
    assert "upgraded.lance holds other files; name a new folder" in case.refuse("transform")
    (case.folder / "old.npz.manifest.json").write_text(json.dumps({"model": "clip"}))
    error = case.refuse("transform", "output=new")
    assert "old.npz: its manifest says model 'clip', but here it should be 'resnet18-2021'" in error
