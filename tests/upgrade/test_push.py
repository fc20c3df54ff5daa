"""push and cutover: a store becomes what the table is, whatever has happened to either."""

from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.upgrade.conftest import IDS, Case, N, make_case, write_transformation
from tests.upgrade.fake_store import FakeStore
from upgrade.batches import apply_batch
from upgrade.columns import values, vectors_column
from upgrade.history import roll_back
from upgrade.pushing import cutover, push
from upgrade.transform import transform_gallery
from utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def store(case: Case, monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    """A store that holds the gallery, and that configs find."""
    fake = FakeStore(IDS, case.old)
    for module in ("inputs", "pushing"):
        monkeypatch.setattr(f"upgrade.{module}.open_store", lambda section: fake)
    return fake


def run(case: Case, store: FakeStore, **keys: Any) -> list[str]:
    return push(config(case, **keys), store, CPU)


def config(case: Case, **keys: Any) -> Any:
    return case.config("push", store={"kind": "fake"}, **keys)


def check(case: Case, store: FakeStore) -> None:
    """The store has what the table has."""
    content = case.content()
    rows = zip(content["id"].to_pylist(), values(content["embedding"]), content["batch"].to_pylist(), strict=True)
    wanted = {item: (vector, number) for item, vector, number in rows if item in store.old}
    assert wanted.keys() <= store.new.keys()
    for item, (vector, number) in wanted.items():
        assert np.array_equal(store.new[item][0], vector)
        assert store.new[item][1] == number
    assert store.record is not None
    assert store.record.table_version == case.table().version


def test_a_store_follows_the_table_and_gets_only_what_differs(case: Case, store: FakeStore) -> None:
    transform_gallery(config(case), CPU)
    assert f"{N:,} rows were pushed" in run(case, store)[-1]
    check(case, store)
    assert "0 rows were pushed" in run(case, store)[-1]
    for name, rows in (("first.npz", np.arange(50)), ("second.npz", np.arange(40, 70))):
        apply_batch(case.table(), str(case.folder / case.write_batch(name, rows)))
    assert "would transform 0 rows, and push 70" in run(case, store, dry_run=True)[-1]
    assert "70 rows were pushed" in run(case, store)[-1]
    check(case, store)
    roll_back(case.table(), "1")
    assert "30 rows were pushed" in run(case, store)[-1]  # what the second batch had changed
    check(case, store)
    case.run("plan", "gallery=null", "store={kind: fake}")
    assert "0 rows were pushed" in run(case, store)[-1]  # a plan changes no vector


def test_what_changes_in_the_store_is_transformed_and_pushed(case: Case, store: FakeStore) -> None:
    transform_gallery(config(case), CPU)
    apply_batch(case.table(), str(case.folder / case.write_batch("first.npz", np.arange(50))))
    run(case, store)
    before = case.array("embedding")
    changed, deleted, added, emptied = IDS[3], IDS[7], 10**7, IDS[60]
    store.old[changed] = case.old[3] + 1
    del store.old[deleted]
    store.old[added] = case.old[0] - 1
    store.old[emptied] = None
    with pytest.raises(UserError, match=r"1 added: 10000000; 1 changed.*2 deleted.*push` again"):
        cutover(config(case), store)
    dry = run(case, store, dry_run=True)
    assert "would transform 2 rows" in dry[-1]
    assert any("1 rows have no old vector" in line for line in dry)
    run(case, store)
    check(case, store)
    content = case.content()
    found = dict(zip(content["id"].to_pylist(), content["batch"].to_pylist(), strict=True))
    assert set(found) == {*IDS.tolist(), added} - {deleted, emptied}
    assert found[changed] == 0  # its new embedding was of what it was before
    kept = [row for row, item in enumerate(IDS.tolist()) if item in found and item != changed]
    place = {item: row for row, item in enumerate(content["id"].to_pylist())}
    after = values(content["embedding"])[[place[item] for item in IDS[kept].tolist()]]
    assert np.array_equal(after, before[kept])
    assert "the vectors of resnet50-2024 are served" in cutover(config(case), store)
    assert store.served == "new"
    cutover(config(case, undo=True), store)
    assert store.served == "old"


def test_a_cutover_needs_what_the_table_is(case: Case, store: FakeStore) -> None:
    transform_gallery(config(case), CPU)
    with pytest.raises(UserError, match="nothing was pushed to it"):
        cutover(config(case), store)
    run(case, store)
    apply_batch(case.table(), str(case.folder / case.write_batch("first.npz", np.arange(50))))
    with pytest.raises(UserError, match="50 rows are not pushed yet"):
        cutover(config(case), store)
    run(case, store)
    cutover(config(case), store)
    other = case.config("push", store={"kind": "fake"})
    other.new_model = "vit"
    store.old[IDS[0]] = case.old[0] + 1
    with pytest.raises(UserError, match="another upgrade: new_model is 'vit'"):
        push(other, store, CPU)


@pytest.mark.parametrize("unit", [False, True])
def test_calibrated_vectors_are_pushed_with_their_coordinate(
    tmp_path: Path, unit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(tmp_path / "case", unit=unit)
    recorded: dict[str, Any] = {"normalised": True} if unit else {}
    write_transformation(case.folder / "transformation.pt", "fastfill", {"l2": 2.25, "cosine": 0.6}, **recorded)
    store = FakeStore(IDS, case.old)
    monkeypatch.setattr("upgrade.inputs.open_store", lambda section: store)
    transform_gallery(config(case), CPU)
    apply_batch(case.table(), str(case.folder / case.write_batch("first.npz", np.arange(50))))
    run(case, store)
    assert store.record is not None
    assert store.record.calibration == {"distance": "cosine" if unit else "l2", "value": 0.6 if unit else 2.25}
    last = np.array([store.new[item][0][-1] for item in IDS.tolist()], np.float32)
    assert (last[:50] == 0).all()
    np.testing.assert_allclose(last[50:], 0.8 if unit else 1.5, rtol=1e-3)
    if unit:
        lengths = np.linalg.norm(np.stack([store.new[item][0] for item in IDS.tolist()]).astype(np.float32), axis=1)
        np.testing.assert_allclose(lengths, 1, atol=2e-3)


def write_users_table(case: Case, **columns: Any) -> None:
    vectors = vectors_column(case.old)
    table = pa.table({"key": IDS, "vector": vectors, "title": [f"item {item}" for item in IDS], **columns})
    lance.write_dataset(table, str(case.folder / "items.lance"), mode="overwrite", max_rows_per_file=200)


STORE = "store={kind: lance, uri: items.lance, id: key, embedding: vector}"


def test_a_column_of_a_lance_table_from_the_first_step_to_the_last(case: Case) -> None:
    write_users_table(case)
    arguments = ("gallery=null", STORE)
    case.run("transform", *arguments, "chunk_rows=64")
    reference = make_case(case.folder / "reference")
    reference.run("transform")
    np.testing.assert_allclose(case.array("embedding"), reference.array("embedding"), atol=1e-3)
    case.run("apply", *arguments, "--batch", case.write_batch("first.npz", np.arange(50)))
    assert "store: nothing was pushed to it" in case.refuse("cutover", *arguments)
    assert "would transform 0 rows, and push 500 beside those" in case.run("push", *arguments, "--dry-run")
    assert "500 rows were pushed" in case.run("push", *arguments)
    dataset = lance.dataset(str(case.folder / "items.lance"))
    dataset.insert(pa.table({"key": [10**8], "vector": vectors_column(case.old[:1])}))
    error = case.refuse("cutover", *arguments)
    assert "1 added: 100000000; 0 changed; 0 deleted since it was transformed, and 0 rows are not pushed" in error
    case.run("push", *arguments)
    assert "the vectors of resnet50-2024 are served" in case.run("cutover", *arguments)
    found = lance.dataset(str(case.folder / "items.lance")).to_table().sort_by("key")
    content = case.content()
    assert np.array_equal(values(found["vector"]), values(content["embedding"]))
    assert np.array_equal(values(found["vector_batch"]), values(content["batch"]))
    place = np.argsort(IDS)
    assert np.array_equal(values(found["vector_old"])[:N], case.old[place])
    assert found["title"].to_pylist()[:N] == [f"item {item}" for item in IDS[place]]
    case.run("apply", *arguments, "--batch", case.write_batch("second.npz", np.arange(100, 120)))
    assert "20 rows were pushed" in case.run("push", *arguments)  # into what is served now
    case.run("cutover", "--undo", *arguments)
    found = lance.dataset(str(case.folder / "items.lance")).to_table().sort_by("key")
    assert np.array_equal(values(found["vector"])[:N], case.old[place])
    assert np.array_equal(values(found["vector_new"]), values(case.content()["embedding"]))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("kind: lanse", "store.kind: unknown 'lanse'; did you mean lance?"),
        ("uri: items.lance", "store.kind: unknown None"),
        ("kind: lance", "store: uri: is missing"),
        ("kind: lance, uri: nothing.lance", "store.uri: nothing.lance cannot be opened as a Lance table"),
        ("kind: lance, uri: items.lance", "store.id: items.lance has no column id; it has key, vector, title"),
        ("kind: lance, uri: items.lance, id: vector, embedding: vector", "neither whole numbers nor text"),
        ("kind: lance, uri: items.lance, id: key, embedding: title", "title is string, no list of a fixed size"),
        (
            "kind: lance, uri: items.lance, id: key, embedding: vector, labl: x",
            "unknown key `labl`; did you mean `label`?",
        ),
    ],
)
def test_a_store_that_cannot_be_opened(case: Case, keys: str, message: str) -> None:
    write_users_table(case)
    assert message in case.refuse("transform", "gallery=null", f"store={{{keys}}}")


def test_items_of_a_store_that_cannot_be_told(case: Case) -> None:
    lance.write_dataset(
        pa.table({"key": np.append(IDS[:-1], IDS[0]), "vector": vectors_column(case.old)}), case.folder / "items.lance"
    )
    error = case.refuse_midway("transform", "gallery=null", STORE)
    assert "its ids are not unique, or do not come in rising order" in error
    assert "store: is missing; a gallery in files is written by" in case.refuse("push")
    assert "gallery, store: one of the two" in case.refuse("transform", "gallery=null")
    assert "gallery, store: one of the two" in case.refuse("transform", STORE)
