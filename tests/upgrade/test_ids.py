"""Ids: rows of two files are paired by them, and they are found and kept whatever they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.sources.embeddings import open_source
from data.sources.ids import text_keys
from data.sources.rows import parts_of
from tests.upgrade.conftest import CONFIG, IDS, NEW_DIM, OLD_DIM, Case, N, make_case, write_transformation
from utils.errors import UserError

ORDER = np.random.default_rng(0).permutation(N)
SIDE = np.random.default_rng(5).normal(size=(N, 3)).astype(np.float32)
TEXTS = np.array([f"{'item' * (row % 5)}-{row}" for row in range(N)])  # of all lengths, in no rising order


@pytest.fixture
def with_side(case: Case) -> Case:
    """A gallery that has side-information, `side.npz` in its order, and is transformed with that."""
    write_transformation(case.folder / "transformation.pt", side_info_dim=3)
    np.savez(case.folder / "side.npz", embeddings=SIDE, ids=IDS)
    case.run("transform", "side_info=side.npz")
    return case


def permuted(case: Case) -> tuple[str, ...]:
    np.savez(case.folder / "other.npz", embeddings=SIDE[ORDER], ids=IDS[ORDER])
    return ("side_info=other.npz",)


def in_shards(case: Case) -> tuple[str, ...]:
    """Twelve shards, in the order of their numbers, of a permutation; one of them without items."""
    case.write_shards("other", [*np.array_split(ORDER, 11), ORDER[:0]], SIDE, IDS)
    return ("side_info=other",)


def of_gallery_shards(case: Case) -> tuple[str, ...]:
    case.write_shards("shards", np.array_split(np.arange(N), 12), case.old, IDS)
    return ("gallery=shards", *permuted(case))


@pytest.mark.parametrize("write", [permuted, in_shards, of_gallery_shards])
def test_side_information_is_joined_by_id(with_side: Case, write: Callable[[Case], tuple[str, ...]]) -> None:
    with_side.run("transform", *write(with_side), "output=joined")
    assert with_side.content("joined") == with_side.content()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": IDS + 10**6}, f"{N} ids of old.npz are not in side_info: side.npz, the first is {IDS[0]}"),
        (
            {"ids": np.append(IDS, 10**6), "embeddings": np.append(SIDE, SIDE[:1], 0)},
            "1 ids of side_info: side.npz are not in old.npz, the first is 1000000",
        ),
        ({"ids": np.append(IDS[:-1], IDS[0])}, f"1 ids occur more than once, the first is {IDS[0]}"),
        ({"ids": IDS.astype(str)}, "the ids of old.npz are numbers and those of side_info: side.npz texts"),
        ({}, "old.npz has `ids` and side_info: side.npz has none, so that nothing tells which rows are the same item"),
    ],
)
def test_side_information_of_other_items_is_refused(case: Case, arrays: dict[str, np.ndarray], message: str) -> None:
    write_transformation(case.folder / "transformation.pt", side_info_dim=3)
    content: dict[str, Any] = {"embeddings": SIDE, **arrays}
    np.savez(case.folder / "side.npz", **content)
    error = case.refuse("transform", "side_info=side.npz")
    assert message in error
    assert "side_info: " in error


def test_without_ids_rows_are_paired_by_place(with_side: Case) -> None:
    np.save(with_side.folder / "old.npy", with_side.old)
    np.save(with_side.folder / "side.npy", SIDE)
    with_side.run("transform", "gallery=old.npy", "side_info=side.npy", "output=placed")
    assert np.array_equal(with_side.array("embedding", "placed"), with_side.array("embedding"))
    np.save(with_side.folder / "side.npy", SIDE[:-1])
    error = with_side.refuse("transform", "gallery=old.npy", "side_info=side.npy", "output=short")
    assert "side_info: side.npy and old.npy hold different items: 499 and 500 of them" in error


def test_pairs_of_a_plan_are_joined_by_id(upgraded: Case) -> None:
    rng = np.random.default_rng(2)
    old, new = (rng.normal(size=(60, dim)).astype(np.float32) for dim in (OLD_DIM, NEW_DIM))
    labels, order, ids = np.arange(60) % 7, rng.permutation(60), 100 + np.arange(60)
    np.savez(upgraded.folder / "new.npz", embeddings=new, labels=labels, ids=ids)
    plans = []
    for rows in (np.arange(60), order):
        np.savez(upgraded.folder / "old_pairs.npz", embeddings=old[rows], ids=ids[rows])
        pairs = ("plan_params.old=old_pairs.npz", "plan_params.new=new.npz", "plan_params.max_pairs=40")
        upgraded.run("plan", *pairs, "plan_params.metric=map")
        plans.append(upgraded.json("plan"))
    assert plans[0] == plans[1]


def with_texts(case: Case) -> Case:
    """The same gallery in shards, its ids texts of another width in each."""
    (case.folder / "texts").mkdir()
    for number, rows in enumerate(np.array_split(np.arange(N), 3)):
        texts = TEXTS[rows].astype(f"U{25 + number}")
        np.savez(case.folder / f"texts/{number}.npz", embeddings=case.old[rows], ids=texts)
    (case.folder / "upgrade.yaml").write_text(CONFIG.replace("old.npz", "texts"))
    return case


def test_a_gallery_with_text_ids_goes_through_every_step_as_one_with_numbers(tmp_path: Path) -> None:
    texts, numbers = with_texts(make_case(tmp_path / "texts")), make_case(tmp_path / "numbers")

    def run(*step: str) -> None:
        for case in (texts, numbers):
            case.run(*step)
        place = {text: row for row, text in enumerate(TEXTS.tolist())}
        order = [place[text] for text in texts.content()["id"].to_pylist()]
        for name in ("embedding", "batch", "sigma", "source_hash"):
            assert np.array_equal(texts.array(name), numbers.array(name)[order])
        assert np.array_equal(texts.content()["priority"].is_null().to_numpy(), numbers.null("priority")[order])

    run("transform")
    run("plan")
    for name, rows in (("first.npz", np.arange(0, 200, 3)), ("second.npz", np.arange(499, 100, -7))):
        texts.write_batch(name, rows, ids=TEXTS[rows])
        numbers.write_batch(name, rows)
        run("apply", "--batch", name)
    assert "all of its" in texts.run("apply", "--batch", "first.npz")
    for target in ("1", "transformed"):
        run("status", "--verify")
        run("rollback", "--to", target)
    texts.run("rollback", "--to", "old")


def test_texts_are_compared_as_a_whole(case: Case) -> None:
    with_texts(case).run("transform")
    width = TEXTS.dtype.itemsize // 4
    for rows, dtype in ((np.arange(5), f"U{width + 30}"), (np.arange(4), TEXTS[:4].dtype)):
        case.run("apply", "--batch", case.write_batch("batch.npz", rows, ids=TEXTS[rows].astype(dtype)))
    for other in (TEXTS[7] + "x" * 60, TEXTS[7][:-1], TEXTS[7] + " ", "", "\x00" + TEXTS[7], "it's; --", "\\"):
        error = case.refuse("apply", "--batch", case.write_batch("batch.npz", [7], ids=np.array([other])))
        assert f"the gallery has no id {other}" in error
    error = case.refuse("apply", "--batch", case.write_batch("batch.npz", np.arange(3), ids=np.arange(3)))
    assert "batch.npz: its ids are whole numbers, those of the gallery text" in error


@pytest.mark.parametrize("kinds", [1, 3, 2**64 - 1])
def test_texts_are_found_and_joined_whatever_their_keys(
    case: Case, kinds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("data.sources.ids", "upgrade.columns"):
        monkeypatch.setattr(f"{module}.text_keys", lambda texts: text_keys(texts) % np.uint64(kinds))
    with_texts(case).run("transform")
    asked = np.append(TEXTS[ORDER], ["not there", ""])
    place, found = case.table().lookup(asked, ["batch"])
    assert np.array_equal(place < 0, np.append(np.zeros(N, bool), [True, True]))
    assert found["id"].take(place[:N]).to_pylist() == TEXTS[ORDER].tolist()

    np.savez(case.folder / "side.npz", embeddings=SIDE[ORDER], ids=TEXTS[ORDER].astype("U90"), labels=ORDER)
    source, side = (open_source(case.folder / name, where=name) for name in ("texts", "side.npz"))
    joined = side.in_order_of(source, "side_info")
    read = np.concatenate([joined.vectors.read(*part) for part in parts_of(N, 37)])
    assert np.array_equal(read, SIDE)
    index = np.array([499, 0, 3, 3])
    assert np.array_equal(joined.vectors.take(index), SIDE[index])
    assert joined.labels is not None
    assert np.array_equal(joined.labels.read(0, N), np.arange(N))
    np.savez(case.folder / "side.npz", embeddings=SIDE, ids=np.append(TEXTS[:-1], "another"))
    with pytest.raises(UserError, match=f"1 ids of .*texts are not in .*side.npz, the first is {TEXTS[-1]}"):
        open_source(case.folder / "side.npz", where="side_info").in_order_of(source, "side_info")


def test_keys_do_not_depend_on_the_width_and_hardly_ever_meet() -> None:
    texts = np.array([f"{a}/{b}" for a in range(300) for b in range(300)] + ["ä", "日本", "日本 "])
    keys = text_keys(texts)
    assert np.array_equal(keys, text_keys(texts.astype("U50")))
    assert np.array_equal(keys, text_keys(texts.astype(texts.dtype.newbyteorder())))
    assert len(np.unique(keys)) == len(texts)
    assert int(text_keys(np.array(["refill"]))[0]) == 2128304902858430975  # as in the orders that there are


def test_objects_and_texts_that_occur_twice_are_refused(case: Case) -> None:
    case.write_old(ids=TEXTS.astype(object))
    message = "its array holds Python objects; save texts with .astype(str)"
    assert message in case.refuse("transform")
    np.savez(case.folder / "old.npz", embeddings=case.old)
    np.save(case.folder / "ids.npy", TEXTS.astype(object))
    assert message in case.refuse("transform", "ids=ids.npy")
    case.write_old(ids=np.append(TEXTS[:-1], TEXTS[3]))
    assert f"gallery: old.npz: the id {TEXTS[3]} occurs more than once" in case.refuse("transform")


def test_numbers_beyond_int64_are_refused_and_others_are_exact(case: Case) -> None:
    large = np.arange(N).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    case.write_old(ids=large)
    first = large[large >= 2**63][0]
    assert f"old.npz: ids: {first} is beyond 2^63 - 1; ids may be text instead" in case.refuse("transform")
    case.write_old(ids=large.astype(str))
    case.run("transform", "output=texts")
    case.write_old()
    case.run("transform")
    beyond = case.write_batch("batch.npz", [0], ids=np.array([2**64 - 1], np.uint64))  # -1, if it were cast
    assert "batch.npz: ids: 18446744073709551615 is beyond" in case.refuse("apply", "--batch", beyond)
    (case.folder / "shards").mkdir()
    exact = 2**62 + 1 + np.arange(N)  # not as floating point numbers
    np.savez(case.folder / "shards/0.npz", embeddings=case.old[:9], ids=np.arange(9, dtype=np.int32))
    np.savez(case.folder / "shards/1.npz", embeddings=case.old[9:], ids=exact[9:].astype(np.uint64))
    case.run("transform", "gallery=shards", "output=mixed")
    assert np.array_equal(case.table("mixed").all_ids(), np.append(np.arange(9), exact[9:]))


def test_a_shard_without_rows_is_no_error(case: Case) -> None:
    case.write_shards("shards", [np.arange(0), np.arange(N)], case.old, IDS)
    np.savez(case.folder / "shards/2.npz", embeddings=np.array([]))
    np.savez(case.folder / "shards/3.npz", embeddings=np.zeros((0, OLD_DIM), np.float32), ids=np.array([]))
    case.run("transform", "gallery=shards")
    assert np.array_equal(case.table().all_ids(), np.sort(IDS))
    (case.folder / "shards/1.npz").unlink()
    assert "shards is empty" in case.refuse("transform", "gallery=shards", "output=other")


def test_a_batch_without_items_changes_nothing(upgraded: Case) -> None:
    before = upgraded.files()
    for arrays in ({"embeddings": np.zeros((0, NEW_DIM), np.float16), "ids": IDS[:0]}, {"embeddings": np.array([])}):
        np.savez(upgraded.folder / "batch.npz", **arrays)
        assert upgraded.run("apply", "--batch", "batch.npz") == "batch.npz: holds no item; the gallery is as it was\n"
    (upgraded.folder / "batch.npz").unlink()
    assert upgraded.files() == before
