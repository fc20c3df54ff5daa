"""Augmentation and normalisation of whole batches against PIL and torchvision, image by image."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as TF

from data.augmentation import Augmentation, resize
from data.datasets import IMAGENET_MEAN, IMAGENET_STD
from data.normalisation import Normalisation

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
    assert result.is_contiguous(memory_format=torch.channels_last)
    for image, (top, left, flip), actual in zip(images, parameters.tolist(), result, strict=True):
        height, width = shape
        view = ImageOps.expand(Image.fromarray(image), padding).crop((left, top, left + width, top + height))
        expected = ImageOps.mirror(view) if flip else view
        assert np.array_equal(actual.permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize(("padding", "flips", "num_views"), [(0, False, 1), (0, True, 2), (1, True, None)])
def test_views_are_the_image_and_its_mirror(padding: int, flips: bool, num_views: int | None) -> None:
    images, augmentation = pixels(3), Augmentation(padding, flips)
    assert augmentation.num_views == num_views
    for view, expected in enumerate((images, images[:, :, ::-1])):
        actual = augmentation.apply(torch.from_numpy(images), augmentation.view(view, 3))
        assert np.array_equal(actual.permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.parametrize(("padding", "flips"), [(0, False), (0, True), (2, False), (2, True)])
def test_every_view_is_drawn_about_equally(padding: int, flips: bool) -> None:
    drawn = Augmentation(padding, flips).draw(50_000, torch.Generator().manual_seed(0))
    views, counts = drawn.unique(dim=0, return_counts=True)
    corners = range(2 * padding + 1)
    assert views.tolist() == [[top, left, flip] for top in corners for left in corners for flip in range(1 + flips)]
    # Of 50 views 1000 each are expected, with a standard deviation of 31.
    assert ((counts / (50_000 / len(views)) - 1).abs() < 0.16).all()


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 224), (32, 32, 20), (24, 40, 32), (32, 32, 32)])
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


def test_normalise_is_torchvisions() -> None:
    images = torch.from_numpy(pixels(4, 8, 6)).permute(0, 3, 1, 2)
    expected = TF.normalize(images.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    normalised = Normalisation(IMAGENET_MEAN, IMAGENET_STD)(images)
    torch.testing.assert_close(normalised, expected, rtol=0, atol=1e-5)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
