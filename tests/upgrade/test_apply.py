"""apply and rollback: what ends up in the gallery, and what is refused."""

import fcntl
import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upgrade.rollback import roll_back
from upgrade.status import verify
from upgrade.transactions import finish_pending

from tests.upgrade.conftest import IDS, NEW_DIM, Case, N, fill_disk_at
from upgrade.batches import apply_batch
from utils.errors import UserError


def roll_back_and_finish(case: Case, batches: int) -> None:
    roll_back(case.gallery(), batches, seed=0)
    finish_pending(case.folder / "upgraded")


def check_gallery(case: Case, transformed: np.ndarray, re_embedded: np.ndarray) -> None:
    """The rows `re_embedded` hold the new embeddings, the others what transform gave; everything else agrees."""
    mask = np.zeros(N, bool)
    mask[re_embedded] = True
    assert np.array_equal(case.array("embeddings"), np.where(mask[:, None], case.new, transformed))
    assert np.array_equal(case.array("state"), mask.astype(np.uint8))
    falling = np.argsort(-case.array("sigma"), kind="stable")
    assert np.array_equal(case.array("order"), IDS[falling[~mask[falling]]])
    verify(case.gallery())


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=30), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    back=st.integers(0, 4),
)
def test_any_batches_in_any_order(upgraded: Case, batches: list[list[int]], seed: int, back: int) -> None:
    """The gallery is a function of the set of items: not of order, repetitions or overlaps; rollback undoes to any."""
    untouched, transformed = upgraded.content(), upgraded.array("embeddings")
    shuffled = [*batches, batches[0]]
    random.Random(seed).shuffle(shuffled)
    states = [untouched]
    for number, rows in enumerate(shuffled):
        batch = upgraded.write_batch(f"{number}.npz", np.array(rows))
        apply_batch(upgraded.gallery(), str(upgraded.folder / batch))
        finish_pending(upgraded.folder / "upgraded")
        if len(list((upgraded.folder / "upgraded/journal").iterdir())) == len(states):
            states.append(upgraded.content())
    check_gallery(upgraded, transformed, np.unique(np.concatenate(batches)))
    target = min(back, len(states) - 1)
    roll_back_and_finish(upgraded, target)
    assert upgraded.content() == states[target]
    verify(upgraded.gallery())
    roll_back_and_finish(upgraded, 0)
    assert upgraded.content() == untouched


def test_everything_can_be_re_embedded(upgraded: Case) -> None:
    before, transformed = upgraded.content(), upgraded.array("embeddings")
    check_gallery(upgraded, transformed, np.array([], int))
    output = upgraded.run("apply", "--batch", upgraded.write_batch("first.npz", np.arange(450)))
    assert "450 items, 450 of them re-embedded for the first time" in output
    assert "450 of 500 items are re-embedded" in output
    upgraded.run("apply", "--batch", upgraded.write_batch("all.npz", np.arange(N)))
    assert "all of its 450 items are in the gallery already" in upgraded.run("apply", "--batch", "first.npz")
    assert not (upgraded.folder / "upgraded/journal/00003").exists()
    for step in (("plan",), ("status", "--verify")):
        upgraded.run(*step)
        check_gallery(upgraded, transformed, np.arange(N))
    assert upgraded.run("rollback").endswith("500 items are what they were after 0 batches\n")
    assert upgraded.content() == before
    assert not list((upgraded.folder / "upgraded/journal").iterdir())


def test_a_second_embedding_replaces_the_first_and_rollback_brings_it_back(upgraded: Case) -> None:
    rows = np.arange(20)
    upgraded.run("apply", "--batch", upgraded.write_batch("first.npz", rows))
    first = upgraded.content()
    upgraded.run("apply", "--batch", upgraded.write_batch("second.npz", rows, upgraded.new[rows] + 1))
    assert np.array_equal(upgraded.array("embeddings")[:20], upgraded.new[:20] + np.float16(1))
    upgraded.run("rollback", "--to", "1")
    assert upgraded.content() == first


def test_rollback_to_old_leaves_only_the_old_gallery(upgraded: Case) -> None:
    old = (upgraded.folder / "old.npz").read_bytes()
    upgraded.run("apply", "--batch", upgraded.write_batch("batch.npz", np.arange(20)))
    np.savez(upgraded.folder / "other.npz", embeddings=upgraded.old + 1, ids=IDS)
    assert "other.npz is not what was transformed" in upgraded.refuse("rollback", "--to", "old", "gallery=other.npz")
    upgraded.run("rollback", "--to", "old")
    assert (upgraded.folder / "old.npz").read_bytes() == old
    assert not list(upgraded.folder.glob("*upgraded*"))
    assert "upgraded is no upgraded gallery" in upgraded.refuse("status")
    (upgraded.folder / ".upgraded.rolled-back.tmp").mkdir()  # as if it had been killed half-way
    upgraded.run("rollback", "--to", "old")
    assert not list(upgraded.folder.glob("*upgraded*"))


def test_status_counts_and_verifies(upgraded: Case) -> None:
    upgraded.run("apply", "--batch", upgraded.write_batch("batch.npz", np.arange(125)))
    output = upgraded.run("status", "--verify")
    words = output.split()
    assert [words[words.index(name) + 1] for name in ("old", "transformed", "re-embedded")] == ["0", "375", "125"]
    for part in ("25.00 %", "step apply", "every row is what transform or a batch made of it"):
        assert part in output
    embeddings = np.load(upgraded.folder / "upgraded/embeddings.npy", mmap_mode="r+")
    for row, message in ((3, "are not what batch 1 put there"), (300, "are not what transform made of them")):
        embeddings[row] += 1
        assert message in upgraded.refuse("status", "--verify")
        embeddings[row] = upgraded.new[row]  # so that the first message is not said again


BAD: list[tuple[dict[str, Any], str]] = [
    ({"embeddings": np.full((3, NEW_DIM), np.nan, np.float32)}, "bad.npz: row 0 holds NaN or infinity"),
    ({"embeddings": np.full((3, NEW_DIM), 1e6, np.float32)}, "bad.npz: holds values beyond 65504"),
    ({"embeddings": np.zeros((3, NEW_DIM + 1), np.float32)}, "is 6-d, but the gallery's embeddings are 5-d"),
    ({"embeddings": np.zeros((3, NEW_DIM))}, "embeddings should be (n, d) float16 or float32, got (3, 5) float64"),
    ({"ids": np.array([IDS[0], 10**9, 10**9 + 1])}, "bad.npz: the gallery has no id 1000000000 (2 unknown ids"),
    ({"ids": np.array([IDS[0], IDS[1], IDS[0]])}, f"bad.npz: has two different embeddings of the id {IDS[0]}"),
    ({"ids": np.arange(3) + 0.5}, "ids should be (3,) whole numbers, got (3,) float64"),
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


def test_a_step_at_a_time(upgraded: Case) -> None:
    batch = upgraded.write_batch("batch.npz", np.arange(10))
    with (upgraded.folder / "upgraded/lock").open("r+") as lock:
        lock.write("4242\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        for step in (("apply", "--batch", batch), ("rollback",), ("plan",), ("transform",)):
            assert "upgraded is in use by process 4242; wait until that has ended" in upgraded.refuse(*step)
        assert "a step is at work on it" in upgraded.run("status")
    upgraded.run("apply", "--batch", batch)


@pytest.mark.parametrize("file", ["rows", "after", "before", "before_state", "order"])
def test_a_full_disk_leaves_the_gallery_as_it_was(upgraded: Case, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, batch = upgraded.content(), upgraded.write_batch("batch.npz", np.arange(100))
    fill_disk_at(file, monkeypatch)
    with pytest.raises(UserError, match="no space left on the disk; the gallery is as it was"):
        apply_batch(upgraded.gallery(), str(upgraded.folder / batch))
    assert upgraded.content() == before
    assert not list((upgraded.folder / "upgraded").glob(".*"))
