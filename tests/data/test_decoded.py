"""The array of decoded images that is kept beside a data set: the same batches, and never of other images."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import folders, memory_images
from data.config import DatasetParams
from data.datasets import open_images
from data.folders import read_pixels
from data.images import Batch
from tests.tiny import write_images
from utils.distributed import World

WORLD = World()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory_images, "WORTH_KEEPING", 4)
    return write_images(tmp_path / "data", classes=3, training=4, validation=1)


def batch_of(root: Path, split: str = "training", world: World = WORLD, **values: object) -> Batch:
    params = DatasetParams(name="glyphs", data_root=str(root), batch_size=4, max_unreadable=0.2, **values)  # type: ignore[arg-type]
    return next(open_images(params, split, world, seed=0).view_batches(0, 100))


def kept(root: Path) -> list[Path]:
    return sorted((root / ".decoded").iterdir()) if (root / ".decoded").exists() else []


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(file: Path) -> np.ndarray:
        raise AssertionError(f"{file} was decoded again")

    monkeypatch.setattr(folders, "read_pixels", decode)


def test_a_second_run_decodes_nothing_and_sees_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, half = batch_of(root), batch_of(root, num_classes=2)
    assert len(kept(root)) == 2
    batch_of(root, "validation")
    assert len(kept(root)) == 2  # so few are decoded in no time
    forbid_decoding(monkeypatch)
    assert same(batch_of(root), whole)
    assert same(batch_of(root, num_classes=2), half)
    root.rename(root.with_name("moved"))
    assert same(batch_of(root.with_name("moved")), whole)


@pytest.mark.parametrize("change", ["another image of the same size", "one more", "one less", "another name"])
def test_changed_images_are_decoded_anew(root: Path, change: str) -> None:
    paths = sorted((root / "training" / "1").iterdir())
    if change == "another image of the same size":
        for path in paths:
            Image.new("RGB", (16, 16)).save(path.with_suffix(".bmp"))
            path.unlink()
    before = batch_of(root)
    if change == "another image of the same size":
        path = paths[0].with_suffix(".bmp")
        status = path.stat()
        Image.new("RGB", (16, 16), (9, 9, 9)).save(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "one more":
        Image.new("RGB", (16, 16)).save(root / "training" / "1" / "more.png")
    elif change == "one less":
        paths[0].unlink()
    else:
        paths[0].rename(root / "training" / "1" / "zzz.png")  # the last of its class now
    now = batch_of(root)
    assert not same(before, now)
    expected = [read_pixels(path) for label in "012" for path in sorted((root / "training" / label).iterdir())]
    (images,) = (np.load(path) for path in kept(root) if path.stat().st_mtime_ns == max_time(root))
    assert np.array_equal(images, np.stack(expected))  # type: ignore[arg-type]


def max_time(root: Path) -> int:
    return max(path.stat().st_mtime_ns for path in kept(root))


@pytest.mark.parametrize("content", [b"", b"no array", "half", "another shape", "objects"])
def test_a_damaged_array_is_written_again(root: Path, content: bytes | str) -> None:
    before = batch_of(root)
    (path,) = kept(root)
    whole = path.read_bytes()
    if content == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "another shape":
        np.save(path, np.zeros((11, 16, 16, 3), np.uint8))
    elif content == "objects":
        np.save(path, np.array([{}], object), allow_pickle=True)
    else:
        assert isinstance(content, bytes)
        path.write_bytes(content)
    assert same(batch_of(root), before)
    assert path.read_bytes() == whole


def test_images_that_cannot_be_read_are_named_by_every_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "training" / "1" / "002.png").write_text("no image")
    for _ in range(2):
        batch_of(root)
        assert "unreadable image, left out (1 of 12 so far)" in capsys.readouterr().out
    assert kept(root) == []


def test_only_the_main_process_writes(root: Path) -> None:
    batch_of(root, world=World(1, 2))
    assert kept(root) == []
    batch_of(root, world=World(0, 2))
    assert len(kept(root)) == 1


def test_where_nothing_can_be_written_every_run_decodes(root: Path) -> None:
    (root / ".decoded").write_text("in the way")
    before = batch_of(root)
    assert same(batch_of(root), before)
    assert (root / ".decoded").read_text() == "in the way"


def test_a_full_disk_leaves_nothing_behind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, pixels: np.ndarray) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    batch_of(root)
    assert kept(root) == []
