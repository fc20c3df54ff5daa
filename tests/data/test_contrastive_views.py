"""Views for contrastive learning against torchvision's own operations, image by image, and what is drawn."""

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as TF

from data.config import SimCLRParams
from data.contrastive_views import Colours, Crops, ViewRecipe, kernel_size, recolour, resized_crops
from data.datasets import IMAGENET_MEAN, IMAGENET_STD, resolve_simclr
from data.folder_images import FolderImages
from data.folders import list_images
from data.images import Feed, Unreadable
from data.memory_images import MemoryImages
from tests.tiny import write_images
from utils.distributed import World

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


@pytest.mark.parametrize("side", [16, 41])
def test_colours_are_torchvisions_in_the_drawn_order(side: int) -> None:
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
            expected = TF.gaussian_blur(expected, [kernel_size(side)] * 2, [float(sigma)])
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
    for name, tolerance in (("area", 45.0), ("aspect", 0.04), ("top", 1.0), ("left", 1.2)):
        ours, expected = (_statistic(name, boxes.float()).quantile(quantiles) for boxes in (crops.boxes, theirs))
        torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance, msg=f"{name}: {ours} {expected}")
    top, left, height, width = crops.boxes.unbind(1)
    assert (top.min(), left.min()) == (0, 0)
    assert (int((top + height).max()), int((left + width).max())) == (32, 48)
    assert crops.mirrored.float().mean() == pytest.approx(0.5, abs=0.015)


def _statistic(name: str, boxes: torch.Tensor) -> torch.Tensor:
    top, left, height, width = boxes.unbind(1)
    return {"area": height * width, "aspect": width / height, "top": top, "left": left}[name]


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


def test_what_a_data_set_means_for_the_views() -> None:
    small, large = (resolve_simclr(SimCLRParams(), name) for name in ("cifar100", "imagenet"))
    assert (small.temperature, small.jitter_strength, small.blur, small.flip) == (0.5, 0.5, False, True)
    assert (large.temperature, large.jitter_strength, large.blur, large.flip) == (0.1, 1.0, True, True)
    assert not resolve_simclr(SimCLRParams(), "glyphs").flip
    chosen = resolve_simclr(SimCLRParams(temperature=0.3, flip=True, blur=False), "glyphs")
    assert (chosen.temperature, chosen.flip, chosen.blur) == (0.3, True, False)


# Pairs of views from the image sets


RECIPE = ViewRecipe(flip=True, strength=1, blur=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), classes=3, training=4, validation=1, size=32)


def pairs(kind: Any, root: Path, *, epoch: int = 0, seed: int = 0, world: World | None = None) -> list[torch.Tensor]:
    feed = Feed(32, "none", IMAGENET_MEAN, IMAGENET_STD, Unreadable(0.5), world or World(), seed)
    workers = {"num_workers": 0} if kind is FolderImages else {}
    images = kind(list_images(root, "training"), feed, **workers)
    return [batch.images for batch in images.view_pairs(RECIPE, epoch, 4)]


@pytest.mark.parametrize("kind", [MemoryImages, FolderImages])
def test_pairs_are_a_function_of_seed_and_epoch_on_any_number_of_processes(kind: Any, root: Path) -> None:
    batches = pairs(kind, root)
    assert [batch.shape for batch in batches] == [(8, 3, 32, 32)] * 3
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in batches)
    assert all(map(torch.equal, batches, pairs(kind, root)))
    assert not torch.equal(batches[0], pairs(kind, root, epoch=1)[0])
    assert not torch.equal(batches[0], pairs(kind, root, seed=1)[0])
    shares = [pairs(kind, root, world=World(rank, 2)) for rank in range(2)]
    for whole, *parts in zip(batches, *shares, strict=True):
        firsts, seconds = zip(*(part.chunk(2) for part in parts), strict=True)
        torch.testing.assert_close(torch.cat([*firsts, *seconds]), whole, rtol=0, atol=1e-5)
    first, second = batches[0].chunk(2)
    assert not any(map(torch.equal, first, second))


@pytest.mark.parametrize("kind", [MemoryImages, FolderImages])
def test_a_pair_is_of_one_image(kind: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything random switched off, both views are the image, and an epoch is every image once."""
    whole = torch.tensor([0, 0, 32, 32])
    monkeypatch.setattr(ViewRecipe, "draw_crops", lambda self, n, *_: Crops(whole.expand(n, 4), torch.zeros(n) > 0))
    monkeypatch.setattr(ViewRecipe, "draw_colours", lambda self, n, _: _plain(n))
    monkeypatch.setattr(RandomResizedCrop, "get_params", lambda *_: whole.tolist())
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.9))
    batches = pairs(kind, root)
    for batch in batches:
        first, second = batch.chunk(2)
        torch.testing.assert_close(first, second)
    firsts = torch.cat([batch.chunk(2)[0] for batch in batches]).flatten(1)
    listed = list_images(root, "training")
    expected = torch.stack([torch.tensor(listed.pixels(i)) for i in range(len(listed))]).permute(0, 3, 1, 2).flatten(1)
    mean, std = (torch.tensor(values).view(1, 3, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    levels = ((firsts.view(12, 3, -1) * std + mean) * 255).flatten(1)
    distances = torch.cdist(levels, expected.float())
    assert sorted(distances.argmin(1).tolist()) == list(range(12))
    assert distances.min(1).values.max() < 1


def _plain(count: int) -> Colours:
    none = torch.full((count, 4), -1, dtype=torch.int8)
    return Colours(none, torch.ones(count, 4), torch.zeros(count) > 0, torch.zeros(count))


def test_an_unreadable_image_takes_both_its_views_along(root: Path, tmp_path: Path) -> None:
    write_images(tmp_path, classes=1, training=4, validation=1)
    (tmp_path / "training" / "0" / "001.png").write_bytes(b"no image")
    (batch,) = pairs(FolderImages, tmp_path)
    assert len(batch) == 6


def test_the_blur_looks_at_a_tenth_of_the_side() -> None:
    assert [kernel_size(side) for side in (16, 32, 41, 224)] == [3, 3, 5, 23]
