"""Image lists: which rows and classes are read, as a loop over the csv module's rows finds them, and bad input."""

import csv
import io
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.config import DatasetParams
from data.datasets import list_split, open_images
from data.folders import ImageList, list_images
from data.lists import list_from_file
from tests.tiny import write_images
from utils.distributed import World
from utils.errors import UserError

MARKET = """path,label,split,camera,id
a.jpg,7,train,1,10
b.jpg,12,train,2,11
c.jpg,3,query,1,12
d.jpg,3,gallery,2,13
e.jpg,-1,gallery,1,14
f.jpg,12,gallery,1,15
"""


def write(folder: Path, text: str, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def write_parquet(folder: Path, columns: dict[str, Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "list.parquet")
    return folder / "list.parquet"


def read(path: Path, split: str = "train", **options: Any) -> ImageList:
    return list_from_file(path, "root", split, training_split="train", **options)


def names(listed: ImageList) -> list[str]:
    return [str(path) for path in listed.paths]


def test_the_splits_of_a_list_have_one_numbering_of_classes(tmp_path: Path) -> None:
    path = write(tmp_path, MARKET)
    train = read(path)
    assert (names(train), train.labels, train.classes) == (["root/a.jpg", "root/b.jpg"], [0, 1], ["7", "12"])
    query, gallery = (read(path, split, all_classes=True) for split in ("query", "gallery"))
    assert query.classes == gallery.classes == ["7", "12", "3"]
    assert (query.labels, gallery.labels) == ([2], [2, -1, 1])
    assert (query.cameras, gallery.cameras) == ([1], [2, 1, 1])
    assert gallery.ids is not None
    assert gallery.ids.tolist() == [13, 14, 15]
    known = read(path, "gallery")
    assert (names(known), known.labels) == (["root/f.jpg"], [1])
    assert known.notes == [f"{path}: left out 1 images of no class and 1 images of other classes of the split gallery"]
    assert read(path, num_classes=1).labels == [0]


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["10", "9", "-2", "0"], ["0", "9", "10"], [2, 1, -1, 0]),  # as numbers
        (["b", "a", "-1", "B"], ["B", "a", "b"], [2, 1, -1, 0]),  # as texts
        (["007", "7", "10", "9"], ["007", "10", "7", "9"], [0, 2, 1, 3]),
        (["1.0", "2", "3", "-0"], ["-0", "1.0", "2", "3"], [1, 2, 3, 0]),
    ],
)
def test_labels_are_whole_numbers_where_all_are_and_texts_otherwise(
    tmp_path: Path, labels: list[str], classes: list[str], numbers: list[int]
) -> None:
    rows = [f"{place}.png,{label}" for place, label in enumerate(labels)]
    listed = read(write(tmp_path, "\n".join(["path,label", *rows])), all_classes=True)
    assert (listed.classes, listed.labels) == (classes, numbers)


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1, max_size=5).filter(
    lambda text: text.strip() == text
)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cells=st.lists(st.tuples(CELLS, CELLS, st.sampled_from(["train", "test"]), CELLS), min_size=1, max_size=12),
    heading=st.permutations(["path", "label", "split", "group", "other"]),
    dialect=st.sampled_from(["excel", "unix"]),
    bom=st.booleans(),
)
def test_any_csv_and_the_same_as_parquet(
    tmp_path: Path, cells: list[Any], heading: list[str], dialect: str, bom: bool
) -> None:
    """Commas, quotes, texts of any script, line ends of Windows, a byte order mark, columns in any order."""
    rows = [
        {"path": f"{n}{a}", "label": b, "split": c, "group": d, "other": ""} for n, (a, b, c, d) in enumerate(cells)
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, heading, dialect=dialect)
    writer.writeheader()
    writer.writerows(rows)
    from_csv = write(tmp_path, ("\ufeff" if bom else "") + text.getvalue())
    columns = {name: [row[name] for row in rows] for name in heading}
    of_split = [row for row in rows if row["split"] == rows[0]["split"]]
    for path in (from_csv, write_parquet(tmp_path, columns)):
        listed = read(path, rows[0]["split"], all_classes=True)
        assert listed.paths == [Path("root", row["path"]) for row in of_split]
        assert listed.groups == [row["group"] for row in of_split]
        assert [listed.classes[label] if label >= 0 else None for label in listed.labels] == [
            None if re.fullmatch(r"-[1-9]\d*", row["label"]) else row["label"] for row in of_split
        ]
        assert listed.classes == sorted(listed.classes, key=lambda name: listed.classes.index(name))


def test_parquet_of_numbers_and_categories(tmp_path: Path) -> None:
    columns = {
        "path": ["a.jpg", "b.jpg", "c.jpg"],
        "label": pyarrow.array([5, -1, 2], pyarrow.int16()),
        "camera": pyarrow.array(["left", "right", "left"]).dictionary_encode(),
        "id": ["x", "y", "z"],
    }
    path = write_parquet(tmp_path, columns)
    listed = read(path, all_classes=True)
    assert (listed.labels, listed.classes, listed.cameras) == ([1, -1, 0], ["2", "5"], [0, 1, 0])
    assert listed.ids is not None
    assert listed.ids.tolist() == ["x", "y", "z"]


def test_paths_are_ids_and_absolute_ones_stay_as_they_are(tmp_path: Path) -> None:
    listed = read(write(tmp_path, f"path,label\nsub/a.jpg,0\n{tmp_path}/b.jpg,1\n"))
    assert names(listed) == ["root/sub/a.jpg", f"{tmp_path}/b.jpg"]
    assert listed.ids is not None
    assert listed.ids.tolist() == ["sub/a.jpg", f"{tmp_path}/b.jpg"]
    (tmp_path / "b.jpg").write_bytes(b"123")
    sizes = {name: size for name, size, _ in listed.files("root")}
    assert sizes == {"sub/a.jpg": -1, f"{tmp_path}/b.jpg": 3}
    assert {name: count for name, (count, _) in listed.contents("root").items()} == {"0": 1, "1": 1}


def test_a_column_may_be_of_some_splits_alone_and_is_taken_with_its_images(tmp_path: Path) -> None:
    listed = read(write(tmp_path, "path,label,split,group\na,0,train,\nb,0,test,x\nc,0,test,y\n"), "test")
    assert listed.groups == ["x", "y"]
    assert listed.take([1]).groups == ["y"]
    assert np.array_equal(np.asarray(listed.take([1]).ids), ["c"])
    assert read(tmp_path / "list.csv").groups is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; its first line should name the columns"),
        ("path,label\n", "has no rows"),
        ("path,lable\na,0\n", "has no column `label`; is it `lable`? (columns: path, lable)"),
        ("path;label\na;0\n", "has no column `path`; (columns: path;label)"),
        ("file,label\na,0\n", "has no column `path`; (columns: file, label)"),
        ("path,label,label\na,0,1\n", "has the column `label` more than once"),
        ("path,label\na,0\nb\n", "a row has 1 cells, the heading 2; it is b"),
        ('path,label\n\n"a,0\n', "line 3 is no CSV"),
        ("path,label\na,0\n,1\n", "its column `path` is empty in 1 rows, first in row 2"),
        ("path,label\na,0\nb,\nc,\n", "its column `label` is empty in 2 rows, first in row 2"),
        ("path,label,split\na,0,train\nb,1,\n", "its column `split` is empty in 1 rows, first in row 2"),
        (
            "path,label,split\na,0,trian\nb,1,test\n",
            "split: unknown 'train'; did you mean trian? (choices: test, trian)",
        ),
        ("path,label,camera\na,0,1\nb,1,\n", "its column `camera` is empty in 1 rows, first in row 2"),
        ("path,label\na,0\n./a,1\n", "its column `path` has 1 values more than once, the first is root/a"),
        ("path,label,id\na,0,4\nb,1,4\n", "its column `id` has 1 values more than once, the first is 4"),
        ("path,label\na,-1\n", "the split train holds no image of the classes of the training split"),
    ],
)
def test_a_list_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read(path)
    assert str(error.value).startswith(f"dataset_params.list_path: {path}")


def test_other_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = write(tmp_path, "path,label\na,0\n")
    with pytest.raises(
        UserError, match=r"has no column `split`, so all of its images are of the split `train`; add the"
    ):
        read(plain, "test")
    with pytest.raises(UserError, match=r"num_classes: 2 classes asked for, .* has 1 of the split train"):
        read(plain, num_classes=2)
    with pytest.raises(UserError, match=r"should be a CSV or Parquet file, named \.csv or \.parquet"):
        read(write(tmp_path, "path label", "list.txt"))
    (tmp_path / "latin.csv").write_bytes("path,label\nä,0\n".encode("latin-1"))
    with pytest.raises(UserError, match="is not in UTF-8"):
        read(tmp_path / "latin.csv")
    with pytest.raises(UserError, match="is no Parquet file"):
        read(write(tmp_path, "path,label\na,0\n", "list.parquet"))
    for column, values, message in (
        ("label", [0.5], "`label` is of double, and should be texts or whole numbers"),
        ("path", [3], "`path` is of int64, and should be texts"),
    ):
        with pytest.raises(UserError, match=message):
            read(write_parquet(tmp_path, {"path": ["a"], "label": [0], column: values}))
    with pytest.raises(UserError, match="its column `label` is empty in 1 rows, first in row 2"):
        read(write_parquet(tmp_path, {"path": ["a", "b"], "label": ["x", None]}))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="needs pyarrow, which is not here: pip install pyarrow"):
        read(tmp_path / "list.parquet")


def test_columns_that_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, "path,label,cameras,weather\na,0,1,fine\n")
    assert read(path).notes == [f"{path}: its column `cameras` is not read; `camera` would be"]


def test_missing_files_are_counted_before_anything_is_read(tmp_path: Path) -> None:
    write_images(tmp_path, classes=1, training=2, validation=1)
    found = [path.name for path in list_images(tmp_path, "training").paths]
    rows = [f"training/0/{name},0" for name in (*found, "gone.png", "lost.png")]
    params = DatasetParams("list", str(tmp_path), 2, list_path=str(write(tmp_path, "\n".join(["path,label", *rows]))))
    with pytest.raises(UserError, match=rf"2 of 4 images are not there, the first is {tmp_path}/training/0/gone\.png"):
        open_images(params, "training", World(), seed=0)


def test_folders_of_any_names_have_one_numbering_of_classes(tmp_path: Path) -> None:
    """Training on classes 0 and 2, a query of 1 and 2, a gallery of 3 and 1."""
    for name, classes in {"train": "02", "query": "12", "gallery": "31"}.items():
        for label in classes:
            (tmp_path / name / label).mkdir(parents=True)
            (tmp_path / name / label / "x.png").touch()
    params = DatasetParams("folder", str(tmp_path), 2, training_split="train", validation_split="query")
    train, query, gallery = (
        list_split(params, split, all_classes=True) for split in ("training", "validation", "gallery")
    )
    assert query.classes == gallery.classes == ["0", "2", "1", "3"]
    assert (train.labels, query.labels, gallery.labels) == ([0, 1], [1, 2], [2, 3])
    assert gallery.ids is not None
    assert gallery.ids.tolist() == ["gallery/1/x.png", "gallery/3/x.png"]
    assert list_split(params, "validation").labels == [1]
    with pytest.raises(
        UserError, match=r"split: unknown 'qery'; did you mean query\? \(choices: gallery, query, train\)"
    ):
        list_split(params, "qery")


def test_held_out_images_are_of_the_training_split_alone_and_named_splits_are_read_as_they_are(tmp_path: Path) -> None:
    rows = [f"{label}/{n}.jpg,{label},{'test' if label > 1 else 'train'}" for label in range(4) for n in range(6)]
    path = write(tmp_path, "\n".join(["path,label,split", *rows]))
    of_list = DatasetParams("list", "root", 2, held_out=0.5, training_split="train", list_path=str(path))
    for row in rows:
        image = tmp_path / "folders" / row.split(",")[0]
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
    of_folders = DatasetParams("folder", str(tmp_path / "folders"), 2, held_out=0.5, training_split=".")
    for params, classes in ((of_list, 2), (of_folders, 4)):
        kept, held = (list_split(params, split, all_classes=True) for split in ("training", "validation"))
        assert sorted(kept.labels) == sorted(held.labels) == sorted(list(range(classes)) * 3)
        assert not set(kept.paths) & set(held.paths)
    assert list_split(of_list, "test", all_classes=True).labels == [2] * 6 + [3] * 6


def test_a_long_list_takes_a_few_times_as_long_as_its_rows_alone(tmp_path: Path) -> None:
    """Some ten times; a search among the rows for each of them would take thousands."""
    rows = [f"people/{n // 20:05d}/{n:07d}.jpg,{n // 20},{'train' if n % 2 else 'test'},{n % 6}" for n in range(20_000)]
    path = write(tmp_path, "\n".join(["path,label,split,camera", *rows]))
    start = time.process_time()
    with path.open(encoding="utf-8", newline="") as file:
        assert len(list(csv.reader(file))) == 20_001
    middle = time.process_time()
    assert len(read(path, "test", all_classes=True)) == 10_000
    assert time.process_time() - middle < 100 * (middle - start)
