"""A gallery that is upgraded a second time, as a user evaluates it: each item on its way into the third space."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.model_files import load_model
from tests.end_to_end.conftest import copy_of, evaluate, write_backbone
from tests.tiny import fail, succeed

SCRIPT = "train_transformation.py"
THIRD = "checkpoints/third.pt"
SECOND_WAY = (
    *("old_model_path=checkpoints/new.pt", f"new_model_path={THIRD}", "objective_params.discriminative_loss=null"),
    *("output_transformation_path=checkpoints/h_23.pt", "output_transformed_old_model_path=checkpoints/h_23_model.pt"),
)
EVALUATION = (f"query_model_path={THIRD}", "earlier_upgrade.model_path=checkpoints/h_23_model.pt")
CHAINED = "earlier_upgrade.chained=true"


@pytest.fixture(scope="module")
def generations(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with old, new and third models, and the transformations from old to new and from new to third."""
    folder = copy_of(trained, tmp_path_factory.mktemp("generations"))
    write_backbone(folder / THIRD, embedding_dim=12)
    succeed(SCRIPT, "--config", "transformation.yaml", *SECOND_WAY, cwd=folder, processes=None)
    return folder


def test_each_item_goes_through_the_transformations_from_where_it_is(generations: Path, tmp_path: Path) -> None:
    """Against the parts applied one after the other to what embed.py writes of the same images."""
    for name in ("old", "new", "third"):
        paths = (f"model_path=checkpoints/{name}.pt", f"output_embeddings_path={tmp_path}/{name}.npz")
        succeed("embed.py", "--config", "embed.yaml", *paths, "split=validation", cwd=generations, processes=None)
    given = {name: torch.from_numpy(np.load(tmp_path / f"{name}.npz")["embeddings"]) for name in ("old", "new")}
    first, second = (load_model(generations / "checkpoints" / name) for name in ("transformation.pt", "h_23.pt"))
    with torch.inference_mode():
        chained, direct = second(first(given["old"]).embedding), second(given["new"])
    kept = f"eval_params.embeddings_output_dir={tmp_path}/kept"
    share = "earlier_upgrade.re_embedded_share=0.25"
    evaluate(generations, *EVALUATION, CHAINED, share, kept)
    gallery = np.load(tmp_path / "kept" / "gallery.npz")
    found, ids = torch.from_numpy(gallery["embeddings"]), gallery["ids"]
    assert np.array_equal(ids, np.arange(len(ids)))
    by_new = torch.isclose(found, direct.embedding, atol=1e-4).all(1)
    by_old = torch.isclose(found, chained.embedding, atol=1e-4).all(1)
    assert torch.equal(by_new, ~by_old)
    assert int(by_new.sum()) == len(ids) / 4
    assert chained.log_variance is not None
    assert direct.log_variance is not None
    sigma = torch.where(by_new, direct.log_variance.mean(1), chained.log_variance.mean(1))
    assert torch.allclose(torch.from_numpy(gallery["sigma"]).squeeze(), sigma, atol=1e-4)


def test_the_ends_of_the_shares(generations: Path) -> None:
    """Nothing re-embedded: the chain alone. All of it: the model in between, transformed, whatever it began with."""
    all_of_it = evaluate(generations, *EVALUATION, "earlier_upgrade.re_embedded_share=1", CHAINED)
    alone = evaluate(generations, EVALUATION[0], "gallery_model_path=checkpoints/h_23_model.pt")
    assert all_of_it["metrics"] == alone["metrics"]
    chain = evaluate(generations, *EVALUATION, CHAINED)
    assert chain["metrics"] != alone["metrics"]


def test_what_does_not_fit_is_refused(generations: Path) -> None:
    def refuse(*overrides: str) -> str:
        return fail("eval.py", "--config", "eval.yaml", *EVALUATION, *overrides, cwd=generations, processes=None)

    assert "chained, re_embedded_share: without either" in refuse()
    no_way = "earlier_upgrade.model_path=checkpoints/new.pt"
    assert "checkpoints/new.pt is no transformed model" in refuse(no_way, CHAINED)
    message = refuse("gallery_model_path=checkpoints/third.pt", CHAINED)
    assert "does not take embeddings of dimension 12 with no side-information, but of 16" in message
    message = refuse("earlier_upgrade.re_embedded_share=0.5")  # the others are in the space of the model in between
    assert "gives 12-d embeddings, gallery_model_path 16-d" in message
    files = ("embeddings_params.query=a.npz", "embeddings_params.gallery=b.npz")
    nothing = ("query_model_path=null", "gallery_model_path=null", "dataset_params=null")
    assert "embeddings_params: stands in place of" in refuse(*files, *nothing, CHAINED)
