"""apply and rollback: what ends up in the gallery, and what is refused."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.upgrade.conftest import IDS, NEW_DIM, Case, N, make_case
from upgrade.batches import apply_batch
from upgrade.durable import Unsynced
from upgrade.history import roll_back
from utils.errors import UserError


def check_gallery(case: Case, transformed: np.ndarray, re_embedded: np.ndarray) -> None:
    """The rows `re_embedded` hold the new embeddings, the others what transform gave; everything else agrees."""
    mask = np.zeros(N, bool)
    mask[re_embedded] = True
    assert np.array_equal(case.array("embedding"), np.where(mask[:, None], case.new, transformed))
    assert np.array_equal(case.array("batch") > 0, mask)
    assert np.array_equal(case.null("priority"), mask)
    priority, sigma = case.array("priority"), case.array("sigma")
    assert np.array_equal(priority[~mask], sigma[~mask])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=30), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    back=st.integers(0, 4),
)
def test_any_batches_in_any_order(upgraded: Case, batches: list[list[int]], seed: int, back: int) -> None:
    """The gallery is a function of the set of items: not of order, repetitions or overlaps; rollback undoes to any."""
    untouched, transformed = upgraded.content(), upgraded.array("embedding")
    shuffled = [*batches, batches[0]]
    random.Random(seed).shuffle(shuffled)
    states = [untouched]
    for number, rows in enumerate(shuffled):
        batch = upgraded.write_batch(f"{number}.npz", np.array(rows))
        if apply_batch(upgraded.table(), str(upgraded.folder / batch)).changed:
            states.append(upgraded.content())
    check_gallery(upgraded, transformed, np.unique(np.concatenate(batches)))
    target = min(back, len(states) - 1)
    roll_back(upgraded.table(), str(target))
    assert upgraded.content() == states[target]
    roll_back(upgraded.table(), "transformed")
    assert upgraded.content() == untouched
    assert list(upgraded.tags()) == ["transformed"]


def test_everything_can_be_re_embedded(upgraded: Case) -> None:
    before, transformed = upgraded.content(), upgraded.array("embedding")
    check_gallery(upgraded, transformed, np.array([], int))
    output = upgraded.run("apply", "--batch", upgraded.write_batch("first.npz", np.arange(450)))
    assert "450 items, 450 of them re-embedded for the first time" in output
    assert "450 of 500 items are re-embedded" in output
    upgraded.run("apply", "--batch", upgraded.write_batch("all.npz", np.arange(N)))
    version = upgraded.table().version
    assert "all of its 450 items are in the gallery already" in upgraded.run("apply", "--batch", "first.npz")
    assert upgraded.table().version == version
    for step in (("plan",), ("status", "--verify")):
        upgraded.run(*step)
        check_gallery(upgraded, transformed, np.arange(N))
    assert "is what it was as transformed: 0 of 500" in upgraded.run("rollback")
    assert upgraded.content() == before


def test_a_second_embedding_replaces_the_first_and_rollback_brings_it_back(upgraded: Case) -> None:
    rows = np.arange(20)
    upgraded.run("apply", "--batch", upgraded.write_batch("first.npz", rows))
    first = upgraded.content()
    upgraded.run("apply", "--batch", upgraded.write_batch("second.npz", rows, upgraded.new[rows] + 1))
    assert np.array_equal(upgraded.array("embedding")[:20], upgraded.new[:20] + np.float16(1))
    assert set(upgraded.tags()) == {"batch-1", "batch-2", "transformed"}
    upgraded.run("rollback", "--to", "1")
    assert upgraded.content() == first
    error = upgraded.refuse("rollback", "--to", "2")
    assert "to: 2 is no state of upgraded.lance; there are transformed, batch-1, and old" in error


def test_rollback_to_old_compares_every_row_and_leaves_only_the_old_gallery(upgraded: Case) -> None:
    old = (upgraded.folder / "old.npz").read_bytes()
    upgraded.run("apply", "--batch", upgraded.write_batch("batch.npz", np.arange(20)))
    for row in (0, 250, N - 1):  # any one of them
        changed = upgraded.old.copy()
        changed[row, 0] += 1e-6
        np.savez(upgraded.folder / "other.npz", embeddings=changed, ids=IDS)
        error = upgraded.refuse("rollback", "--to", "old", "gallery=other.npz")
        assert f"other.npz is not what was transformed (0 added; 1 changed: {IDS[row]}; 0 deleted)" in error
    (upgraded.folder / "upgraded.lance/notes.txt").write_text("mine")
    assert "upgraded.lance holds notes.txt too; it is left alone" in upgraded.refuse("rollback", "--to", "old")
    (upgraded.folder / "upgraded.lance/notes.txt").unlink()
    output = upgraded.run("rollback", "--to", "old")
    assert "removed; all 500 rows of gallery: old.npz are as they were" in output
    assert (upgraded.folder / "old.npz").read_bytes() == old
    assert not list(upgraded.folder.glob("*upgraded*"))
    assert "upgraded.lance is no upgraded gallery" in upgraded.refuse("status")
    (upgraded.folder / ".upgraded.lance.rolled-back.tmp").mkdir()  # as if it had been killed half-way
    upgraded.run("rollback", "--to", "old")
    assert not list(upgraded.folder.glob("*upgraded*"))


def overwrite(case: Case, row: int, **columns: Any) -> None:
    """Change a row behind the upgrade's back."""
    dataset = lance.dataset(case.uri)
    found = dataset.to_table(filter=f"id = {IDS[row]}").to_pylist()
    changed = [{**item, **columns} for item in found]
    dataset.merge_insert("id").when_matched_update_all().execute(lance_table(changed, dataset.schema))


def lance_table(rows: list[dict[str, Any]], schema: Any) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(rows, schema=schema)


def test_status_counts_and_verifies(upgraded: Case) -> None:
    upgraded.run("apply", "--batch", upgraded.write_batch("batch.npz", np.arange(125)))
    output = upgraded.run("status", "--verify")
    words = output.split()
    assert [words[words.index(name) + 1] for name in ("old", "transformed", "re-embedded")] == ["0", "375", "125"]
    for part in (
        "25.00 %",
        "last step    apply",
        "every row is what transform or a batch made of it",
        "transformed, batch-1",
    ):
        assert part in output
    overwrite(upgraded, 300, embedding=[9.0] * NEW_DIM)
    assert f"id {IDS[300]} is not what transform made of it" in upgraded.refuse_midway("status", "--verify")
    upgraded.run("rollback")  # the version before is untouched
    upgraded.run("status", "--verify")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"embeddings": np.full((3, NEW_DIM), np.nan, np.float32)}, "bad.npz: row 0 holds NaN or infinity"),
    ({"embeddings": np.full((3, NEW_DIM), 1e6, np.float32)}, "bad.npz: holds values beyond 65504"),
    ({"embeddings": np.zeros((3, NEW_DIM + 1), np.float32)}, "is 6-d, but the gallery's embeddings are 5-d"),
    ({"embeddings": np.zeros((3, NEW_DIM), int)}, "embeddings should be (n, d) floating point, got (3, 5) int64"),
    ({"embeddings": np.zeros((3, NEW_DIM), np.int8)}, "bad.npz: its embeddings are (3, 5) int8:\nsay what they mean"),
    ({"embeddings": np.zeros((3, 2, NEW_DIM), np.float32)}, "embeddings are (3, 2, 5): several vectors an item"),
    ({"ids": np.array([IDS[0], 10**9, 10**9 + 1])}, "bad.npz: the gallery has no id 1000000000 (2 unknown ids"),
    ({"ids": np.array([IDS[0], IDS[1], IDS[0]])}, f"bad.npz: has two different embeddings of the id {IDS[0]}"),
    ({"ids": np.arange(3) + 0.5}, "ids should be (n,) whole numbers or texts (ids.astype(str)), got (3,)"),
]


def test_a_bad_batch_is_refused(upgraded: Case) -> None:
    for arrays, message in BAD:
        bad = upgraded.write_batch("bad.npz", np.arange(3), **arrays)
        assert message in upgraded.refuse("apply", "--batch", bad)
    np.savez(upgraded.folder / "bad.npz", embeddings=upgraded.new[:3])
    assert "bad.npz has no ids" in upgraded.refuse("apply", "--batch", "bad.npz")
    path = upgraded.folder / upgraded.write_batch("short.npz", np.arange(50))
    path.write_bytes(path.read_bytes()[:-100])
    assert "short.npz cannot be read" in upgraded.refuse("apply", "--batch", "short.npz")
    assert "batch: there is no none.npz" in upgraded.refuse("apply", "--batch", "none.npz")
    assert "batch: is missing" in upgraded.refuse("apply")


def test_a_batch_of_another_model_is_refused(upgraded: Case) -> None:
    upgraded.write_batch("batch.npz", np.arange(10))
    manifest = upgraded.folder / "batch.npz.manifest.json"
    for text, message in (
        ('{"model": "vit"}', "its manifest says model 'vit', but here it should be 'resnet50-2024'"),
        ("{}", "states neither model, dim nor normalised"),
    ):
        manifest.write_text(text)
        assert message in upgraded.refuse("apply", "--batch", "batch.npz")
    stated = {"model": "resnet50-2024", "dim": NEW_DIM, "normalised": False}
    manifest.write_text(json.dumps(stated), encoding="utf-8-sig")  # with a byte order mark, as some editors write it
    upgraded.run("apply", "--batch", "batch.npz")


def test_a_batch_that_looks_like_another_models_is_refused_with_figures(upgraded: Case) -> None:
    rows, rng = np.arange(200), np.random.default_rng(3)
    rotation = np.linalg.qr(rng.normal(size=(NEW_DIM, NEW_DIM)))[0]
    shuffled = upgraded.new[rng.permutation(N)][rows]
    for other in (upgraded.new[rows] @ rotation, shuffled, 3 * rng.normal(size=(200, NEW_DIM))):
        batch = upgraded.write_batch("other.npz", rows, other.astype(np.float16))
        error = upgraded.refuse("apply", "--batch", batch)
        assert "does not look like resnet50-2024: what the gallery has of its items explains" in error
        assert "(by 200 items), and 2% is the least" in error
    noisy = upgraded.new[rows].astype(np.float32) + rng.normal(size=(200, NEW_DIM)) * upgraded.new.std() * 0.3
    upgraded.run("apply", "--batch", upgraded.write_batch("noisy.npz", rows, noisy.astype(np.float16)))
    upgraded.run("apply", "--insist", "--batch", batch)


def test_the_old_models_embeddings_are_recognised_one_by_one(case: Case) -> None:
    from tests.upgrade.test_spaces import write_ridge

    write_ridge(case.folder / "transformation.pt", 1.0, dim=6)
    case.run("transform")
    mixed = case.old[:40] + np.where(np.arange(40)[:, None] < 37, 0.3, 0).astype(np.float32)
    batch = case.write_batch("batch.npz", np.arange(40), mixed)
    assert "3 of its embeddings are those of resnet18-2021" in case.refuse("apply", "--batch", batch)


def test_a_second_writer_is_refused_and_changes_nothing(upgraded: Case) -> None:
    """Two batches that Lance could combine, and two that it could not."""
    for rows in (np.arange(20, 30), np.arange(10)):
        first, second = upgraded.table(), upgraded.table()
        name = str(upgraded.folder / upgraded.write_batch("first.npz", np.arange(10), upgraded.new[:10] + 1))
        apply_batch(first, name, insist=True)
        after = upgraded.content()
        other = str(upgraded.folder / upgraded.write_batch("second.npz", rows, upgraded.new[rows] + 2))
        with pytest.raises(UserError, match="another step has changed it meanwhile"):
            apply_batch(second, other, insist=True)
        assert upgraded.content() == after
        roll_back(upgraded.table(), "transformed")


def test_a_commit_that_came_in_the_last_moment_is_undone(upgraded: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the look at the newest version, another's commit comes, of other rows."""
    first = str(upgraded.folder / upgraded.write_batch("first.npz", np.arange(10)))
    second = str(upgraded.folder / upgraded.write_batch("second.npz", np.arange(100, 110)))
    table, commit = upgraded.table(), lance.LanceDataset.commit
    done: list[bool] = []

    def late(*arguments: Any, **options: Any) -> Any:
        if not done:
            done.append(True)
            apply_batch(upgraded.table(), first)
        return commit(*arguments, **options)

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(late))
    with pytest.raises(UserError, match="another step has changed it meanwhile"):
        apply_batch(table, second)
    assert np.array_equal(np.flatnonzero(upgraded.array("batch")), np.arange(10))


def test_a_full_disk_leaves_the_gallery_as_it_was(upgraded: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    before, batch = upgraded.content(), str(upgraded.folder / upgraded.write_batch("batch.npz", np.arange(100)))

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError("LanceError(IO): Generic LocalFileSystem error: No space left on device (os error 28)")

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(full))
    with pytest.raises(UserError, match="no space left on the disk; free some and run the command again"):
        apply_batch(upgraded.table(), batch)
    monkeypatch.undo()
    assert upgraded.content() == before
    assert apply_batch(upgraded.table(), batch).changed


def test_a_torn_head_is_left_out_and_the_step_is_done_again(upgraded: Case) -> None:
    before, batch = upgraded.content(), upgraded.write_batch("batch.npz", np.arange(100))
    for part in (0, 0.5, 0.99):
        upgraded.run("apply", "--batch", batch)
        after = upgraded.content()
        head = sorted((upgraded.folder / "upgraded.lance/_versions").glob("*.manifest"))[0]
        whole = head.read_bytes()
        head.write_bytes(whole[: int(part * len(whole))])
        assert upgraded.content() == before
        upgraded.run("apply", "--batch", batch)
        assert upgraded.content() == after
        assert upgraded.tags()["batch-1"] == upgraded.table().version
        upgraded.run("rollback")


def test_files_are_on_the_disk_before_a_commit_and_manifests_after_it(
    upgraded: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    commit = lance.LanceDataset.commit
    monkeypatch.setattr("upgrade.durable.sync", lambda path: synced.append(path.name))

    def said(*arguments: Any, **options: Any) -> Any:
        synced.append("commit")
        return commit(*arguments, **options)

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(said))
    known = Unsynced(upgraded.folder / "upgraded.lance").known
    apply_batch(upgraded.table(), str(upgraded.folder / upgraded.write_batch("batch.npz", np.arange(9))))
    new = {Path(path).name for path in Unsynced(upgraded.folder / "upgraded.lance").known - known}
    place = synced.index("commit")
    data = {name for name in new if name.endswith((".lance", ".bin", ".arrow"))}
    assert len(data) >= 2  # rows, and which of those before them are gone
    assert data <= set(synced[:place])
    assert {name for name in new if name.endswith(".manifest")} <= set(synced[place:])
    assert new <= set(synced)


def test_versions_that_are_gone_and_tables_that_are_none(upgraded: Case) -> None:
    upgraded.run("apply", "--batch", upgraded.write_batch("batch.npz", np.arange(9)))
    version = upgraded.tags()["transformed"]
    dataset = lance.dataset(upgraded.uri)
    dataset.tags.delete("transformed")
    dataset.cleanup_old_versions(retain_versions=1, error_if_tagged_old_versions=False)
    tags = upgraded.folder / "upgraded.lance/_refs/tags"
    named = json.loads((tags / "batch-1.json").read_text())
    (tags / "transformed.json").write_text(json.dumps(named | {"version": version}))
    assert "transformed is version" in upgraded.refuse_midway("rollback")
    shutil.rmtree(upgraded.uri)
    lance.write_dataset(lance_table([{"id": 1}], None), upgraded.uri)
    for step in ("status", "transform", "plan"):
        assert "is a Lance table, but not one of an upgrade" in upgraded.refuse(step)


def test_a_table_of_a_later_lance_is_refused(upgraded: Case) -> None:
    """A manifest is a length, a Protocol Buffers message, its place, two versions, LANC; field 9 says what to know."""
    head = sorted((upgraded.folder / "upgraded.lance/_versions").glob("*.manifest"))[0]
    content = head.read_bytes()
    place = int.from_bytes(content[-16:-8], "little")
    length = int.from_bytes(content[place : place + 4], "little")
    message = content[place + 4 : place + 4 + length] + b"\x48" + b"\x80\x80\x80\x80\x80\x40"
    rest = content[place + 4 + length :]
    head.write_bytes(content[:place] + len(message).to_bytes(4, "little") + message + rest)
    error = upgraded.refuse("status")
    assert "upgraded.lance cannot be opened; it may be of a later Lance: pip install --upgrade pylance" in error


def test_many_small_batches_are_compacted_and_stay_what_they_are(
    upgraded: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upgrade.table.SMALL_FRAGMENTS", 5)
    whole = make_case(upgraded.folder / "whole")
    whole.run("transform")
    whole.run("plan")
    for number in range(9):
        rows = np.arange(number, N, 50)
        apply_batch(upgraded.table(), str(upgraded.folder / upgraded.write_batch("batch.npz", rows)))
    assert len(upgraded.table().dataset.get_fragments()) < 8
    rows = np.unique(np.concatenate([np.arange(number, N, 50) for number in range(9)]))
    apply_batch(whole.table(), str(whole.folder / whole.write_batch("batch.npz", rows)))
    for name in ("embedding", "priority", "sigma", "source_hash"):
        assert np.array_equal(upgraded.array(name), whole.array(name), equal_nan=True)
    roll_back(upgraded.table(), "3")
    assert sorted(set(upgraded.array("batch"))) == [0, 1, 2, 3]
