"""eval.py on embedding files: which queries are gallery items, by ids of any kind or by nothing but their place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from models.baselines import RidgeTransformation
from models.model_files import describe_transformation, save_model
from tests.tiny import fail, succeed

EVAL = "embeddings_params: {query: q.npz, gallery: g.npz}\n"
SAID = "q.npz and g.npz have no ids, and the same labels: item i of both is taken for the same one"
PEOPLE = 50
Arrays = dict[str, np.ndarray]


def evaluate(folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    output = succeed("eval.py", "--config", "e.yaml", "--output", "r.json", *arguments, cwd=folder, processes=None)
    return json.loads((folder / "r.json").read_text()), output


def refuse(folder: Path, *arguments: str) -> str:
    return fail("eval.py", "--config", "e.yaml", *arguments, cwd=folder, processes=None)


def write(folder: Path, **files: Arrays) -> None:
    for name, arrays in files.items():
        np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    (folder / "e.yaml").write_text(EVAL)


def expected(query: Arrays, gallery: Arrays, same: np.ndarray | None = None) -> list[float]:
    """CMC-1, CMC-5 and mAP by a plain loop; `same[i]`: the gallery row that query i is."""
    found = []
    for i, (row, label) in enumerate(zip(query["embeddings"], query["labels"], strict=True)):
        others = np.arange(len(gallery["labels"])) != (-1 if same is None else same[i])
        distance = np.square(gallery["embeddings"].astype(np.float64) - row).sum(1)[others]
        relevant = gallery["labels"][others] == label
        nearest = relevant[np.argsort(distance, kind="stable")]
        found.append([nearest[0], nearest[:5].any(), average_precision_score(relevant, -distance)])
    return np.mean(found, axis=0).tolist()


@pytest.fixture
def people() -> tuple[Arrays, Arrays, Arrays]:
    """A query of each person, one other photo of each, and three of each that are hard to tell apart."""
    g = np.random.default_rng(0)
    centres = g.normal(size=(PEOPLE, 8)).astype(np.float32)

    def photos(of: np.ndarray, noise: float) -> Arrays:
        rows = centres[of] + noise * g.normal(size=(len(of), 8)).astype(np.float32)
        return {"embeddings": rows.astype(np.float32), "labels": of}

    return photos(np.arange(PEOPLE), 0.4), photos(np.arange(PEOPLE), 0.01), photos(np.tile(np.arange(PEOPLE), 3), 0.6)


def test_queries_that_are_other_photos_than_the_gallery(people: tuple[Arrays, Arrays, Arrays], tmp_path: Path) -> None:
    query, one_each, three_each = people
    write(tmp_path, q=query, g=three_each)
    error = refuse(tmp_path)
    assert "error: embeddings_params.gallery: g.npz and embeddings_params.query: q.npz hold different items" in error
    assert "150 and 50 of them; set eval_params.same_items=false if no query is an item of the gallery" in error
    result, output = evaluate(tmp_path, "eval_params.same_items=false")
    right = expected(query, three_each)
    assert list(result["metrics"].values()) == pytest.approx(right)
    assert SAID not in output
    write(tmp_path, q=query | {"ids": np.arange(PEOPLE)}, g=three_each | {"ids": 10**6 + np.arange(150)})
    assert evaluate(tmp_path)[0]["metrics"] == result["metrics"]

    write(tmp_path, q=query, g=one_each)
    assert "none of the 50 queries has an item of its label in the gallery but itself" in refuse(tmp_path)
    result, _ = evaluate(tmp_path, "eval_params.same_items=false")
    assert list(result["metrics"].values()) == pytest.approx(expected(query, one_each))
    assert result["num_skipped"] == 0
    assert "eval_params.backfilling: needs queries and gallery of the same items" in refuse(
        tmp_path, "eval_params.same_items=false", "eval_params.backfilling=1"
    )


@pytest.fixture
def upgrade() -> tuple[Arrays, Arrays]:
    """New embeddings of items, and transformed ones of the same, with sigma."""
    g = np.random.default_rng(1)
    labels = g.permutation(np.arange(60) % 6)
    new = (g.normal(size=(6, 5))[labels] + g.normal(size=(60, 5))).astype(np.float32)
    sigma = g.normal(size=60).astype(np.float32)
    transformed = (new + np.exp(sigma)[:, None] * g.normal(size=(60, 5))).astype(np.float32)
    return {"embeddings": new, "labels": labels}, {"embeddings": transformed, "labels": labels, "sigma": sigma}


CURVE = ("eval_params.backfilling=3", "eval_params.backfilling_list=[sigma, distance]")


def test_files_without_ids_are_taken_by_place_and_that_is_said(upgrade: tuple[Arrays, Arrays], tmp_path: Path) -> None:
    query, gallery = upgrade
    write(tmp_path, q=query, g=gallery)
    result, output = evaluate(tmp_path, *CURVE)
    assert output.count(SAID) == 1
    assert list(result["metrics"].values()) == pytest.approx(expected(query, gallery, np.arange(60)))
    again, output = evaluate(tmp_path, *CURVE, "eval_params.same_items=true")
    assert SAID not in output
    assert again == result
    write(tmp_path, g=gallery | {"labels": np.roll(gallery["labels"], 1)})
    assert "hold different items, or in another order: they have no ids, and row " in refuse(tmp_path)
    write(tmp_path, g=gallery | {"ids": np.arange(60)})
    error = "g.npz has `ids` and embeddings_params.query: q.npz has none, so that nothing tells which rows are the same"
    assert error in refuse(tmp_path)


KINDS = {
    "uint64": np.arange(60, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15),
    "texts": np.array([f"photo {i}" for i in range(60)]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reordered", ["q", "g"])
def test_a_curve_of_items_in_another_order(
    upgrade: tuple[Arrays, Arrays], tmp_path: Path, kind: str, reordered: str
) -> None:
    """Its figures are those of the same rows in one order, and what is written goes by the files' own ids."""
    query, gallery = ({**arrays, "ids": KINDS[kind]} for arrays in upgrade)
    write(tmp_path, q=query, g=gallery)
    before, output = evaluate(tmp_path, *CURVE, "eval_params.per_query=p.npz")
    assert SAID not in output
    assert list(before["metrics"].values()) == pytest.approx(expected(query, gallery, np.arange(60)))
    per_query = dict(np.load(tmp_path / "p.npz"))
    assert per_query["ids"].tolist() == KINDS[kind].tolist()

    order = np.random.default_rng(2).permutation(60)
    write(
        tmp_path, **{reordered: {name: array[order] for name, array in {"q": query, "g": gallery}[reordered].items()}}
    )
    kept = "eval_params.embeddings_output_dir=kept"
    after, _ = evaluate(tmp_path, *CURVE, "eval_params.per_query=p.npz", kept)
    for name, curve in before["backfilling"].items():
        for figure in ("cmc_top1", "cmc_top5", "map"):
            assert after["backfilling"][name][figure] == pytest.approx(curve[figure])
    assert {one: after["risk_coverage"][one]["alignment_error"]["spearman"] for one in after["risk_coverage"]} == (
        pytest.approx({one: risks["alignment_error"]["spearman"] for one, risks in before["risk_coverage"].items()})
    )
    found = dict(np.load(tmp_path / "p.npz"))
    places = [found["ids"].tolist().index(item) for item in KINDS[kind].tolist()]
    assert found["average_precision"][places] == pytest.approx(per_query["average_precision"])
    for name, arrays in (("query", query), ("gallery", gallery)):
        written = np.load(tmp_path / "kept" / f"{name}.npz")
        places = [written["ids"].tolist().index(item) for item in KINDS[kind].tolist()]
        assert np.array_equal(written["embeddings"][places], arrays["embeddings"])


def test_a_part_of_the_gallery_as_queries_and_ids_that_contradict(
    upgrade: tuple[Arrays, Arrays], tmp_path: Path
) -> None:
    query, gallery = ({**arrays, "ids": KINDS["texts"]} for arrays in upgrade)
    some = np.random.default_rng(2).permutation(60)[:20]
    part = {name: array[some] for name, array in query.items()}
    write(tmp_path, q=part, g=gallery)
    assert list(evaluate(tmp_path)[0]["metrics"].values()) == pytest.approx(expected(part, gallery, some))
    assert "eval_params.backfilling: needs queries and gallery of the same items" in refuse(tmp_path, *CURVE)
    error = refuse(tmp_path, "eval_params.same_items=false")
    assert "share 20 ids, the first is photo " in error
    assert "eval_params.same_items=false contradicts that" in error
    assert "eval_params.same_items=true contradicts that" in refuse(tmp_path, "eval_params.same_items=true")
    write(tmp_path, g=gallery | {"ids": np.arange(60)})
    assert "the ids of embeddings_params.query: q.npz are texts and those of embeddings_params.gallery" in refuse(
        tmp_path
    )


def test_side_information_is_joined_to_the_gallery(upgrade: tuple[Arrays, Arrays], tmp_path: Path) -> None:
    """h = old + 2 side: the rows of side-information in another order make no difference, other items are refused."""
    query, gallery = ({**arrays, "ids": KINDS["texts"]} for arrays in upgrade)
    transformation = RidgeTransformation(old_embedding_dim=5, new_embedding_dim=5, side_info_dim=5)
    with torch.no_grad():
        transformation.affine.weight.copy_(torch.cat([torch.eye(5), 2 * torch.eye(5)], dim=1))
        transformation.affine.bias.zero_()
    dims = {"old_embedding_dim": 5, "new_embedding_dim": 5, "side_info_dim": 5}
    description = describe_transformation(transformation, {"arch": "ridge", **dims})
    save_model(tmp_path / "t.pt", description, config={}, seed=0)
    order = np.random.default_rng(3).permutation(60)
    side = {"embeddings": query["embeddings"][order], "ids": KINDS["texts"][order]}
    write(tmp_path, q=query, g=gallery, s=side)
    h = gallery | {"embeddings": gallery["embeddings"] + 2 * query["embeddings"]}
    given = ("embeddings_params.transformation=t.pt", "embeddings_params.side_info=s.npz")
    result, _ = evaluate(tmp_path, *given)
    assert list(result["metrics"].values()) == pytest.approx(expected(query, h, np.arange(60)))
    turned = {name: array[order] for name, array in gallery.items()}
    write(tmp_path, g=turned)
    assert evaluate(tmp_path, *given, "eval_params.backfilling=1")[0]["metrics"] == pytest.approx(result["metrics"])
    write(tmp_path, s=side | {"ids": np.char.add(side["ids"], "!")})
    error = refuse(tmp_path, *given)
    assert (
        "embeddings_params.side_info: s.npz and embeddings_params.gallery: g.npz hold different items: 60 ids" in error
    )
    write(tmp_path, s={"embeddings": side["embeddings"]})
    assert "gallery: g.npz has `ids` and embeddings_params.side_info: s.npz has none" in refuse(tmp_path, *given)
    error = refuse(tmp_path, given[0])
    assert (
        "t.pt does not take embeddings of dimension 5 with no side-information, but of 5 with side-information of 5"
        in (error)
    )


def test_models_embed_the_same_images(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(
        "query_model_path: m.pt\ngallery_model_path: m.pt\n"
        "dataset_params: {name: cifar100, data_root: data, batch_size: 32}\n"
    )
    (tmp_path / "m.pt").write_text("")
    error = refuse(tmp_path, "eval_params.same_items=true")
    assert "eval_params.same_items: is for embeddings_params; models embed the same images" in error
