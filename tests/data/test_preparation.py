"""Folders are whole or absent, pickles execute nothing."""

import errno
import fcntl
import hashlib
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from torchvision.datasets import CIFAR100

from data import cifar100
from data.folders import read_pixels
from data.preparation import Recipe, prepare, read_stamp
from utils.errors import UserError

RECIPE = Recipe("toy", parameters={"seed": 0})


def fill(folder: Path) -> dict[str, int]:
    for split in ("training", "validation"):
        (folder / split / "a").mkdir(parents=True)
        (folder / split / "a" / "0.png").write_bytes(b"image")
    return {"training": 1, "validation": 1}


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def refuse(folder: Path) -> dict[str, int]:
    raise AssertionError("a finished folder was filled again")


# Folders


@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_is_made_once(tmp_path: Path, linked: bool) -> None:
    output = tmp_path / "deep" / "toy"
    if linked:  # to an empty folder
        (tmp_path / "disk").mkdir()
        output.parent.mkdir()
        output.symlink_to(tmp_path / "disk")
    assert prepare(output, RECIPE, fill) is True
    assert prepare(output, RECIPE, refuse) is False
    assert output.is_symlink() == linked
    assert (output / "training" / "a" / "0.png").read_bytes() == b"image"
    assert read_stamp(output)["images"] == {"training": 1, "validation": 1}
    assert names(output.parent) == ["toy"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("bad"), "bad"),
        (KeyboardInterrupt(), None),
        (OSError(errno.ENOSPC, "of a write, which names no file"), "toy: no space left on the disk; free some"),
    ],
)
def test_a_failure_leaves_nothing(tmp_path: Path, error: BaseException, message: str | None) -> None:
    def fail(folder: Path) -> dict[str, int]:
        fill(folder)
        raise error

    with pytest.raises((UserError, KeyboardInterrupt), match=message):
        prepare(tmp_path / "toy", RECIPE, fail)
    assert names(tmp_path) == []


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", mock.Mock(side_effect=OSError(errno.ENOSYS, "Function not implemented")))
    assert prepare(tmp_path / "toy", RECIPE, fill) is True
    assert names(tmp_path) == ["toy"]
    assert capsys.readouterr().err.startswith(f"note: {tmp_path}/toy is on a file system without locks")


def test_what_a_killed_run_left_is_cleared_and_links_are_not_followed(tmp_path: Path) -> None:
    partial = tmp_path / "new" / ".toy.partial"
    for folder in (tmp_path / "elsewhere", partial / "training" / "stale"):
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(b"half")
    (partial / "validation").symlink_to(tmp_path / "elsewhere")
    prepare(tmp_path / "new" / "toy", RECIPE, fill)
    assert names(tmp_path / "new" / "toy" / "training") == ["a"]
    assert names(tmp_path / "new") == ["toy"]
    assert names(tmp_path / "elsewhere") == ["0.png"]


def test_foreign_files_stay(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="did not write"):
        prepare(tmp_path / "toy", RECIPE, fill)
    assert (tmp_path / "toy" / "thesis.txt").read_text() == "precious"


def test_another_recipe_is_refused_and_one_without_source_accepts_any(tmp_path: Path) -> None:
    prepare(tmp_path / "toy", Recipe("toy", source="/here", parameters={"seed": 0}), fill)
    assert prepare(tmp_path / "toy", RECIPE, refuse) is False
    with pytest.raises(UserError, match="parameters"):
        prepare(tmp_path / "toy", Recipe("toy", parameters={"seed": 1}), refuse)
    with pytest.raises(UserError, match="source"):
        prepare(tmp_path / "toy", Recipe("toy", source="/elsewhere", parameters={"seed": 0}), refuse)


def test_a_split_that_went_is_noticed(tmp_path: Path) -> None:
    prepare(tmp_path / "toy", RECIPE, fill)
    (tmp_path / "toy" / "training").rename(tmp_path / "moved")
    (tmp_path / "toy" / "training").symlink_to("../nowhere")
    with pytest.raises(UserError, match="`training` is gone"):
        prepare(tmp_path / "toy", RECIPE, refuse)


def test_of_two_runs_at_once_the_second_is_refused(tmp_path: Path) -> None:
    def meet(folder: Path) -> dict[str, int]:
        with pytest.raises(UserError, match="another run"):
            prepare(tmp_path / "toy", RECIPE, refuse)
        return fill(folder)

    assert prepare(tmp_path / "toy", RECIPE, meet)


# CIFAR-100's files


def batch(count: int = 3, **changes: Any) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, size=(count, 3072), dtype=np.uint8)
    return {"data": pixels, "fine_labels": [7 * i for i in range(count)], "coarse_labels": [0] * count} | changes


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("key", [str, str.encode])
def test_every_protocol_is_read(protocol: int, key: Callable[[str], Any]) -> None:
    values = batch()
    content = pickle.dumps({key(name): value for name, value in values.items()}, protocol)
    split = cifar100.parse(content, "train")
    assert split.labels.tolist() == [0, 7, 14]
    # The original order is all red, all green, all blue, each row by row.
    assert split.images[1, 2, 3].tolist() == [values["data"][1, c * 1024 + 2 * 32 + 3] for c in range(3)]


def test_what_python_2_wrote_is_read() -> None:
    # Python 2 wrote keys and array bytes as its one kind of text, opcodes T and U, and numpy under its old names.
    pixels = bytes(range(256)) * 12
    content = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89T\x00\x0c\x00\x00" + pixels + b"tbU\x0bfine_labels]K\x13au."
    )
    split = cifar100.parse(content, "train")
    assert split.labels.tolist() == [19]
    assert split.images.transpose(0, 3, 1, 2).tobytes() == pixels


@pytest.mark.parametrize(
    "malicious",
    [
        b"cos\nsystem\n(S'touch %s'\ntR.",
        b'c__builtin__\neval\n(S\'open("%s", "w")\'\ntR.',
        b"cnumpy\nsave\n(S'%s'\nI1\ntR.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93(X\x0a\x00\x00\x00touch pwnd\x85R.",
    ],
)
def test_a_pickle_that_executes_is_refused(tmp_path: Path, malicious: bytes) -> None:
    victim = tmp_path / "victim"
    content = malicious.replace(b"%s", bytes(victim))
    with pytest.raises(UserError, match="refused; it asks for"):
        cifar100.parse(content, "train")
    assert not victim.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "no dictionary"),
        ({"data": np.zeros((1, 3072), np.uint8)}, "no `fine_labels`"),
        ({"fine_labels": [0]}, "no `data`"),
        (batch(data=np.zeros((3, 3072), np.float32)), "uint8 of shape"),
        (batch(data=np.zeros((3, 3071), np.uint8)), "uint8 of shape"),
        (batch(data=[1, 2, 3]), "got list"),
        (batch(0), "no image"),
        (batch(fine_labels=[0, 1]), "3 images but 2"),
        (batch(fine_labels=[0, 1, 100]), "span 0..100"),
        (batch(fine_labels=[-1, 1, 9]), "span -1..9"),
        (batch(fine_labels=["a", "b", "c"]), "whole numbers"),
        (batch(fine_labels=[[0], [1, 2], 3]), "whole numbers"),
        (batch(fine_labels=None), "whole numbers"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.", "text in hex"),
        *((damage, "is not a CIFAR-100 file") for damage in (b"", b"not a pickle", pickle.dumps(batch(), 4)[:-400])),
    ],
)
def test_bad_content_is_named(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        cifar100.parse(value if isinstance(value, bytes) else pickle.dumps(value, 4), "some/train")
    assert str(caught.value).startswith("some/train: ")


def test_a_download_is_checked_by_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"train": batch(3), "test": batch(2)}
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        for name, value in values.items():
            (tmp_path / name).write_bytes(pickle.dumps(value, 2))
            archive.add(tmp_path / name, f"cifar-100-python/{name}")
    fetch = mock.Mock(side_effect=lambda url, path: shutil.copy(tmp_path / "cifar.tar.gz", path))
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", fetch)
    monkeypatch.setattr(CIFAR100, "url", (tmp_path / "cifar.tar.gz").as_uri())
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"cannot download .*cifar.tar.gz"):  # it is not the official archive
        cifar100.lay_out(tmp_path / "out", None)
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5((tmp_path / "cifar.tar.gz").read_bytes()).hexdigest())
    assert cifar100.lay_out(tmp_path / "out", None) == {"training": 3, "validation": 2}
    pixels = read_pixels(tmp_path / "out" / "training" / "7" / "00001.png")
    assert pixels is not None
    assert np.array_equal(pixels.transpose(2, 0, 1).reshape(-1), values["train"]["data"][1])
