"""Files of paired embeddings: what is read from where, and what does not belong together."""

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import PairedFiles
from data.paired_embeddings import PairedEmbeddings, read_paired_embeddings
from utils.errors import UserError
from utils.files import write_arrays

N = 30
RNG = np.random.default_rng(0)
OLD, NEW = RNG.normal(size=(N, 4)).astype(np.float32), RNG.normal(size=(N, 3)).astype(np.float16)
UNIT = (NEW / np.linalg.norm(NEW.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)
IDS, LABELS = np.arange(N) * 7, RNG.integers(0, 5, N)
CLASSIFIER = RNG.normal(size=(5, 3)).astype(np.float32)


def read(
    folder: Path,
    *,
    normalised: Any = "auto",
    old_dim: Any = None,
    new_dim: Any = None,
    **files: Any,
) -> PairedEmbeddings:
    """Read files of these arrays: several by name, or one alone in a `.npy`; by default OLD and NEW with IDS."""
    paths: dict[str, Any] = {}
    for name, arrays in (
        {"old": {"embeddings": OLD, "ids": IDS}, "new": {"embeddings": NEW, "ids": IDS}} | files
    ).items():
        paths[name] = str(folder / f"{name}.{'npz' if isinstance(arrays, dict) else 'npy'}")
        if isinstance(arrays, dict):
            write_arrays(paths[name], arrays)
        else:
            np.save(paths[name], arrays)
    return read_paired_embeddings(PairedFiles(**paths, normalised=normalised, old_dim=old_dim, new_dim=new_dim))


def new_with(**arrays: Any) -> dict[str, Any]:
    return {"embeddings": NEW, "ids": IDS} | arrays


def classes_of(paired: PairedEmbeddings) -> np.ndarray:
    """The items' labels as the files have them."""
    assert paired.labels is not None
    return paired.labels.numpy() if paired.classes is None else paired.classes.numpy()[paired.labels.numpy()]


@pytest.mark.parametrize(
    "files",
    [
        {"new": new_with(labels=100 + 3 * LABELS)},
        {"old": {"embeddings": OLD, "ids": IDS, "labels": 100 + 3 * LABELS}},
        {"labels": 100 + 3 * LABELS},
        {"labels": {"labels": 100 + 3 * LABELS, "ids": IDS}},
    ],
)
def test_labels_from_any_place_are_numbered_from_zero(tmp_path: Path, files: dict[str, Any]) -> None:
    paired = read(tmp_path, **files)
    assert paired.labels is not None
    assert np.unique(paired.labels).tolist() == list(range(5))
    assert np.array_equal(classes_of(paired), 100 + 3 * LABELS)


@pytest.mark.parametrize("classifier", [None, CLASSIFIER])
def test_negative_labels_stay_no_class_and_a_classifier_keeps_the_others(
    tmp_path: Path, classifier: np.ndarray | None
) -> None:
    labels = np.where(LABELS == 0, 1, LABELS)  # numbered anew, they would be one less
    labels = np.where(np.arange(N) % 3 == 0, -1 - np.arange(N), labels)  # the first item's too
    paired = read(tmp_path, new=new_with(labels=labels), **({} if classifier is None else {"classifier": classifier}))
    assert paired.labels is not None
    known = labels >= 0
    assert (paired.labels.numpy()[~known] == -1).all()
    assert np.array_equal(classes_of(paired)[known], labels[known])
    assert (paired.classes is None) == (classifier is not None)
    assert np.array_equal(paired.classifier, classifier)  # type: ignore[arg-type]
    assert read(tmp_path, new=new_with(labels=np.full(N, -1))).labels is None


@pytest.mark.parametrize(
    ("length", "choice", "expected"),
    [(1.0, "auto", True), (1.0, "off", False), (3.0, "on", True), (3.0, "auto", False)],
)
@pytest.mark.parametrize("others", [0, 2])  # of half the length
def test_embeddings_of_length_one_are_recognised_or_declared_and_a_few_others_named(
    tmp_path: Path, length: float, choice: Any, expected: bool, others: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = np.full((N, 1), length)
    lengths[11 : 11 + others] *= 0.5
    paired = read(tmp_path, new=new_with(embeddings=(lengths * UNIT).astype(np.float16)), normalised=choice)
    assert paired.normalised == (expected and (others == 0 or choice == "on"))
    norms = paired.embeddings["new"].double().norm(dim=1)
    assert np.allclose(
        norms, 1 if paired.normalised else lengths[:, 0], rtol=0, atol=1e-6 if paired.normalised else 1e-2
    )
    line = "not normalised: 28 of 30 embeddings have length 1, but not that of row 11; normalised=on declares it"
    assert (line in capsys.readouterr().out) == (others > 0 and length == 1 and choice == "auto")


@pytest.mark.parametrize("row", [0, 17])
def test_a_zero_vector_is_kept_and_does_not_hide_that_the_others_have_length_one(
    tmp_path: Path, row: int, capsys: pytest.CaptureFixture[str]
) -> None:
    new, old = UNIT.copy(), OLD.copy()
    new[row] = 0
    old[[3, 5]] = 0
    paired = read(tmp_path, new=new_with(embeddings=new), old={"embeddings": old, "ids": IDS})
    assert paired.normalised
    assert not paired.embeddings["new"][row].any()
    assert capsys.readouterr().out.splitlines() == [
        f"old: {tmp_path / 'old.npz'}: 2 zero vectors, the first in row 3; kept as zero",
        f"new: {tmp_path / 'new.npz'}: 1 zero vector, the first in row {row}; kept as zero",
    ]


NAN = np.where(np.arange(N)[:, None] == 17, np.float16(np.nan), NEW)
SWAPPED = np.concatenate([IDS[:5], IDS[6:4:-1], IDS[7:]])
BARE_OLD = {"embeddings": OLD, "labels": LABELS}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"new": new_with(embeddings=NAN)}, r"new: .*new\.npz: row 17 holds NaN or infinity"),
        ({"old": {"embeddings": 0 * OLD}}, r"old: .*old\.npz: all 30 rows are zero vectors"),
        (
            {"new": {"embeddings": NEW[:-1], "ids": IDS[:-1]}},
            r"new: .*new\.npz and old: .*old\.npz hold different items: 1 ids of old: .* are not in new: .* is 203",
        ),
        ({"old": BARE_OLD}, r"new\.npz has `ids` and old: .*old\.npz has none"),
        (
            {"old": BARE_OLD, "new": {"embeddings": NEW}, "labels": {"labels": LABELS, "ids": IDS}},
            r"labels\.npz has `ids` and old: .*old\.npz has none",
        ),
        (
            {"new": new_with(ids=SWAPPED), "labels": LABELS},
            r"labels\.npy: holds labels alone, row by row, but the files .* one order",
        ),
        ({"labels": np.zeros(29, int)}, r"labels: .*labels\.npy and old: .* different items: 29 and 30"),
        ({"labels": {"classes": LABELS}}, r"labels: .*labels\.npz has no array `labels`"),
        ({"classifier": CLASSIFIER}, r"classifier: .*is of no use without labels"),
        (
            {"new": new_with(labels=LABELS), "classifier": CLASSIFIER[:, :2]},
            r"classifier\.npy: should be \(classes, 3\) floating point, got \(5, 2\) float32",
        ),
        (
            {"new": new_with(labels=LABELS + 1), "classifier": CLASSIFIER},
            r"has 5 classes, the labels go from 1 to 5",
        ),
        ({"new": new_with(labels=LABELS), "classifier": CLASSIFIER * np.nan}, r"classifier\.npy: is not finite"),
        (
            {"old": {"embeddings": OLD[:19], "ids": IDS[:19]}, "new": {"embeddings": NEW[:19], "ids": IDS[:19]}},
            r"old\.npz has 19 pairs; at least 20 are needed",
        ),
    ],
)
def test_what_does_not_belong_together(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, **files)


UUIDS = np.array([str(uuid.UUID(int=int(item) * 10**30 + 1)) for item in IDS])


@pytest.mark.parametrize("ids", [IDS, IDS.astype(np.uint64) + np.uint64(2**63), UUIDS])
def test_rows_in_any_order_are_joined_by_id(tmp_path: Path, ids: np.ndarray) -> None:
    tables: dict[str, dict[str, np.ndarray]] = {
        "old": {"embeddings": OLD},
        "new": {"embeddings": NEW},
        "side_info": {"embeddings": OLD[:, :2]},
        "labels": {"labels": LABELS},
    }
    orders = {name: np.arange(N) if name == "old" else RNG.permutation(N) for name in tables}
    files = {
        role: {name: array[orders[role]] for name, array in (arrays | {"ids": ids}).items()}
        for role, arrays in tables.items()
    }
    paired = read(tmp_path, **files)
    assert (len(paired), paired.dims) == (N, {"old": 4, "new": 3, "side_info": 2})
    for role, embeddings in paired.embeddings.items():
        assert np.array_equal(embeddings.numpy(), tables[role]["embeddings"])
    assert np.array_equal(classes_of(paired), LABELS)


def test_without_ids_rows_are_paired_by_place(tmp_path: Path) -> None:
    paired = read(tmp_path, old={"embeddings": OLD}, new={"embeddings": NEW}, labels={"labels": LABELS})
    assert np.array_equal(paired.embeddings["old"].numpy(), OLD)
    assert np.array_equal(paired.embeddings["new"].numpy(), NEW)
    assert np.array_equal(classes_of(paired), LABELS)


def test_prefixes_get_the_length_one_where_the_files_have_it(tmp_path: Path) -> None:
    """By hand, in float64."""
    old = OLD / np.linalg.norm(OLD, axis=1, keepdims=True)
    for new, unit in ((NEW, False), (UNIT, True)):
        paired = read(tmp_path, old={"embeddings": old, "ids": IDS}, new=new_with(embeddings=new), old_dim=2, new_dim=2)
        assert paired.dims == {"old": 2, "new": 2}
        assert dict(paired.wider) == {"old": (4, True), "new": (3, unit)}
        assert paired.normalised == unit
        for role, rows, renormalised in (("old", old, True), ("new", new, unit)):
            cut = rows[:, :2].astype(np.float64)
            cut = cut / np.sqrt((cut**2).sum(1, keepdims=True)) if renormalised else cut
            assert np.allclose(paired.embeddings[role].numpy(), cut, atol=1e-6)
    assert read(tmp_path, old_dim=4, new_dim=3).wider == {}
    with pytest.raises(UserError, match=r"new_dim: is 4, but new: .*new.npz is 3-d"):
        read(tmp_path, new_dim=4)
