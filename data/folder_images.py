"""Large images: decoded and cropped in uint8 by worker processes, normalised on the device."""

import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from data.augmentation import normalise
from data.folders import ImageList, read_image
from data.images import Batch, Unreadable, shuffled_batches
from utils.distributed import World
from utils.seeds import seed_of


class Decoded(NamedTuple):
    """A batch on its way from a worker: what could be decoded, and what could not."""

    pixels: torch.Tensor  # (B, 3, H, W) uint8
    indices: torch.Tensor  # (B,)
    unreadable: list[int]


class FolderImages:
    """An `ImageSet` that decodes images each time they are needed (ImageNet)."""

    AUGMENTATIONS = ("none", "flip", "resized_crop_flip")

    def __init__(
        self,
        listed: ImageList,
        *,
        image_size: int,
        augmentation: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        unreadable: Unreadable,
        num_workers: int,
        world: World,
        seed: int,
    ) -> None:
        self.listed, self.labels = listed, torch.tensor(listed.labels)
        self.augmentation, self.image_size = augmentation, image_size
        self.mean, self.std, self.unreadable = mean, std, unreadable
        self.world, self.seed = world, seed
        self.num_workers = min(num_workers, os.cpu_count() or 1)
        self.num_views = {"none": 1, "flip": 2}.get(augmentation)

    def __len__(self) -> int:
        return len(self.labels)

    def training_batches(self, epoch: int, batch_size: int) -> Iterator[Batch]:
        shares = shuffled_batches(len(self), batch_size, self.world, seed=self.seed, epoch=epoch)
        if self.augmentation == "resized_crop_flip":
            transform = v2.Compose(
                [v2.RandomResizedCrop(self.image_size, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
            )
        else:
            chance = 0.5 if self.augmentation == "flip" else 0.0
            transform = v2.Compose([self._evaluation_transform(), v2.RandomHorizontalFlip(chance)])
        yield from self._batches(shares, transform, epoch)

    def view_batches(self, view: int, batch_size: int) -> Iterator[Batch]:
        rows = torch.arange(len(self))[self.world.share(len(self))]
        mirrored = v2.RandomHorizontalFlip(1.0 if view else 0.0)
        yield from self._batches(list(rows.split(batch_size)), v2.Compose([self._evaluation_transform(), mirrored]), 0)

    def _evaluation_transform(self) -> v2.Transform:
        """The usual one: the shorter side to 8/7 of the crop (256 for 224), then the centre."""
        size = self.image_size
        return v2.Compose([v2.Resize(size * 8 // 7, antialias=True), v2.CenterCrop(size), v2.PILToTensor()])

    def _batches(self, batches: list[torch.Tensor], transform: v2.Transform, epoch: int) -> Iterator[Batch]:
        loader = DataLoader(
            _Images(self.listed, transform, self.seed, epoch),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=self.num_workers,
            collate_fn=_collate,
            pin_memory=self.world.device.type == "cuda",
        )
        for decoded in loader:
            for index in decoded.unreadable:
                self.unreadable.report(self.listed.paths[index], len(self))
            if not len(decoded.indices):
                continue
            pixels = decoded.pixels.to(self.world.device, non_blocking=True)
            images = normalise(pixels, self.mean, self.std).contiguous(memory_format=torch.channels_last)
            labels = self.labels[decoded.indices].to(self.world.device, non_blocking=True)
            yield Batch(images, labels, decoded.indices)


class _Images(Dataset[tuple[int, torch.Tensor | None]]):
    """What a worker does: decode and transform one image, with randomness of (seed, epoch, index) alone."""

    def __init__(self, listed: ImageList, transform: v2.Transform, seed: int, epoch: int) -> None:
        self.listed, self.transform, self.seed, self.epoch = listed, transform, seed, epoch

    def __len__(self) -> int:
        return len(self.listed)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor | None]:
        image = read_image(self.listed.paths[index])
        if image is None:
            return index, None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, self.epoch, 1, index))
            return index, self.transform(image)


def _collate(items: list[tuple[int, torch.Tensor | None]]) -> Decoded:
    readable = [(index, pixels) for index, pixels in items if pixels is not None]
    pixels = torch.stack([pixels for _, pixels in readable]) if readable else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    return Decoded(
        pixels,
        torch.tensor([index for index, _ in readable], dtype=torch.int64),
        [index for index, pixels in items if pixels is None],
    )
