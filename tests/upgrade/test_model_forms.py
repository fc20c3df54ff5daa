"""Prefixes of Matryoshka embeddings and quantised ones: from the fit to the gallery as if they came plain."""

from pathlib import Path

import numpy as np
import pytest

from data.embeddings import read_embeddings
from evaluation.config import EvalConfig
from evaluation.items import query_and_gallery
from models.model_files import check_inputs, read_description
from tests.tiny import fail, succeed
from tests.upgrade.conftest import IDS, Case, N, make_case
from utils.config import build
from utils.distributed import World
from utils.errors import UserError

FIT = "old: old.npz\nnew: new.npz\noutput: transformation.pt\nheld_out: 0.2\nbatch_size: 64\nepochs: 2\ninner_dim: 8\n"


def fit(case: Case, *arguments: str) -> None:
    (case.folder / "fit.yaml").write_text(FIT)
    np.savez(case.folder / "new.npz", embeddings=case.new, ids=IDS)
    succeed("fit_embeddings.py", "--config", "fit.yaml", *arguments, cwd=case.folder, processes=None)


@pytest.mark.parametrize("method", ["ridge", "fct"])
def test_the_gallery_gives_the_prefix_that_was_fitted(tmp_path: Path, method: str) -> None:
    case = make_case(tmp_path / "unit", unit=True)
    fit(case, f"method={method}", "old_dim=4", "new_dim=3")
    cut = case.old[:, :4].astype(np.float64)
    cut = (cut / np.sqrt((cut**2).sum(1, keepdims=True))).astype(np.float32)
    for name, rows in (("cut", cut), ("other", case.old[:, :5])):
        np.savez(case.folder / f"{name}.npz", embeddings=rows, ids=IDS)
    case.run("transform")
    case.run("transform", "gallery=cut.npz", "output=cut.lance")
    assert case.array("embedding").shape == (N, 3)
    np.testing.assert_allclose(case.array("embedding"), case.array("embedding", "cut.lance"), atol=1e-3)
    case.run("status", "--verify")
    assert "does not take the 5-d embeddings of other.npz" in case.refuse("transform", "gallery=other.npz", "output=x")
    new = case.new[:, :3].astype(np.float64)
    new = new / np.sqrt((new**2).sum(1, keepdims=True))
    case.run("apply", "--insist", "--batch", case.write_batch("batch.npz", np.arange(60)))  # as the model gives them
    np.testing.assert_allclose(case.array("embedding")[:60], new[:60], atol=1e-3)
    np.savez(case.folder / "new_cut.npz", embeddings=new.astype(np.float32), ids=IDS)
    curves = []
    for sample in ("new.npz", "new_cut.npz"):
        case.run("plan", f"plan_params.new={sample}", "plan_params.points=3")
        curves.append(case.json("plan")["curves"]["random"]["values"])
    np.testing.assert_allclose(curves[0], curves[1], atol=2e-3)  # rounding decides where two are alike
    np.savez(case.folder / "four.npz", embeddings=case.new[:60, :4], ids=IDS[:60])
    assert "is 4-d, but the gallery's embeddings are 3-d" in case.refuse("apply", "--batch", "four.npz")
    description = read_description(case.folder / "transformation.pt", where="w")
    assert description["provenance"]["embeddings"]["wider"]["new"] == {"dim": 5, "of_length_1": True}
    for dim in (4, 6):
        check_inputs(description, dim, None, where="w")
    with pytest.raises(UserError, match="does not take embeddings of dimension 5"):
        check_inputs(description, 5, None, where="w")


@pytest.mark.parametrize("unit", [False, True])
def test_an_evaluation_cuts_what_the_new_model_gives_as_the_fit_did(tmp_path: Path, unit: bool) -> None:
    """New embeddings of all dimensions beside a prefix of them count as if they had been cut by hand, in float64."""
    case, labels = make_case(tmp_path / "case", unit=unit), np.arange(N) % 7
    case.write_old(labels=labels)
    fit(case, "method=ridge", "new_dim=3")
    case.run("transform")
    new = case.new.astype(np.float32)
    np.savez(case.folder / "queries.npz", embeddings=new[:50], ids=IDS[:50], labels=labels[:50])
    np.savez(case.folder / "all.npz", embeddings=new, ids=IDS, labels=labels)
    cut = new[:, :3].astype(np.float64)
    cut = cut / np.sqrt((cut**2).sum(1, keepdims=True)) if unit else cut
    for gallery, transformation in (("old.npz", case.folder / "transformation.pt"), ("upgraded.lance", None)):
        files = {name: str(case.folder / f"{of}.npz") for name, of in (("query", "queries"), ("new_gallery", "all"))}
        files |= {"gallery": str(case.folder / gallery)}
        files |= {} if transformation is None else {"transformation": str(transformation)}
        compared = query_and_gallery(build(EvalConfig, {"embeddings_params": files}, "test"), World())
        assert compared.gallery.embeddings.shape == (N, 3)
        np.testing.assert_allclose(compared.query.embeddings.numpy(), cut[:50], atol=1e-6)
        assert compared.gallery.new is not None
        assert compared.gallery.ids is not None
        in_its_order = cut[[IDS.tolist().index(item) for item in compared.gallery.ids.tolist()]]
        np.testing.assert_allclose(compared.gallery.new.numpy(), in_its_order, atol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "ubinary"])
def test_a_quantised_gallery_is_transformed_as_what_it_stands_for(case: Case, kind: str) -> None:
    low, high = case.old.min(0), case.old.max(0)
    if kind == "int8":
        values = ((case.old - low) / (high - low) * 255 - 128).astype(np.int8)
        arrays = {"embeddings": values, "ranges": np.stack([low, high])}
    else:
        arrays = {"embeddings": np.packbits(case.old > 0, axis=1), "bits": np.array(6)}
    np.savez(case.folder / "old.npz", ids=IDS, **arrays)
    plain = read_embeddings(case.folder / "old.npz", where="w").embeddings.numpy()
    np.savez(case.folder / "plain.npz", ids=IDS, embeddings=plain)
    fit(case, "method=ridge")
    case.run("transform")
    case.run("transform", "gallery=plain.npz", "output=plain.lance")
    assert np.array_equal(case.array("embedding"), case.array("embedding", "plain.lance"))
    case.run("status", "--verify")
    if kind == "ubinary":
        np.savez(case.folder / "old.npz", ids=IDS, embeddings=np.repeat(arrays["embeddings"], 2, axis=1), bits=16)
        error = case.refuse("transform", "output=wider")
        assert "transformation.pt does not take the 16-d embeddings of old.npz" in error
        del arrays["bits"]
        np.savez(case.folder / "old.npz", ids=IDS, **arrays)
        for error in (
            case.refuse("transform", "output=other"),
            fail("fit_embeddings.py", "--config", "fit.yaml", cwd=case.folder, processes=None),
        ):
            assert "old.npz: its embeddings are (500, 1) uint8:\nsay what they mean" in error
