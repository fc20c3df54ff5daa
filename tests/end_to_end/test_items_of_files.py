"""eval.py on embedding files: which queries are gallery items, by ids of any kind or by nothing but their place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.baselines import RidgeTransformation
from models.model_files import describe_transformation, save_model
from tests.retrieval.oracle import mean_figures, rank_slowly
from tests.tiny import fail, succeed

SAID = "q.npz and g.npz have no ids, and the same labels: item i of both is taken for the same one"
SAME, OTHER = "eval_params.same_items=true", "eval_params.same_items=false"
CURVE = ("eval_params.backfilling=3", "eval_params.backfilling_list=[sigma, distance]")
PEOPLE, ITEMS = 50, 60
UINT64 = np.arange(ITEMS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
TEXTS = np.array([f"photo {i}" for i in range(ITEMS)])
Arrays = dict[str, np.ndarray]


def evaluate(folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    output = succeed("eval.py", "--config", "e.yaml", "--output", "r.json", *arguments, cwd=folder, processes=None)
    return json.loads((folder / "r.json").read_text()), output


def figures(folder: Path, *arguments: str) -> list[float]:
    return list(evaluate(folder, *arguments)[0]["metrics"].values())


def refuse(folder: Path, *arguments: str) -> str:
    return fail("eval.py", "--config", "e.yaml", *arguments, cwd=folder, processes=None)


def write(folder: Path, **files: Arrays) -> None:
    for name, arrays in files.items():
        np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    (folder / "e.yaml").write_text("embeddings_params: {query: q.npz, gallery: g.npz}\n")


def expected(query: Arrays, gallery: Arrays, same: np.ndarray | None = None) -> Any:
    """CMC-1, CMC-5 and mAP by a plain loop; `same[i]`: the gallery row that query i is."""
    rows = np.arange(len(gallery["labels"]))
    queries = len(rows) + np.arange(len(query["labels"])) if same is None else same
    (of_query, query_labels), (of_gallery, gallery_labels) = (
        (torch.from_numpy(arrays["embeddings"]), torch.from_numpy(arrays["labels"])) for arrays in (query, gallery)
    )
    ids = (torch.from_numpy(queries), torch.from_numpy(rows))
    ranked = rank_slowly(of_query, of_gallery, query_labels, gallery_labels, *ids)
    return pytest.approx(list(mean_figures(ranked).values()))


def test_queries_that_are_other_photos_than_the_gallery(tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    centres = g.normal(size=(PEOPLE, 8)).astype(np.float32)

    def photos(of: np.ndarray, noise: float) -> Arrays:
        rows = centres[of] + noise * g.normal(size=(len(of), 8)).astype(np.float32)
        return {"embeddings": rows.astype(np.float32), "labels": of}

    query, one_each = photos(np.arange(PEOPLE), 0.4), photos(np.arange(PEOPLE), 0.01)
    three_each = photos(np.tile(np.arange(PEOPLE), 3), 0.6)
    write(tmp_path, q=query, g=three_each)
    error = refuse(tmp_path)
    assert "error: embeddings_params.gallery: g.npz and embeddings_params.query: q.npz hold different items" in error
    assert "150 and 50 of them; set eval_params.same_items=false if no query is an item of the gallery" in error
    result, output = evaluate(tmp_path, OTHER)
    assert list(result["metrics"].values()) == expected(query, three_each)
    assert SAID not in output
    write(tmp_path, q=query | {"ids": np.arange(PEOPLE)}, g=three_each | {"ids": 10**6 + np.arange(150)})
    assert evaluate(tmp_path)[0]["metrics"] == result["metrics"]

    write(tmp_path, q=query, g=one_each)
    assert "none of the 50 queries has an item of its label in the gallery but itself" in refuse(tmp_path)
    result, _ = evaluate(tmp_path, OTHER)
    assert list(result["metrics"].values()) == expected(query, one_each)
    assert result["num_skipped"] == 0


@pytest.fixture
def upgrade() -> tuple[Arrays, Arrays]:
    """New embeddings of items, and transformed ones of the same, with sigma."""
    g = np.random.default_rng(1)
    labels = g.permutation(np.arange(ITEMS) % 6)
    new = (g.normal(size=(6, 5))[labels] + g.normal(size=(ITEMS, 5))).astype(np.float32)
    sigma = g.normal(size=ITEMS).astype(np.float32)
    transformed = (new + np.exp(sigma)[:, None] * g.normal(size=(ITEMS, 5))).astype(np.float32)
    return {"embeddings": new, "labels": labels}, {"embeddings": transformed, "labels": labels, "sigma": sigma}


def test_files_without_ids_are_taken_by_place_and_that_is_said(upgrade: tuple[Arrays, Arrays], tmp_path: Path) -> None:
    query, gallery = upgrade
    write(tmp_path, q=query, g=gallery)
    result, output = evaluate(tmp_path, *CURVE)
    assert output.count(SAID) == 1
    assert list(result["metrics"].values()) == expected(query, gallery, np.arange(ITEMS))
    again, output = evaluate(tmp_path, *CURVE, SAME)
    assert SAID not in output
    assert again == result


@pytest.mark.parametrize(("ids", "reordered"), [(UINT64, "q"), (TEXTS, "g")])
def test_a_curve_of_items_in_another_order(
    upgrade: tuple[Arrays, Arrays], tmp_path: Path, ids: np.ndarray, reordered: str
) -> None:
    """Its figures are those of the same rows in one order, and what is written goes by the files' own ids."""
    files = {name: arrays | {"ids": ids} for name, arrays in zip("qg", upgrade, strict=True)}
    write(tmp_path, **files)
    before, output = evaluate(tmp_path, *CURVE, "eval_params.per_query=p.npz")
    assert SAID not in output
    assert list(before["metrics"].values()) == expected(*upgrade, np.arange(ITEMS))
    per_query = dict(np.load(tmp_path / "p.npz"))
    assert per_query["ids"].tolist() == ids.tolist()

    order = np.random.default_rng(2).permutation(ITEMS)
    write(tmp_path, **{reordered: {name: array[order] for name, array in files[reordered].items()}})
    kept = "eval_params.embeddings_output_dir=kept"
    after, _ = evaluate(tmp_path, *CURVE, "eval_params.per_query=p.npz", kept)
    for name, curve in before["backfilling"].items():
        for figure in ("cmc_top1", "cmc_top5", "map"):
            assert after["backfilling"][name][figure] == pytest.approx(curve[figure])
        spearman, once = (one["risk_coverage"][name]["alignment_error"]["spearman"] for one in (after, before))
        assert spearman == pytest.approx(once)

    def places(written: dict[str, np.ndarray]) -> list[int]:
        return [written["ids"].tolist().index(item) for item in ids.tolist()]

    found = dict(np.load(tmp_path / "p.npz"))
    assert found["average_precision"][places(found)] == pytest.approx(per_query["average_precision"])
    for name, arrays in zip(("query", "gallery"), upgrade, strict=True):
        written = dict(np.load(tmp_path / "kept" / f"{name}.npz"))
        assert np.array_equal(written["embeddings"][places(written)], arrays["embeddings"])


def test_a_part_of_the_gallery_as_queries(upgrade: tuple[Arrays, Arrays], tmp_path: Path) -> None:
    query, gallery = ({**arrays, "ids": TEXTS} for arrays in upgrade)
    some = np.random.default_rng(2).permutation(ITEMS)[:20]
    part = {name: array[some] for name, array in query.items()}
    write(tmp_path, q=part, g=gallery)
    assert figures(tmp_path) == expected(part, gallery, some)
    assert "eval_params.backfilling: needs queries and gallery of the same items" in refuse(tmp_path, *CURVE)


def test_side_information_is_joined_to_the_gallery(upgrade: tuple[Arrays, Arrays], tmp_path: Path) -> None:
    """h = old + 2 side: the rows of side-information in another order make no difference, other items are refused."""
    query, gallery = ({**arrays, "ids": TEXTS} for arrays in upgrade)
    dims = {"old_embedding_dim": 5, "new_embedding_dim": 5, "side_info_dim": 5}
    transformation = RidgeTransformation(**dims)
    with torch.no_grad():
        transformation.affine.weight.copy_(torch.cat([torch.eye(5), 2 * torch.eye(5)], dim=1))
        transformation.affine.bias.zero_()
    description = describe_transformation(transformation, {"arch": "ridge", **dims})
    save_model(tmp_path / "t.pt", description, config={}, seed=0)
    order = np.random.default_rng(3).permutation(ITEMS)
    side = {"embeddings": query["embeddings"][order], "ids": TEXTS[order]}
    write(tmp_path, q=query, g=gallery, s=side)
    h = gallery | {"embeddings": gallery["embeddings"] + 2 * query["embeddings"]}
    right = expected(query, h, np.arange(ITEMS))
    given = ("embeddings_params.transformation=t.pt", "embeddings_params.side_info=s.npz")
    assert figures(tmp_path, *given) == right
    write(tmp_path, g={name: array[order] for name, array in gallery.items()})
    assert figures(tmp_path, *given, "eval_params.backfilling=1") == right
    write(tmp_path, s=side | {"ids": np.char.add(side["ids"], "!")})
    message = "embeddings_params.side_info: s.npz and embeddings_params.gallery: g.npz hold different items: 60 ids"
    assert message in refuse(tmp_path, *given)
    message = "with no side-information, but of 5 with side-information of 5"
    assert f"t.pt does not take embeddings of dimension 5 {message}" in refuse(tmp_path, given[0])
