"""Files of paired embeddings: what is read from where, and what does not belong together."""

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.config import PairedFiles
from data.paired_embeddings import PairedEmbeddings, read_paired_embeddings
from utils.errors import UserError

N = 30
RNG = np.random.default_rng(0)
OLD, NEW = RNG.normal(size=(N, 4)).astype(np.float32), RNG.normal(size=(N, 3)).astype(np.float16)
IDS, LABELS = np.arange(N) * 7, RNG.integers(0, 5, N)
CLASSIFIER = RNG.normal(size=(5, 3)).astype(np.float32)


def write(folder: Path, name: str, **arrays: Any) -> str:
    """An `.npz`, or under a name without suffix a folder of `.npy`."""
    path = folder / name
    if path.suffix:
        np.savez(path, **arrays)
    else:
        path.mkdir()
        for array, values in arrays.items():
            np.save(path / f"{array}.npy", values)
    return str(path)


def read(folder: Path, new: dict[str, Any] | None = None, **params: Any) -> PairedEmbeddings:
    old = params.pop("old", {"embeddings": OLD, "ids": IDS})
    files: dict[str, Any] = {
        "old": write(folder, "old.npz", **old),
        "new": write(folder, "new.npz", **({"embeddings": NEW, "ids": IDS} | (new or {}))),
    }
    return read_paired_embeddings(PairedFiles(**files, **params))


def test_npz_and_folders_with_side_information(tmp_path: Path) -> None:
    side = write(tmp_path, "side", embeddings=OLD[:, :2], ids=IDS)
    paired = read(tmp_path, side_info=side)
    assert len(paired) == N
    assert paired.dims == {"old": 4, "new": 3, "side_info": 2}
    assert np.array_equal(paired.embeddings["side_info"].numpy(), OLD[:, :2])
    assert paired.embeddings["new"].dtype == torch.float16
    assert (paired.labels, paired.classifier, paired.normalised) == (None, None, False)


@pytest.mark.parametrize("place", ["new", "old", "npy", "npz", "folder"])
def test_labels_from_any_place_and_numbered_from_zero(tmp_path: Path, place: str) -> None:
    labels = 100 + 3 * LABELS
    params: dict[str, Any] = {}
    if place == "npy":
        np.save(tmp_path / "labels.npy", labels)
        params["labels"] = str(tmp_path / "labels.npy")
    elif place in ("npz", "folder"):
        params["labels"] = write(tmp_path, "labels.npz" if place == "npz" else "labels", labels=labels, ids=IDS)
    elif place == "old":
        params["old"] = {"embeddings": OLD, "ids": IDS, "labels": labels}
    paired = read(tmp_path, {"labels": labels} if place == "new" else None, **params)
    assert paired.labels is not None
    assert np.array_equal(np.unique(LABELS)[paired.labels.numpy()], LABELS)


@pytest.mark.parametrize("with_classifier", [False, True])
def test_negative_labels_stay_no_class(tmp_path: Path, with_classifier: bool) -> None:
    labels = np.where(np.arange(N) % 3 == 0, -1 - np.arange(N), LABELS)  # the first item's too
    params: dict[str, Any] = {}
    if with_classifier:
        np.save(tmp_path / "w.npy", CLASSIFIER)
        params["classifier"] = str(tmp_path / "w.npy")
    paired = read(tmp_path, {"labels": labels}, **params)
    assert paired.labels is not None
    known = labels >= 0
    assert (paired.labels.numpy()[~known] == -1).all()
    assert np.array_equal(np.unique(LABELS[known])[paired.labels.numpy()[known]], LABELS[known])


def test_where_no_label_is_a_class_there_are_none(tmp_path: Path) -> None:
    assert read(tmp_path, {"labels": np.full(N, -1)}).labels is None


def test_a_classifier_keeps_the_labels_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", CLASSIFIER)
    paired = read(tmp_path, {"labels": LABELS}, classifier=str(tmp_path / "w.npy"))
    assert paired.labels is not None
    assert paired.classifier is not None
    assert np.array_equal(paired.labels.numpy(), LABELS)
    assert np.array_equal(paired.classifier.numpy(), CLASSIFIER)


@pytest.mark.parametrize(("length", "choice", "expected"), [(1, "auto", True), (1, "off", False), (3, "on", True)])
def test_embeddings_of_length_one_are_recognised_or_declared(
    tmp_path: Path, length: float, choice: Any, expected: bool
) -> None:
    new = (length * NEW / np.linalg.norm(NEW.astype(np.float64), axis=1, keepdims=True)).astype(np.float16)
    paired = read(tmp_path, {"embeddings": new}, normalised=choice)
    assert paired.normalised == expected
    norms = paired.embeddings["new"].float().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(N), rtol=0, atol=1e-6 if expected else 5e-3)


@pytest.mark.parametrize("row", [0, 17])
def test_a_zero_vector_is_kept_and_does_not_hide_that_the_others_have_length_one(
    tmp_path: Path, row: int, capsys: pytest.CaptureFixture[str]
) -> None:
    new = (NEW / np.linalg.norm(NEW.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)
    new[row] = 0
    old = OLD.copy()
    old[[3, 5]] = 0
    paired = read(tmp_path, {"embeddings": new}, old={"embeddings": old, "ids": IDS})
    assert paired.normalised
    assert not paired.embeddings["new"][row].any()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"old: {tmp_path / 'old.npz'}: 2 zero vectors, the first in row 3; kept as zero",
        f"new: {tmp_path / 'new.npz'}: 1 zero vector, the first in row {row}; kept as zero",
    ]


@pytest.mark.parametrize(("choice", "said"), [("auto", True), ("on", False), ("off", False)])
def test_a_few_embeddings_of_other_lengths_are_named(
    tmp_path: Path, choice: Any, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    new = (NEW / np.linalg.norm(NEW.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)
    new[[11, 20]] *= 0.5
    assert read(tmp_path, {"embeddings": new}, normalised=choice).normalised == (choice == "on")
    line = "not normalised: 28 of 30 embeddings have length 1, but not that of row 11; normalised=on"
    assert (line in capsys.readouterr().out) == said


@pytest.mark.parametrize("role", ["old", "new", "side_info"])
def test_a_file_of_nothing_but_zero_vectors(tmp_path: Path, role: str) -> None:
    zeros: dict[str, Any] = {"embeddings": np.zeros((N, 3), np.float32), "ids": IDS}
    params: dict[str, Any] = {"side_info": write(tmp_path, "side", **zeros)} if role == "side_info" else {}
    params |= {"old": zeros} if role == "old" else {}
    with pytest.raises(UserError, match=rf"{role}: .*: all 30 rows are zero vectors"):
        read(tmp_path, zeros if role == "new" else None, **params)


def nan_at(row: int) -> np.ndarray:
    broken = NEW.copy()
    broken[row, 1] = np.nan
    return broken


SWAPPED = np.concatenate([IDS[:5], IDS[6:4:-1], IDS[7:]])


@pytest.mark.parametrize(
    ("new", "params", "message"),
    [
        ({"embeddings": nan_at(17)}, {}, r"new: .*new\.npz: row 17 is not finite"),
        (
            {"embeddings": NEW[:-1], "ids": IDS[:-1]},
            {},
            r"new: .*new\.npz and old: .*old\.npz hold different items: "
            r"1 ids of old: .* are not in new: .*, the first is 203",
        ),
        ({"ids": IDS.astype(str)}, {}, r"old\.npz are numbers and those of new: .* texts"),
        (
            {"ids": SWAPPED},
            {"labels": LABELS},
            r"labels\.npy: holds labels alone, row by row, but the files .* one order",
        ),
        ({"ids": np.zeros(N, int)}, {}, r"new: .*new\.npz: 1 ids occur more than once"),
        ({"embeddings": NEW.astype(np.float64)}, {}, r"embeddings should be \(n, d\) float16 or float32"),
        (
            {},
            {"labels": np.zeros(29, int)},
            r"labels: .*labels\.npy and old: .* different items: 29 and 30",
        ),
        ({}, {"labels": np.zeros(N)}, r"labels\.npy: labels should be \(n,\) whole numbers, got \(30,\) float64"),
        ({}, {"classifier": CLASSIFIER}, r"classifier: .*is of no use without labels"),
        (
            {"labels": LABELS},
            {"classifier": CLASSIFIER[:, :2]},
            r"classifier\.npy: should be \(classes, 3\) floating point, got \(5, 2\) float32",
        ),
        ({"labels": LABELS + 1}, {"classifier": CLASSIFIER}, r"has 5 classes, the labels go from 1 to 5"),
        ({"labels": LABELS.astype(np.uint64) - np.uint64(9)}, {}, r"new\.npz: labels go up to 18"),
        ({}, {"labels": LABELS.astype(np.uint64) - np.uint64(9)}, r"labels\.npy: labels go up to 18"),
        ({"labels": LABELS}, {"classifier": CLASSIFIER * np.nan}, r"classifier\.npy: is not finite"),
    ],
)
def test_what_does_not_belong_together(
    tmp_path: Path, new: dict[str, Any], params: dict[str, np.ndarray], message: str
) -> None:
    for name, array in params.items():
        np.save(tmp_path / f"{name}.npy", array)
    files: dict[str, Any] = {name: str(tmp_path / f"{name}.npy") for name in params}
    with pytest.raises(UserError, match=message):
        read(tmp_path, new, **files)


def test_too_few_pairs_and_files_of_other_things(tmp_path: Path) -> None:
    few: dict[str, Any] = {"embeddings": NEW[:19], "ids": IDS[:19]}
    with pytest.raises(UserError, match=r"old\.npz has 19 pairs; at least 20 are needed"):
        read(tmp_path, few, old={"embeddings": OLD[:19], "ids": IDS[:19]})
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(UserError, match=r"labels: .*text\.npy is no file with `labels`"):
        read(tmp_path, labels=str(tmp_path / "text.npy"))
    with pytest.raises(UserError, match=r"labels: .*other\.npz has no array `labels`"):
        read(tmp_path, labels=write(tmp_path, "other.npz", classes=LABELS))


UUIDS = np.array([str(uuid.UUID(int=int(item) * 10**30 + 1)) for item in IDS])


@pytest.mark.parametrize("ids", [IDS, IDS.astype(np.uint64) + np.uint64(2**63), UUIDS])
def test_rows_in_any_order_are_joined_by_id(tmp_path: Path, ids: np.ndarray) -> None:
    orders = {name: RNG.permutation(N) for name in ("new", "side", "labels")}
    side = write(tmp_path, "side", embeddings=OLD[orders["side"], :2], ids=ids[orders["side"]])
    labels = write(tmp_path, "labels.npz", labels=LABELS[orders["labels"]], ids=ids[orders["labels"]])
    new = {"embeddings": NEW[orders["new"]], "ids": ids[orders["new"]]}
    paired = read(tmp_path, new, old={"embeddings": OLD, "ids": ids}, side_info=side, labels=labels)
    for role, expected in (("old", OLD), ("new", NEW), ("side_info", OLD[:, :2])):
        assert np.array_equal(paired.embeddings[role].numpy(), expected)
    assert paired.labels is not None
    assert np.array_equal(np.unique(LABELS)[paired.labels.numpy()], LABELS)


def test_rows_are_paired_by_place_only_where_nothing_else_tells(tmp_path: Path) -> None:
    new_labels = LABELS.copy()
    new_labels[3] += 1
    files: dict[str, dict[str, np.ndarray]] = {
        "old.npz": {"embeddings": OLD, "labels": LABELS},
        "with_ids.npz": {"embeddings": NEW, "ids": IDS},
        "relabelled.npz": {"embeddings": NEW, "labels": new_labels},
        "same.npz": {"embeddings": NEW, "labels": LABELS},
        "labels.npz": {"labels": LABELS, "ids": IDS},
        "labels_alone.npz": {"labels": LABELS},
    }
    paths = {name: write(tmp_path, name, **arrays) for name, arrays in files.items()}

    def paired(old: str, new: str, labels: str | None = None) -> PairedEmbeddings:
        labels = None if labels is None else paths[labels]
        return read_paired_embeddings(PairedFiles(old=paths[old], new=paths[new], labels=labels))

    assert len(paired("old.npz", "same.npz", "labels_alone.npz")) == N
    with pytest.raises(UserError, match=r"with_ids\.npz has `ids` and old: .*old\.npz has none"):
        paired("old.npz", "with_ids.npz")
    with pytest.raises(UserError, match=r"relabelled\.npz and .*old\.npz hold different .* row 3 has the labels"):
        paired("old.npz", "relabelled.npz")
    with pytest.raises(UserError, match=r"labels\.npz has `ids` and old: .*old\.npz has none"):
        paired("old.npz", "same.npz", "labels.npz")
    with pytest.raises(UserError, match=r"with_ids\.npz has `ids` and .*labels_alone\.npz has none"):
        paired("with_ids.npz", "with_ids.npz", "labels_alone.npz")
