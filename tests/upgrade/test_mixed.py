"""A third model comes while the gallery is half re-embedded by the second: every row against a replay, row by row."""

import json
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch

from retrieval import Calibration, evaluate
from tests.tiny import succeed
from tests.upgrade.conftest import IDS, NEW_DIM, OLD_DIM, Case, N, write_transformation
from tests.upgrade.fake_store import FakeStore
from tests.upgrade.second_upgrade import DIM, DIRECT, FIRST, Again, make_again, one
from upgrade.columns import values, vectors_column
from upgrade.pushing import cutover, push


@pytest.fixture(params=[(DIRECT,), ()], ids=["own transformation", "both in turn"])
def again(tmp_path: Path, request: pytest.FixtureRequest) -> Again:
    """A gallery that model 2 has half re-embedded, not yet upgraded to model 3."""
    return make_again(tmp_path / "case", request.param)


def test_every_row_is_what_a_replay_makes_of_it_at_each_step(again: Again) -> None:
    exact = np.isin(np.arange(N), FIRST)
    before = again.case.content()
    again.run("transform")
    again.check(exact)
    assert "are in vit-2026's space already" in again.run("transform")
    again.run("plan", "order=sigma")
    made = dict.fromkeys(range(100, 220), 1)
    again.apply(np.array(list(made)))
    again.check(exact, made)
    assert "every row is what transform or a batch made of it" in again.run("status", "--verify")
    assert "one of their own, in the column calibration" in again.run("status")
    assert again.case.content() == before  # of which nothing was changed

    # The second model goes on, and takes a batch back; what the third has re-embedded stays.
    again.case.run("apply", "--batch", again.case.write_batch("second.npz", np.arange(200, 260)))
    moved = np.isin(np.arange(N), [*FIRST, *range(200, 260)])
    assert "60 of another state in it" in again.run("transform")
    again.check(moved, made)
    again.case.run("rollback")
    assert "210 of another state in it" in again.run("transform")
    again.check(np.zeros(N, bool), made)
    again.run("status", "--verify")

    # An item that has changed loses what was made of it, others do not.
    old = again.case.old.copy()
    old[[120, 300]] += 1
    again.case.write_old(embeddings=old, labels=np.arange(N) % 5)
    again.case.run("transform")
    changed = Again(Case(again.case.folder, old, again.case.new), again.more, again.new)
    assert "2 changed" in changed.run("transform")
    del made[120]
    changed.check(np.zeros(N, bool), made)
    again.run("rollback", "--to", "old")
    assert not (again.case.folder / "third.lance").exists()


def test_another_transformation_of_either_kind_renews_those_rows(again: Again) -> None:
    exact = np.isin(np.arange(N), FIRST)
    again.run("transform")
    made = dict.fromkeys(range(100, 220), 1)
    again.apply(np.array(list(made)))
    other = Again(again.case, () if again.more else (DIRECT,), again.new)
    assert "is not what the gallery was made with" in other.refuse("status", "--verify")
    other.run("transform")
    other.check(exact, made)
    other.run("rollback", "--to", "1")
    again.check(exact, made)


def test_what_is_served_judged_and_exported_has_each_rows_own_calibration(again: Again) -> None:
    faiss = pytest.importorskip("faiss")
    exact, folder = np.isin(np.arange(N), FIRST), again.case.folder
    made = dict.fromkeys(range(100, 220), 1)
    again.run("transform")
    again.apply(np.array(list(made)))
    served = again.served(exact, made)
    again.run("export", "--to", "third.faiss")
    index = faiss.read_index(str(folder / "third.faiss"))
    assert np.allclose(index.reconstruct_batch(IDS), served, atol=3e-3)
    again.run("export", "--to", "third.npz")
    arrays = np.load(folder / "third.npz")
    rows = np.argsort(IDS)
    np.testing.assert_allclose(arrays["calibration"], again.replay(exact, made)["calibration"][rows], rtol=1e-5)

    labels = np.arange(N) % 5
    np.savez(folder / "queries.npz", embeddings=again.new, ids=IDS, labels=labels)
    (folder / "eval.yaml").write_text("embeddings_params: {query: queries.npz, gallery: third.lance}")
    succeed("eval.py", "--config", "eval.yaml", "--output", "result.json", cwd=folder, processes=None)
    new = np.pad(again.new.astype(np.float32), ((0, 0), (0, 1)))
    wanted = evaluate(*map(torch.from_numpy, (new, served.astype(np.float32), labels)))
    found = json.loads((folder / "result.json").read_text())
    assert found["metrics"] == pytest.approx(wanted.to_json(), abs=2e-3)

    again.run("export", "--pairs", "pairs")  # to fit h_23 to: of items that both models have embedded
    pairs = np.load(folder / "pairs_old.npz")
    assert set(pairs["ids"].tolist()) == set(IDS[100:150].tolist())
    place = {item: row for row, item in enumerate(IDS.tolist())}
    assert np.array_equal(pairs["embeddings"], again.case.new[[place[item] for item in pairs["ids"].tolist()]])


def test_the_plan_looks_its_sample_up_in_the_table(again: Again) -> None:
    again.run("transform")
    again.apply(np.arange(20))
    np.savez(again.case.folder / "sample.npz", embeddings=again.new[::5], ids=IDS[::5])
    output = again.run("plan", "plan_params.new=sample.npz", "plan_params.points=3", "plan_params.k=3")
    assert "predicted on 96 pairs" in output  # four of a hundred are re-embedded
    plan = json.loads((again.case.folder / "third.lance.plan/plan.json").read_text())
    assert plan["items"] == N
    first = plan["curves"]["random"]["values"][0]
    rows = np.arange(20, N, 5)
    served = again.served(np.isin(np.arange(N), FIRST), {})[rows]
    new = np.pad(again.new.astype(np.float32), ((0, 0), (0, 1)))[rows]
    assert first == pytest.approx(recall(new, served, 3), abs=0.02)
    again.refuse("plan", "plan_params.new=sample.npz", "plan_params.old=first.npz")
    np.savez(again.case.folder / "sample.npz", embeddings=again.new[::5], ids=IDS[::5] + 10**6)
    assert "the gallery has no id" in again.refuse("plan", "plan_params.new=sample.npz")


def recall(new: np.ndarray, gallery: np.ndarray, k: int) -> float:
    """The share of an item's k nearest new embeddings that it finds in a gallery, by plain loops."""
    found = []
    for row, query in enumerate(new):
        nearest = []
        for items in (new, gallery):
            distances = np.square(items - query).sum(1)
            distances[row] = np.inf
            nearest.append(set(np.argsort(distances)[:k].tolist()))
        found.append(len(nearest[0] & nearest[1]) / k)
    return float(np.mean(found))


def test_a_store_is_pushed_to_beside_the_table(again: Again, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore(IDS, again.case.old)
    again.run("transform")
    again.apply(np.arange(100, 220))
    folder = again.case.folder
    keys = {
        "gallery": again.case.uri,
        "output": str(folder / "third.lance"),
        "transformation_path": str(folder / "h23.pt"),
        "old_model": "resnet50-2024",
        "new_model": "vit-2026",
    }
    from upgrade.config import EarlierParams

    direct = EarlierParams(str(folder / "h13.pt"), str(folder / "old.npz")) if again.more else EarlierParams()
    config = again.case.config("push", store={"kind": "fake"}, earlier=direct, **keys)
    lines = push(config, store, torch.device("cpu"))
    assert "500 rows were pushed" in lines[-1]
    made = dict.fromkeys(range(100, 220), 1)
    served = again.served(np.isin(np.arange(N), FIRST), made)
    for row, item in enumerate(IDS.tolist()):
        vector, batch = store.new[item]
        np.testing.assert_allclose(vector.astype(np.float32), served[row], atol=2e-3)
        assert batch == made.get(row, 0)
    assert "the vectors of vit-2026 are served" in cutover(config, store)


def test_vectors_of_length_1_and_their_factors(tmp_path: Path) -> None:
    """Factors multiply, but for what the second transformation does to errors."""
    constant = torch.tensor([0.5])
    calibration = Calibration("cosine", 0.8)
    assert calibration.chained(torch.tensor([0.9]), "cosine", 1.0) == pytest.approx(0.8 * 0.9)
    assert calibration.chained(constant, "l2", 0.5) == pytest.approx(0.8 * (1 - 0.125))
    assert Calibration("l2", 2.0).chained(constant, "l2", 3.0) == pytest.approx(3.5)
    assert Calibration("l2", 2.0).chained(torch.tensor([0.75]), "cosine", 2.0) == pytest.approx(3.0)
    vectors, own = torch.eye(3)[:2], torch.tensor([0.6, 1.0])
    made = calibration.mixed(vectors, torch.tensor([False, True]), own)
    assert torch.allclose(made, torch.tensor([[0.6, 0, 0, 0.8], [0, 1, 0, 0]]))


def test_errors_of_two_transformations_add() -> None:
    """Made-up models of which the second sees less than the third, and the first less than the second."""
    random = torch.Generator().manual_seed(0)
    n3 = torch.randn(4000, 12, generator=random)
    n2 = n3[:, :8] * 1.5 + 0.3 * torch.randn(4000, 8, generator=random)
    x = n2[:, :5] + 0.3 * torch.randn(4000, 5, generator=random)
    m = x @ torch.linalg.lstsq(x[:2000], n2[:2000]).solution
    h23 = torch.linalg.lstsq(n2[:2000], n3[:2000]).solution
    error12, error23 = ((a - b).square().sum(1).mean() for a, b in ((n2, m), (n3, n2 @ h23)))
    gain = (n2 @ h23).var(0).sum() / n2.var(0).sum()
    direct = (n3 - m @ h23).square().sum(1).mean()
    added = Calibration("l2", float(error23)).chained(error12[None], "l2", float(gain))
    assert float(added) == pytest.approx(float(direct), rel=0.03)
    assert float(error23) < 0.8 * float(direct)


def test_bad_input(tmp_path: Path) -> None:
    again = make_again(tmp_path / "case", (DIRECT,))
    folder, case = again.case.folder, again.case
    plain = Again(case, (), again.new)
    lance.write_dataset(pa.table({"id": IDS, "embedding": vectors_column(case.old)}), str(folder / "items.lance"))
    write_transformation(folder / "narrow.pt", new_embedding_dim=DIM - 1)
    np.savez(folder / "fewer.npz", embeddings=case.old[:-1], ids=IDS[:-1])
    np.savez(folder / "other.npz", embeddings=case.old[::-1], ids=IDS)
    np.savez(folder / "names.npz", embeddings=case.old, ids=IDS.astype(str))
    own = "earlier={gallery: %s, transformation_path: %s}"
    for upgrade, arguments, message in (
        (plain, ["old_model=clip"], "gallery: upgraded.lance is of resnet50-2024, not of old_model: clip"),
        (plain, ["gallery=items.lance"], "is a Lance table, but not one of an upgrade; name it as a `store`"),
        (plain, ["transformation_path=h13.pt"], "h13.pt does not take the 5-d embeddings of upgraded.lance"),
        (plain, ["gallery=first.npz", DIRECT], "earlier: goes with a gallery that is a table of an upgrade"),
        (plain, ["earlier={gallery: old.npz}"], "transformation_path goes with one of gallery and store"),
        (plain, ["engine=ray"], "engine: ray reads galleries in files"),
        (plain, ["ids=old.npz"], "gallery: upgraded.lance has ids of its own"),
        (plain, ["output=upgraded.lance/third"], "is a place of the old gallery upgraded.lance"),
        (plain, [own % ("old.npz", "h23.pt")], "earlier.transformation_path: h23.pt does not take the 6-d embeddings"),
        (plain, [own % ("old.npz", "narrow.pt")], "narrow.pt: is into another space than transformation_path: h23.pt"),
        (plain, [own % ("gone.npz", "h13.pt")], "earlier.gallery: there is no gone.npz"),
        (plain, [own % ("names.npz", "h13.pt")], "earlier.gallery: names.npz: its ids are string, those of"),
        (plain, [own % ("fewer.npz", "h13.pt")], f"earlier.gallery: fewer.npz: has no item {IDS[-1]}, which"),
        (plain, [own % ("other.npz", "h13.pt")], "other.npz: holds another embedding of item"),
    ):
        assert message in upgrade.refuse("transform", *arguments)
    old = case.old.copy()
    old[300] = np.nan
    np.savez(folder / "bad.npz", embeddings=old, ids=IDS)
    case.refuse_midway("transform", "gallery=bad.npz", "output=begun.lance", "fragment_rows=64")
    error = plain.refuse("transform", "gallery=begun.lance")
    assert "gallery: begun.lance is not fully transformed yet; finish that upgrade's transform first" in error
    again.run("transform")
    error = plain.refuse("transform", "gallery=first.npz")
    assert "another upgrade: " in error


def test_an_interrupted_step_goes_on_where_it_was(again: Again, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.upgrade.test_renewal import broken_at

    exact = np.isin(np.arange(N), FIRST)
    done: list[int] = []
    with monkeypatch.context() as patch:
        broken_at(320, patch, done)
        with pytest.raises(AssertionError, match="interrupted"):
            again.run("transform", "fragment_rows=128")
    assert max(done) < 320
    broken_at(10**9, monkeypatch, done := [])
    again.run("transform", "fragment_rows=128")
    assert min(done) == 256
    again.check(exact)


def test_a_third_upgrade_of_a_mixed_table(tmp_path: Path) -> None:
    """Rows that two transformations have made go through a third, with what all three need."""
    again = make_again(tmp_path / "case", ())
    again.run("transform")
    again.apply(np.arange(100, 220))
    folder = again.case.folder
    dims: dict[str, Any] = {"old_embedding_dim": DIM, "new_embedding_dim": 3, "side_info_dim": DIM}
    model = write_transformation(folder / "h34.pt", calibration={"l2": 0.5}, **dims)
    keys = ("gallery=third.lance", "transformation_path=h34.pt", "output=fourth.lance", "old_model=vit-2026")
    again.run("transform", *keys, "new_model=next")
    wanted = one_by_one(model, again.array("embedding"))
    np.testing.assert_allclose(again.case.array("embedding", "fourth.lance"), wanted, rtol=2e-3, atol=2e-3)
    gain = json.loads(lance.dataset(str(folder / "fourth.lance")).schema.metadata[b"refill"])["earlier"]["gain"]
    exact = np.isin(np.arange(N), np.arange(100, 220))
    values_ = np.where(exact, 0.5, 0.5 + gain * again.array("calibration"))
    np.testing.assert_allclose(again.case.array("calibration", "fourth.lance"), values_, rtol=1e-5)
    assert "third.lance was itself made from such a gallery" in again.refuse("transform", *keys, "new_model=x", DIRECT)
    assert values(again.case.content("fourth.lance")["batch"]).max() == 0


def one_by_one(model: torch.nn.Module, vectors: np.ndarray) -> np.ndarray:
    return np.stack([one(model, vector.astype(np.float32)).embedding[0].numpy() for vector in vectors])


def test_side_information_of_both_kinds(tmp_path: Path) -> None:
    """Each transformation has its own, in an order of its own."""
    again = make_again(tmp_path / "case", ())
    folder, rng = again.case.folder, np.random.default_rng(7)
    sides = {name: rng.normal(size=(N, dim)).astype(np.float32) for name, dim in (("third", 3), ("first", 2))}
    for name, side in sides.items():
        order = rng.permutation(N)
        np.savez(folder / f"side_{name}.npz", embeddings=side[order], ids=IDS[order])
    dims: dict[str, Any] = {"old_embedding_dim": NEW_DIM, "new_embedding_dim": DIM, "side_info_dim": 3}
    h23 = write_transformation(folder / "h23.pt", **dims)
    h13 = write_transformation(folder / "h13.pt", new_embedding_dim=DIM, side_info_dim=2)
    own = "earlier={gallery: old.npz, transformation_path: h13.pt, side_info: side_first.npz}"
    again.run("transform", "side_info=side_third.npz", own)
    second = again.case.array("embedding").astype(np.float32)
    with torch.no_grad():
        ways = [
            model(torch.from_numpy(old), side_info=torch.from_numpy(sides[name])).embedding.numpy()
            for model, old, name in ((h23, second, "third"), (h13, again.case.old, "first"))
        ]
    exact = np.isin(np.arange(N), FIRST)[:, None]
    np.testing.assert_allclose(again.array("embedding"), np.where(exact, *ways), rtol=2e-3, atol=2e-3)
    assert OLD_DIM != NEW_DIM


def test_the_vectors_before_may_be_in_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = make_again(tmp_path / "case", ("earlier={store: {kind: fake}, transformation_path: h13.pt}",))
    monkeypatch.setattr("upgrade.inputs.open_store", lambda section: FakeStore(IDS, again.case.old))
    again.run("transform")
    again.check(np.isin(np.arange(N), FIRST))


def test_a_finished_upgrade_is_upgraded_again(tmp_path: Path) -> None:
    again = make_again(tmp_path / "case", ())
    again.case.run("apply", "--batch", again.case.write_batch("all.npz", np.arange(N)))
    again.run("transform", "fragment_rows=128")
    again.check(np.ones(N, bool))
