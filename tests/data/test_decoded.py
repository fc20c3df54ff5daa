"""The array of decoded images that is kept beside a data set: the same batches, and never of other images."""

import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from data import folders, memory_images
from data.config import DatasetParams
from data.datasets import open_images
from data.folders import read_image
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
    return all(map(torch.equal, one, other))


def test_a_second_run_decodes_nothing_and_sees_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, half = batch_of(root), batch_of(root, num_classes=2)
    assert len(kept(root)) == 2
    batch_of(root, "validation")
    assert len(kept(root)) == 2  # so few are decoded in no time
    monkeypatch.setattr(folders, "read_pixels", mock.Mock(side_effect=AssertionError("decoded again")))
    assert same(batch_of(root), whole)
    assert same(batch_of(root, num_classes=2), half)
    root.rename(root.with_name("moved"))
    assert same(batch_of(root.with_name("moved")), whole)


@pytest.mark.parametrize("change", ["another image of the same size", "one more", "one less", "another name"])
def test_changed_images_are_decoded_anew(root: Path, change: str) -> None:
    folder = root / "training" / "1"
    Image.new("RGB", (16, 16)).save(folder / "plain.bmp")
    before, earlier = batch_of(root), kept(root)
    if change == "another image of the same size":
        status = (folder / "plain.bmp").stat()
        Image.new("RGB", (16, 16), (9, 9, 9)).save(folder / "plain.bmp")
        os.utime(folder / "plain.bmp", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "one more":
        Image.new("RGB", (16, 16)).save(folder / "more.png")
    elif change == "one less":
        (folder / "000.png").unlink()
    else:
        (folder / "000.png").rename(folder / "zzz.png")  # the last of its class now
    assert not same(before, batch_of(root))
    paths = [path for label in "012" for path in sorted((root / "training" / label).iterdir())]
    (path,) = set(kept(root)).difference(earlier)
    assert np.array_equal(np.load(path), np.stack([np.asarray(read_image(path)) for path in paths]))


@pytest.mark.parametrize("damage", ["empty", "text", "half", "another shape", "objects"])
def test_a_damaged_array_is_written_again(root: Path, damage: str) -> None:
    before = batch_of(root)
    (path,) = kept(root)
    whole = path.read_bytes()
    if damage == "another shape":
        np.save(path, np.zeros((11, 16, 16, 3), np.uint8))
    elif damage == "objects":
        np.save(path, np.array([{}], object), allow_pickle=True)
    else:
        path.write_bytes({"empty": b"", "text": b"no array", "half": whole[: len(whole) // 2]}[damage])
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


def test_where_nothing_can_be_written_every_run_decodes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", mock.Mock(side_effect=OSError(28, "No space left on device")))
        before = batch_of(root)
    assert kept(root) == []
    (root / ".decoded").rmdir()
    (root / ".decoded").write_text("in the way")
    assert same(batch_of(root), before)
    assert (root / ".decoded").read_text() == "in the way"
