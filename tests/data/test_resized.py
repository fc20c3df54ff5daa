"""Resized copies: the same classes, names and order, smaller images, whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from data.folders import list_images, read_pixels
from data.preparation import Recipe, prepare, read_stamp
from data.resized import reduced, resize
from tests.tiny import write_images
from utils.errors import UserError

RNG = np.random.default_rng(0)


def photograph(width: int, height: int) -> Image.Image:
    """Smooth colours under a little noise, as JPEG is made for."""
    small = Image.fromarray(RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)) + RNG.normal(0, 4, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A prepared data set of 12 classes with 2 training images and 1 for validation."""

    def fill(folder: Path) -> dict[str, int]:
        write_images(folder, classes=12, training=2, validation=1, size=40)
        return {"training": 24, "validation": 12}

    prepare(tmp_path / "toy", Recipe("toy", source="/somewhere", split="official"), fill)
    return tmp_path / "toy"


def test_classes_names_and_order_stay_and_a_copy_of_another_origin_is_refused(root: Path) -> None:
    first, second, third, *_ = list_images(root, "training").paths
    photograph(30, 20).save(first)
    second.write_text("no image")
    third.rename(third.with_name("~._A B.PNG"))
    copy, done = resize(root, 32)
    assert (copy, done) == (root.with_name("toy-32"), True)
    for split in ("training", "validation"):
        ours, original = list_images(copy, split), list_images(root, split)
        assert [path.relative_to(copy) for path in ours.paths] == [path.relative_to(root) for path in original.paths]
        assert (ours.labels, ours.classes) == (original.labels, original.classes)
        shapes = [None if pixels is None else pixels.shape for pixels in map(read_pixels, ours.paths)]
        assert shapes[2:] == [(32, 32, 3)] * (len(shapes) - 2)
    assert read_stamp(copy) == read_stamp(root) | {"parameters": {"resize": 32}}
    assert resize(root, 32) == (copy, False)
    (root / "prepared.json").write_text((root / "prepared.json").read_text().replace("somewhere", "elsewhere"))
    with pytest.raises(UserError, match=r"toy-32: was prepared with source /somewhere, not /elsewhere; delete"):
        resize(root, 32)


@pytest.mark.parametrize(("suffix", "kind", "bound"), [(".JPEG", "JPEG", 2), (".png", "PNG", 0.5)])
@pytest.mark.parametrize("shape", [(301, 200), (150, 233)])
def test_large_images_are_reduced_as_the_evaluation_does(
    tmp_path: Path, shape: tuple[int, int], suffix: str, kind: str, bound: float
) -> None:
    path, copy = tmp_path / f"large{suffix}", tmp_path / f"copy{suffix}"
    photograph(*shape).save(path, quality=95)
    copy.write_bytes(reduced(path, 100))
    with Image.open(path) as original, Image.open(copy) as image:
        assert image.format == kind
        expected = np.asarray(v2.Resize(100, antialias=True)(original)).astype(int)
        assert np.abs(np.asarray(image) - expected).mean() < bound  # levels
    assert copy.stat().st_size < path.stat().st_size / 2


def test_what_is_small_enough_or_unreadable_keeps_its_bytes(tmp_path: Path) -> None:
    photograph(120, 100).convert("L").save(tmp_path / "gray.jpg")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "gray.jpg").read_bytes()[:300])
    assert reduced(tmp_path / "gray.jpg", 100) == (tmp_path / "gray.jpg").read_bytes()
    assert reduced(tmp_path / "broken.jpg", 50) == (tmp_path / "broken.jpg").read_bytes()
    with pytest.raises(UserError, match=r"none\.png: cannot be read \(No such file"):
        reduced(tmp_path / "none.png", 50)
