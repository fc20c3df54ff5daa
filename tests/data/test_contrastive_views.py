"""Views for contrastive learning against torchvision's own operations, image by image, and what is drawn."""

from itertools import permutations

import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as TF

from data.config import SimCLRParams
from data.contrastive_views import ViewRecipe, recolour, resized_crops
from data.datasets import resolve_simclr

MANY = 20_000
TORCHVISIONS = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pixels(count: int, height: int = 16, width: int = 16) -> torch.Tensor:
    """Random images, the first of one colour, whose hue is not defined, the second black."""
    drawn = torch.randint(0, 256, (count, height, width, 3), generator=rng()).to(torch.uint8)
    drawn[0], drawn[1] = 77, 0
    return drawn


@pytest.mark.parametrize(("height", "width", "size"), [(16, 16, 16), (16, 16, 40), (30, 22, 8)])
def test_crops_are_torchvisions(height: int, width: int, size: int) -> None:
    images = pixels(40, height, width)
    crops = ViewRecipe(flip=True, strength=1, blur=False).draw_crops(40, height, width, rng())
    actual = resized_crops(images, crops, size)
    assert actual.shape == (40, 3, size, size)
    for image, box, mirrored, view in zip(images, crops.boxes.tolist(), crops.mirrored, actual, strict=True):
        expected = TF.resized_crop(image.permute(2, 0, 1).float(), *box, [size, size], antialias=True)
        expected = TF.horizontal_flip(expected) if mirrored else expected
        torch.testing.assert_close(view, expected, rtol=0, atol=0.01)  # levels


@pytest.mark.parametrize(("side", "kernel"), [(16, 3), (58, 5)])
def test_colours_are_torchvisions_in_the_drawn_order(side: int, kernel: int) -> None:
    images = pixels(60, side, side).permute(0, 3, 1, 2).float().contiguous()
    colours = ViewRecipe(flip=False, strength=1, blur=True).draw_colours(60, rng())
    actual = recolour(images.clone(), colours)
    assert actual.min() > -0.001
    assert actual.max() < 255.001
    changed = 0
    for image, view, order, factors, grey, sigma in zip(images, actual, *colours, strict=True):
        expected = image / 255
        for operation in order.tolist():
            if operation >= 0:
                expected = TORCHVISIONS[operation](expected, float(factors[operation]))
        if grey:
            expected = TF.rgb_to_grayscale(expected, num_output_channels=3)
        if sigma > 0:
            expected = TF.gaussian_blur(expected, [kernel] * 2, [float(sigma)])
        torch.testing.assert_close(view / 255, expected, rtol=0, atol=2e-5)
        changed += not torch.equal(image, view)
    assert 45 <= changed < 60


def test_crops_are_distributed_as_torchvisions() -> None:
    """The quantiles of area, aspect and corners, of both over many draws."""
    crops = ViewRecipe(flip=True, strength=1, blur=False).draw_crops(MANY, 32, 48, rng())
    torch.manual_seed(0)
    image = torch.empty(3, 32, 48, device="meta")
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)])
    quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    top, left, height, width = crops.boxes.unbind(1)
    their_top, their_left, their_height, their_width = theirs.unbind(1)
    for ours, expected, tolerance in (
        (height * width, their_height * their_width, 45.0),
        (width / height, their_width / their_height, 0.04),
        (top, their_top, 1.0),
        (left, their_left, 1.2),
    ):
        actual, wanted = (values.float().quantile(quantiles) for values in (ours, expected))
        torch.testing.assert_close(actual, wanted, rtol=0, atol=tolerance)
    assert (top.min(), left.min()) == (0, 0)
    assert (int((top + height).max()), int((left + width).max())) == (32, 48)
    assert crops.mirrored.float().mean() == pytest.approx(0.5, abs=0.015)


@pytest.mark.parametrize(("height", "width"), [(4, 100), (100, 4)])
def test_an_image_too_long_for_any_box_gives_its_middle(height: int, width: int) -> None:
    recipe = ViewRecipe(flip=False, strength=1, blur=False, min_area=0.9)
    crops = recipe.draw_crops(2, height, width, rng())
    image = torch.empty(3, height, width, device="meta")
    assert crops.boxes.tolist() == [list(RandomResizedCrop.get_params(image, [0.9, 1.0], [3 / 4, 4 / 3]))] * 2


def test_colours_are_drawn_as_in_the_paper() -> None:
    colours = ViewRecipe(flip=True, strength=0.5, blur=True).draw_colours(MANY, rng())
    jittered = colours.order[:, 0] >= 0
    assert jittered.float().mean() == pytest.approx(0.8, abs=0.015)
    assert (colours.order[~jittered] == -1).all()
    orders, counts = colours.order[jittered].unique(dim=0, return_counts=True)
    assert sorted(map(tuple, orders.tolist())) == sorted(permutations(range(4)))
    assert (counts / jittered.sum() * 24 - 1).abs().max() < 0.15
    for column, (low, high) in zip(colours.factors.T, [(0.6, 1.4)] * 3 + [(-0.1, 0.1)], strict=True):
        assert low <= column.min() < column.max() <= high
        span = high - low
        expected = torch.tensor([low + 0.1 * span, low + 0.5 * span, high - 0.1 * span])
        actual = column.quantile(torch.tensor([0.1, 0.5, 0.9]))
        torch.testing.assert_close(actual, expected, rtol=0, atol=0.02 * span)
    assert colours.grey.float().mean() == pytest.approx(0.2, abs=0.015)
    blurred = colours.sigma[colours.sigma > 0]
    assert len(blurred) / MANY == pytest.approx(0.5, abs=0.015)
    assert 0.1 <= blurred.min() < 0.12
    assert 1.98 < blurred.max() <= 2
    strongest = ViewRecipe(flip=True, strength=2.5, blur=False).draw_colours(MANY, rng())
    assert strongest.factors[:, :3].min() == 0
    assert strongest.factors[:, 3].abs().max() <= 0.5
    assert not strongest.sigma.any()


def test_what_a_config_leaves_out_is_as_it_suits_the_data_set() -> None:
    chosen = resolve_simclr(SimCLRParams(temperature=0.3, blur=False), "imagenet")
    assert (chosen.temperature, chosen.blur, chosen.jitter_strength) == (0.3, False, 1.0)
