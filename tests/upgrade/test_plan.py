"""plan: the order file, the prediction's files, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upgrade.lookup import sorted_rows
from upgrade.order import _falling

from tests.upgrade.conftest import IDS, NEW_DIM, OLD_DIM, Case, N, write_transformation

PAIRS = ("plan_params.old=pairs_old.npz", "plan_params.new=pairs_new.npz", "plan_params.k=3")


def test_without_sigma_the_order_is_random_and_a_function_of_the_seed(case: Case) -> None:
    write_transformation(case.folder / "transformation.pt", arch="fct")
    case.run("transform")
    orders = []
    for seed in (0, 0, 1):
        case.run("plan", f"seed={seed}")
        orders.append(case.array("order"))
        assert np.array_equal(np.sort(orders[-1]), np.sort(IDS))
    assert np.array_equal(orders[0], orders[1])
    assert (orders[0] == orders[2]).mean() < 0.05
    assert abs(np.corrcoef(np.argsort(orders[0]), np.argsort(orders[2]))[0, 1]) < 0.2


def test_the_prediction_is_said_drawn_and_written(upgraded: Case) -> None:
    rng = np.random.default_rng(2)
    np.savez(upgraded.folder / "pairs_old.npz", embeddings=rng.normal(size=(60, OLD_DIM)).astype(np.float32))
    new = rng.normal(size=(60, NEW_DIM)).astype(np.float32)
    np.savez(upgraded.folder / "pairs_new.npz", embeddings=new, labels=np.arange(60) % 3)
    output = upgraded.run("plan", *PAIRS, "plan_params.items_per_second=2", "plan_params.points=4")
    plan = upgraded.json("plan/plan")
    answer = plan["answer"]
    assert answer["items"] == -(-answer["fraction"] * N // 1)
    assert answer["text"] == output.splitlines()[-1]
    assert answer["text"].startswith(f"re-embed {answer['items']} items ({100 * answer['fraction']:.1f} %) to reach ")
    assert answer["text"].endswith(f"at 2 items/s that is {answer['items'] / 7200:.3g} hours")
    assert answer["reached"] == pytest.approx(0.9)
    assert answer["interval"][0] <= answer["reached"] <= answer["interval"][1]
    assert list(plan["curves"]) == ["sigma", "random"]
    assert all(len(curve["values"]) == 6 for curve in plan["curves"].values())
    assert (upgraded.folder / "upgraded/plan/plan.png").read_bytes()[:4] == b"\x89PNG"
    upgraded.run("plan", *PAIRS, "plan_params.metric=map", "plan_params.max_pairs=40")
    plan = upgraded.json("plan/plan")
    assert (plan["metric"], plan["pairs"]) == ("mAP", 40)


def test_bad_pairs_are_refused(upgraded: Case) -> None:
    old, new = (np.ones((60, dim), np.float32) for dim in (OLD_DIM, NEW_DIM))
    ids, unit = np.arange(60), np.tile(np.eye(NEW_DIM, dtype=np.float32), (12, 1))
    cases: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray], tuple[str, ...], str]] = [
        ({}, {}, ("plan_params.old=null",), "plan_params.old, new: both or none"),
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


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 300), kinds=st.integers(1, 400), limit=st.integers(1, 50))
def test_sorting_in_parts_is_sorting(seed: int, count: int, kinds: int, limit: int) -> None:
    """Also with many equal keys, and with some left out."""
    values = np.random.default_rng(seed).integers(0, kinds, count).astype(np.uint64)

    def odd(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(start, stop)
        chosen = values[start:stop] % 2 == 1
        return values[start:stop][chosen], rows[chosen]

    parts = list(sorted_rows(odd, len(values), limit))
    (expected,) = np.nonzero(values % 2 == 1)
    expected = expected[values[expected].argsort(kind="stable")]
    assert np.array_equal(np.concatenate([rows for _, rows in parts]), expected)
    assert np.array_equal(np.concatenate([found for found, _ in parts]), values[expected])


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=2))
def test_keys_of_sigma_fall_as_it_rises(pair: list[float]) -> None:
    low, high = _falling(np.array(pair, np.float32))
    assert (pair[0] < pair[1]) == (low > high)
    assert (pair[0] == pair[1]) == (low == high)
