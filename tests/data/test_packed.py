"""Packed copies: the same images, labels and order as the folders, from a few files; damage and misfits are named."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from data import packed
from data.config import DatasetParams
from data.datasets import list_split, open_images
from data.folders import list_images
from data.preparation import STAMP, Recipe, prepare, read_stamp
from tests.tiny import write_images
from utils.distributed import World
from utils.errors import UserError

RNG = np.random.default_rng(0)


def photograph(width: int, height: int) -> Image.Image:
    """Smooth colours under a little noise, as JPEG is made for."""
    small = Image.fromarray(RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)) + RNG.normal(0, 4, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def prepared(root: Path, size: int = 16) -> Path:
    """A prepared data set of 12 classes with 2 training images and 1 for validation."""

    def fill(folder: Path) -> dict[str, int]:
        write_images(folder, classes=12, training=2, validation=1, size=size)
        return {"training": 24, "validation": 12}

    prepare(root, Recipe("toy", source="/somewhere", split="official"), fill)
    return root


def params(root: Path) -> DatasetParams:
    return DatasetParams(name="cifar100", data_root=str(root), batch_size=4, image_size=16, augmentation="crop_flip")


@pytest.mark.parametrize("num_classes", [None, 5])
def test_small_images_are_the_folders_images(tmp_path: Path, num_classes: int | None) -> None:
    root = prepared(tmp_path / "toy")
    assert packed.pack(root, 32) is True
    assert packed.pack(root, 32) is False
    copy, original = packed.list_packed(root, "training", num_classes), list_images(root, "training", num_classes)
    assert (copy.paths, copy.labels, copy.classes) == (original.paths, original.labels, original.classes)
    assert copy.classes[:4] == ["0", "1", "10", "11"]  # sorted as strings
    for index in range(len(original)):
        pixels, expected = copy.pixels(index), original.pixels(index)
        assert pixels is not None
        assert expected is not None
        assert np.array_equal(pixels, expected)
    assert read_stamp(root / "packed")["split"] == "official"


def test_held_out_images_come_from_the_training_folder_alone(tmp_path: Path) -> None:
    root = prepared(tmp_path / "toy")
    packed.pack(root, 16)
    (root / "packed").rename(tmp_path / "packed")
    shutil.rmtree(root / "validation")
    wanted = replace(params(root), held_out=0.5, num_classes=5)
    training, validation = (list_split(wanted, split) for split in ("training", "validation"))
    assert len(training) == len(validation) == 5
    assert {path.parent.parent.name for path in training.paths + validation.paths} == {"training"}
    assert set(training.paths).isdisjoint(validation.paths)
    assert len(list_split(wanted, "validation", all_classes=True)) == 12
    (tmp_path / "packed").rename(root / "packed")
    for split, original in (("training", training), ("validation", validation)):
        copy = list_split(wanted, split)
        assert isinstance(copy, packed.PackedList)
        assert copy.paths == original.paths
        assert all(np.array_equal(copy.pixels(i), original.pixels(i)) for i in range(5))  # type: ignore[arg-type]


def test_every_batch_is_the_same_from_the_packed_copy_alone(tmp_path: Path) -> None:
    root = prepared(tmp_path / "toy")
    packed.pack(root, 16)
    alone = tmp_path / "alone"
    alone.mkdir()
    (root / "packed").rename(alone / "packed")
    for batches in zip(
        open_images(params(root), "training", World(), seed=0).training_batches(1, 4),
        open_images(params(alone), "training", World(), seed=0).training_batches(1, 4),
        strict=True,
    ):
        for one, other in zip(*batches, strict=True):
            assert torch.equal(one, other)


def test_workers_read_packed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    root = prepared(tmp_path / "toy", size=70)  # more than are kept raw, fewer than are reduced
    packed.pack(root, 100)
    imagenet = replace(params(root), name="imagenet", augmentation="resized_crop_flip", num_workers=2)
    copy, folders = (
        torch.cat([batch.images for batch in open_images(p, "training", World(), seed=0).training_batches(2, 4)])
        for p in (imagenet, replace(imagenet, packed="off"))
    )
    assert torch.equal(copy, folders)


def test_packed_images_are_read_unless_the_config_says_no(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = prepared(tmp_path / "toy")
    assert not isinstance(list_split(params(root), "training"), packed.PackedList)
    packed.pack(root, 16)
    assert isinstance(list_split(params(root), "training"), packed.PackedList)
    assert not isinstance(list_split(replace(params(root), packed="off"), "training"), packed.PackedList)
    open_images(params(root), "training", World(), seed=0)
    assert f"training images: packed in {root}/packed/training" in capsys.readouterr().out


def test_large_images_become_smaller_jpegs_of_the_evaluation_size(tmp_path: Path) -> None:
    for width, height in ((301, 200), (150, 233)):
        photograph(width, height).save(tmp_path / "large.png")
        record = packed.encode(tmp_path / "large.png", 100)
        assert record.height == record.width == 0
        with Image.open(tmp_path / "large.png") as original, Image.open(io.BytesIO(record.content)) as image:
            assert image.format == "JPEG"
            expected = np.asarray(v2.Resize(100, antialias=True)(original)).astype(int)
            difference = np.abs(np.asarray(image) - expected)
        assert difference.mean() < 2  # levels
        assert len(record.content) < (tmp_path / "large.png").stat().st_size / 4


def test_what_is_small_enough_keeps_its_bytes(tmp_path: Path) -> None:
    photograph(120, 100).convert("L").save(tmp_path / "gray.jpg")
    assert packed.encode(tmp_path / "gray.jpg", 100) == ((tmp_path / "gray.jpg").read_bytes(), 0, 0)
    picture = photograph(64, 40)
    picture.save(tmp_path / "tiny.png")
    assert packed.encode(tmp_path / "tiny.png", 100) == (np.asarray(picture).tobytes(), 40, 64)
    assert packed.encode(tmp_path / "tiny.png", 20).height == 20  # reduced, and raw
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "gray.jpg").read_bytes()[:300])
    assert packed.encode(tmp_path / "broken.jpg", 50) == ((tmp_path / "broken.jpg").read_bytes(), 0, 0)
    with pytest.raises(UserError, match=r"none\.png: cannot be read \(No such file"):
        packed.encode(tmp_path / "none.png", 50)


def test_images_of_all_kinds_over_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SHARD_BYTES", 10_000)
    monkeypatch.setattr(packed, "IN_FLIGHT", 3)
    root = prepared(tmp_path / "toy", size=70)
    paths = list_images(root, "training").paths
    photograph(30, 20).save(paths[0])
    photograph(300, 200).save(paths[1])
    paths[2].write_text("no image")
    packed.pack(root, 100)
    shards = sorted((root / "packed" / "training").glob("*.bin"))
    assert len(shards) > 3
    assert max(shard.stat().st_size for shard in shards) <= 10_000 + 20_000  # one that is larger has a shard of its own
    copy = packed.list_packed(root, "training")
    sizes = [None if pixels is None else pixels.shape for pixels in map(copy.pixels, range(len(copy)))]
    assert sizes == [(20, 30, 3), (100, 150, 3), None] + 21 * [(70, 70, 3)]
    assert np.array_equal(copy.pixels(23), list_images(root, "training").pixels(23))  # type: ignore[arg-type]


def test_a_copy_of_other_images_is_refused(tmp_path: Path) -> None:
    root = prepared(tmp_path / "toy")
    packed.pack(root, 16)
    stamp = json.loads((root / STAMP).read_text())
    (root / STAMP).write_text(json.dumps(stamp | {"images": {"training": 25, "validation": 12}}))
    with pytest.raises(UserError, match=r"packed: was packed from other images .*packed=off"):
        list_split(params(root), "training")
    assert len(list_split(replace(params(root), packed="off"), "training")) == 24


def test_another_size_is_refused(tmp_path: Path) -> None:
    root = prepared(tmp_path / "toy")
    packed.pack(root, 16)
    with pytest.raises(UserError, match="delete the folder"):
        packed.pack(root, 8)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("00000.bin", lambda content: content[:-1]),
        ("records.npy", lambda content: content[: len(content) // 2]),
        ("paths.json", lambda content: b"[]"),
        ("paths.json", lambda content: content[:-5]),
        ("00000.bin", None),
    ],
)
def test_damage_is_found_before_training(tmp_path: Path, file: str, damage: object) -> None:
    root = prepared(tmp_path / "toy")
    packed.pack(root, 16)
    path = root / "packed" / "training" / file
    if callable(damage):
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    with pytest.raises(UserError, match=rf"{root}/packed/training: is damaged .*; delete {root}/packed and pack again"):
        list_split(params(root), "training")


def test_validation_is_numbered_by_the_classes_of_training(tmp_path: Path) -> None:
    root = prepared(tmp_path / "toy")
    shutil.rmtree(root / "validation" / "0")
    (root / "validation" / "3").rename(root / "validation" / "00")
    packed.pack(root, 16)
    for num_classes, all_classes in ((None, False), (5, False), (None, True)):
        copy = packed.list_packed(root, "validation", num_classes, all_classes=all_classes)
        original = list_images(root, "validation", num_classes, all_classes=all_classes)
        assert (copy.paths, copy.labels, copy.classes) == (original.paths, original.labels, original.classes)
        assert [note.replace("/packed", "") for note in copy.notes] == original.notes
    assert copy.contents(root) != original.contents(root)  # other bytes


def test_more_classes_than_there_are(tmp_path: Path) -> None:
    root = prepared(tmp_path / "toy")
    packed.pack(root, 16)
    with pytest.raises(UserError, match=r"num_classes: 13 classes asked for, .*/packed/training has 12"):
        packed.list_packed(root, "training", 13)
