"""What is said of the images of a data set: which files they are, and what has changed in them."""

import hashlib
from pathlib import Path

import pytest

from utils.data_roots import Contents, difference, digest, image_files


def test_a_digest_is_of_all_facts_in_their_order() -> None:
    # What stages and caches of earlier versions are known by.
    assert digest([("a/b.png", 12), ("c", 3)]) == hashlib.sha256(b"a/b.png\x0012\0c\x003\0").hexdigest()
    assert digest([("\udce9", 1)]) == hashlib.sha256(b"\xe9\x001\0").hexdigest()
    assert digest([]) == hashlib.sha256().hexdigest()


def test_image_files_are_those_that_are_listed(tmp_path: Path) -> None:
    beside = ("prepared.json", ".decoded/rows.npy")
    for name in ("training/a/x/1.png", "training/a/._1.png", "validation/a/2.png", "test/a/3.png", *beside):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    of_splits = ["test/a/3.png", "training/a/x/1.png", "validation/a/2.png"]  # a config may name any of them
    assert [name for name, _ in image_files(tmp_path)] == of_splits
    assert [name for name, _ in image_files(tmp_path / "test")] == ["/a/3.png"]


@pytest.mark.parametrize(
    ("now", "what"),
    [
        ({"training": {"a": (3, "x"), "b": (1000, "y")}}, None),
        ({"training": {"a": (2, "z"), "b": (1000, "y")}}, "training images 1,003 then and 1,002 now (class a)"),
        (
            {"training": {"a": (4, "z"), "b": (999, "z")}},
            "training images of other names or sizes (class a and 1 more)",
        ),
        ({"training": {"a": (3, "x")}}, "training images 1,003 then and 3 now (class b)"),
        ({}, "training images 1,003 then and 0 now (class a and 1 more)"),
    ],
)
def test_what_has_changed_is_told(now: Contents, what: str | None) -> None:
    before: Contents = {"training": {"a": (3, "x"), "b": (1000, "y")}}
    assert difference(before, now) == what
