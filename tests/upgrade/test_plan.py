"""plan: the order file, the prediction's files, and what it refuses."""

import numpy as np
import pytest

from data.sources.rows import Rows, parts_of
from tests.upgrade.conftest import IDS, NEW_DIM, OLD_DIM, Case, N, write_transformation
from upgrade.old import read_checked

PAIRS = ("plan_params.old=pairs_old.npz", "plan_params.new=pairs_new.npz", "plan_params.k=3")


def order_of(case: Case, *arguments: str) -> np.ndarray:
    """The ids that are to be re-embedded, as a user gets them."""
    case.run("plan", *arguments)
    case.run("export", "--next", "next.npy")
    found: np.ndarray = np.load(case.folder / "next.npy")
    return found


def test_the_order_is_that_of_falling_sigma_less_what_is_re_embedded(upgraded: Case) -> None:
    falling = IDS[np.lexsort((IDS, -upgraded.array("sigma")))]
    assert np.array_equal(order_of(upgraded), falling)
    assert np.array_equal(order_of(upgraded, "order=sigma"), falling)
    upgraded.run("apply", "--batch", upgraded.write_batch("batch.npz", np.arange(100)))
    upgraded.run("export", "--next", "next.npy", "--limit", "20")
    left = falling[~np.isin(falling, IDS[:100])]
    assert np.array_equal(np.load(upgraded.folder / "next.npy"), left[:20])
    assert np.array_equal(order_of(upgraded), left)
    assert upgraded.tags()["batch-1"] == upgraded.table().version  # a rollback comes back to this plan


def test_an_order_by_a_classifier(upgraded: Case) -> None:
    weight = np.random.default_rng(4).normal(size=(7, NEW_DIM)).astype(np.float32)
    np.save(upgraded.folder / "classifier.npy", weight)
    logits = upgraded.array("embedding").astype(np.float64) @ weight.T.astype(np.float64)
    probability = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).max(1)
    found = order_of(upgraded, "order=confidence", "classifier=classifier.npy")
    places = {item: row for row, item in enumerate(IDS.tolist())}
    in_order = probability[[places[item] for item in found.tolist()]]
    assert (np.diff(in_order) > -1e-6).all()
    assert "by sigma" in upgraded.run(
        "plan", "classifier=classifier.npy"
    )  # the gallery keeps to a few of these classes
    assert "order: confidence needs the new model's `classifier`" in upgraded.refuse("plan", "order=confidence")
    np.save(upgraded.folder / "classifier.npy", weight[:, :3])
    assert "should be (classes, 5) floating point" in upgraded.refuse("plan", "classifier=classifier.npy")


def test_auto_takes_the_classifier_whose_classes_the_gallery_spreads_over(case: Case) -> None:
    write_transformation(case.folder / "transformation.pt", arch="fct")
    case.run("transform")
    np.save(case.folder / "classifier.npy", np.eye(NEW_DIM, dtype=np.float32))
    assert "by random" in case.run("plan")
    assert "by confidence" in case.run("plan", "classifier=classifier.npy")
    assert "order: sigma needs a transformation with a log variance" in case.refuse("plan", "order=sigma")


def test_without_sigma_the_order_is_random_and_a_function_of_the_seed(case: Case) -> None:
    write_transformation(case.folder / "transformation.pt", arch="fct")
    case.run("transform")
    assert "has no plan yet" in case.refuse("export", "--next", "next.npy")
    orders = [order_of(case, f"seed={seed}") for seed in (0, 0, 1)]
    assert all(np.array_equal(np.sort(order), np.sort(IDS)) for order in orders)
    assert np.array_equal(orders[0], orders[1])
    assert (orders[0] == orders[2]).mean() < 0.05
    assert abs(np.corrcoef(np.argsort(orders[0]), np.argsort(orders[2]))[0, 1]) < 0.2


def test_the_prediction_is_said_drawn_and_written(upgraded: Case) -> None:
    rng = np.random.default_rng(2)
    np.savez(upgraded.folder / "pairs_old.npz", embeddings=rng.normal(size=(60, OLD_DIM)).astype(np.float32))
    new = rng.normal(size=(60, NEW_DIM)).astype(np.float32)
    np.savez(upgraded.folder / "pairs_new.npz", embeddings=new, labels=np.arange(60) % 3)
    output = upgraded.run("plan", *PAIRS, "plan_params.items_per_second=2", "plan_params.points=4")
    plan = upgraded.json("plan")
    answer = plan["answer"]
    assert answer["items"] == -(-answer["fraction"] * N // 1)
    assert answer["text"] == output.splitlines()[-1]
    assert answer["text"].startswith(f"re-embed {answer['items']} items ({100 * answer['fraction']:.1f} %) to reach ")
    assert answer["text"].endswith(f"at 2 items/s that is {answer['items'] / 7200:.3g} hours")
    assert answer["reached"] == pytest.approx(0.9)
    assert answer["interval"][0] <= answer["reached"] <= answer["interval"][1]
    assert list(plan["curves"]) == ["sigma", "random"]
    assert all(len(curve["values"]) == 6 for curve in plan["curves"].values())
    assert (upgraded.folder / "upgraded.lance.plan/plan.png").read_bytes()[:4] == b"\x89PNG"
    upgraded.run("plan", *PAIRS, "plan_params.metric=map", "plan_params.max_pairs=40")
    plan = upgraded.json("plan")
    assert (plan["metric"], plan["pairs"]) == ("mAP", 40)


def test_bad_pairs_are_refused(upgraded: Case) -> None:
    old, new = (np.ones((60, dim), np.float32) for dim in (OLD_DIM, NEW_DIM))
    ids, unit = np.arange(60), np.tile(np.eye(NEW_DIM, dtype=np.float32), (12, 1))
    cases: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray], tuple[str, ...], str]] = [
        ({}, {}, ("plan_params.new=null",), "plan_params.old: goes with new, of the same items"),
        ({}, {}, ("plan_params.old=null",), "pairs_new.npz: has no ids of the gallery's kind; without plan_params.old"),
        ({}, {}, ("plan_params.metric=map",), "metric: map needs `labels` in pairs_new.npz"),
        ({}, {}, ("plan_params.k=40",), "k: 40 is too deep for a sample of 60 pairs"),
        ({"ids": ids}, {"ids": 1 + ids}, (), "old: pairs_old.npz and pairs_new.npz hold different items: 1 ids"),
        ({"ids": ids}, {}, (), "pairs_old.npz has `ids` and pairs_new.npz has none"),
        ({"embeddings": old[:50]}, {}, (), "pairs_old.npz and pairs_new.npz hold different items: 50 and 60 of them"),
        ({"embeddings": 1e6 * upgraded.old[:60]}, {}, (), "holds values beyond 65504, the largest of float16"),
        ({}, {"embeddings": unit}, (), "pairs_new.npz: embeddings of length 1 are those of one of the two"),
        ({}, {"embeddings": np.ones((60, 9), np.float32)}, (), "pairs_new.npz is 9-d, but the gallery's"),
    ]
    for of_old, of_new, arguments, message in cases:
        for name, arrays in (("old", {"embeddings": old, **of_old}), ("new", {"embeddings": new, **of_new})):
            np.savez(upgraded.folder / f"pairs_{name}.npz", **arrays)  # type: ignore[arg-type]
        error = upgraded.refuse("plan", *PAIRS, *arguments)
        assert "plan_params" in error
        assert message in error
    np.savez(upgraded.folder / "pairs_new.npz", embeddings=new)
    write_transformation(upgraded.folder / "transformation.pt", inner_dim=8)
    assert "transformation.pt is not what the gallery was made with" in upgraded.refuse("plan", *PAIRS)


def test_a_sample_that_is_the_whole_gallery_is_read_in_parts(upgraded: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more rows than a part are in memory at once, but those that are drawn, which are the same."""
    rng, asked = np.random.default_rng(6), list[int]()
    for role, dim in (("old", OLD_DIM), ("new", NEW_DIM)):
        embeddings = rng.normal(size=(60, dim)).astype(np.float32)
        np.savez(upgraded.folder / f"pairs_{role}.npz", embeddings=embeddings, ids=IDS[:60])

    def watched(vectors: Rows, where: str, start: int, stop: int) -> np.ndarray:
        asked.append(stop - start)
        return read_checked(vectors, where, start, stop)

    for ways in (PAIRS, PAIRS[1:]):  # pairs of a sample, and new embeddings whose items the table has
        upgraded.run("plan", *ways, "plan_params.max_pairs=40")
        whole = (upgraded.folder / "upgraded.lance.plan" / "plan.json").read_text()
        with monkeypatch.context() as patched:
            patched.setattr("upgrade.planning.parts_of", lambda count: parts_of(count, 7))
            patched.setattr("upgrade.planning.read_checked", watched)
            upgraded.run("plan", *ways, "plan_params.max_pairs=40")
        assert (upgraded.folder / "upgraded.lance.plan" / "plan.json").read_text() == whole
    assert len(asked) > 20
    assert max(asked) == 7
