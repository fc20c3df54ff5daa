"""Augmentation on whole batches against PIL and torchvision, image by image."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from data.augmentation import Augmentation, resize

RNG = np.random.default_rng(0)


def pixels(count: int, height: int = 8, width: int = 8) -> np.ndarray:
    return RNG.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(8, 8), (5, 9)])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("flips", [False, True])
def test_crop_and_flip_are_pils(shape: tuple[int, int], padding: int, flips: bool) -> None:
    images, augmentation = pixels(40, *shape), Augmentation(padding, flips)
    parameters = augmentation.draw(len(images), torch.Generator().manual_seed(0))
    result = augmentation.apply(torch.from_numpy(images), parameters)
    assert result.shape == (40, 3, *shape)
    assert result.dtype == torch.uint8
    assert result.is_contiguous(memory_format=torch.channels_last)
    for image, (top, left, flip), actual in zip(images, parameters.tolist(), result, strict=True):
        height, width = shape
        view = ImageOps.expand(Image.fromarray(image), padding).crop((left, top, left + width, top + height))
        expected = ImageOps.mirror(view) if flip else view
        assert np.array_equal(actual.permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize(
    ("augmentation", "num_views"),
    [
        (Augmentation(0, flips=False), 1),
        (Augmentation(0, flips=True), 2),
        (Augmentation(1, flips=False), None),
        (Augmentation(1, flips=True), None),
    ],
)
def test_views_are_the_image_and_its_mirror(augmentation: Augmentation, num_views: int | None) -> None:
    assert augmentation.num_views == num_views
    images = torch.from_numpy(pixels(3))
    plain = images.permute(0, 3, 1, 2)
    assert torch.equal(augmentation.apply(images, augmentation.view(0, 3)), plain)
    assert torch.equal(augmentation.apply(images, augmentation.view(1, 3)), plain.flip(3))


def test_every_offset_is_drawn_about_equally_and_half_the_images_are_flipped() -> None:
    count = 50_000
    views = Augmentation(2, flips=True).draw(count, torch.Generator().manual_seed(0))
    drawn, counts = views.unique(dim=0, return_counts=True)
    assert drawn.tolist() == [[top, left, flip] for top in range(5) for left in range(5) for flip in range(2)]
    # 1000 expected in each of 50 cells, with a standard deviation of 31.
    assert ((counts - count / 50).abs() < 160).all()


def test_nothing_is_drawn_that_is_switched_off() -> None:
    generator = torch.Generator().manual_seed(0)
    assert not Augmentation(0, flips=False).draw(100, generator).any()
    assert not Augmentation(3, flips=False).draw(100, generator)[:, 2].any()
    assert not Augmentation(0, flips=True).draw(100, generator)[:, :2].any()


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 224), (32, 32, 20), (24, 40, 32)])
def test_resize_is_pils_within_a_level(height: int, width: int, size: int) -> None:
    images = pixels(4, height, width)
    resized = resize(torch.from_numpy(images).permute(0, 3, 1, 2), size)
    assert resized.shape == (4, 3, size, size)
    assert torch.equal(resized, resized.round())
    for image, actual in zip(images, resized, strict=True):
        expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
        difference = np.abs(actual.permute(1, 2, 0).numpy().astype(int) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.25  # PIL also rounds between its two passes


def test_resize_to_the_same_size_leaves_the_levels_alone() -> None:
    images = torch.from_numpy(pixels(2)).permute(0, 3, 1, 2)
    assert torch.equal(resize(images, 8), images)
