"""Large images: decoded and cropped in uint8 by worker processes, normalised on the device.

JPEGs are decoded in full. PIL's draft mode could leave out every other pixel where at least half of each side goes in
the resizing, but the published recipe's crops of ImageNet's 500 x 375 pixels to 224 never shrink that far.
"""

import os
import pickle
import signal
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as TF

from data.augmentation import resize
from data.contrastive_views import ViewRecipe, recolour
from data.folders import ImageList
from data.images import Batch, Feed, ViewPairs, evenly_spaced, shuffled_batches
from data.normalisation import Normalisation
from utils.errors import dead_worker
from utils.seeds import Stream, generator, seed_of

MIN_AREA, ASPECT = 0.08, [3 / 4, 4 / 3]  # of the random crop: share of the image, width over height (Inception's)


class Job(NamedTuple):
    """A batch for a worker to decode."""

    indices: list[int]
    resized_crop: bool  # a random crop, resized; else the centre of the resized image
    flip: float  # chance of mirroring
    epoch: int
    min_area: float = MIN_AREA  # of a random crop
    views: int = 1  # of each image
    stand_ins: bool = False  # where none of its images can be decoded, take the next ones of the list that can


class Decoded(NamedTuple):
    """A batch on its way from a worker: what could be decoded, and what could not."""

    pixels: torch.Tensor  # (views * B, 3, H, W) uint8, channels last in memory; the first view of all comes first
    indices: torch.Tensor  # (B,) int64
    unreadable: list[int]


class FolderImages:
    """An `ImageSet` that decodes images each time they are needed (ImageNet, images of one's own).

    Its batches come from one iteration at a time, on workers that live as long as the set.
    """

    AUGMENTATIONS = ("none", "flip", "resized_crop_flip")

    def __init__(self, listed: ImageList, feed: Feed, *, num_workers: int) -> None:
        self.listed, self.labels, self.classes = listed, torch.tensor(listed.labels), listed.classes
        self.feed = feed
        self.num_workers = min(num_workers, os.cpu_count() or 1)
        self.num_views = {"none": 1, "flip": 2}.get(feed.augmentation)
        self.normalise = Normalisation(feed.mean, feed.std)
        self._plan: list[Job] = []  # what the workers do next; set anew for each iteration, so that they outlive it
        self._latest = self._plan  # whose iteration it is
        self._loader = DataLoader(
            Decoder(
                listed,
                feed.image_size,
                feed.seed,
                max_unreadable=feed.unreadable.max_share,
                interpolation=feed.interpolation,
                whole_image=feed.whole_image,
            ),
            sampler=self._plan,
            batch_size=None,  # a job is a batch
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_ignore_termination,
            pin_memory=feed.world.device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self.labels)

    def training_batches(self, epoch: int, batch_size: int, *, keep_last: bool = False) -> Iterator[Batch]:
        seed, world = self.feed.seed, self.feed.world
        shares = shuffled_batches(len(self), batch_size, world, seed=seed, epoch=epoch, keep_last=keep_last)
        resized_crop = self.feed.augmentation == "resized_crop_flip"
        flip = 0.5 if "flip" in self.feed.augmentation else 0.0
        yield from self._batches([Job(rows.tolist(), resized_crop, flip, epoch, stand_ins=True) for rows in shares])

    def view_pairs(self, recipe: ViewRecipe, epoch: int, batch_size: int) -> Iterator[ViewPairs]:
        shares = shuffled_batches(len(self), batch_size, self.feed.world, seed=self.feed.seed, epoch=epoch)
        flip = 0.5 if recipe.flip else 0.0
        jobs = [Job(rows.tolist(), True, flip, epoch, recipe.min_area, views=2, stand_ins=True) for rows in shares]
        colours = recipe.draw_colours(2 * len(self), generator(self.feed.seed, Stream.COLOURS, epoch))
        for pixels, indices in self._decoded(jobs):
            views = torch.cat([indices, indices + len(self)])
            images = recolour(pixels.float().contiguous(), colours.take(views))
            yield ViewPairs(self.normalise(images))

    def view_batches(self, view: int, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        rows = evenly_spaced(len(self), limit, self.feed.world)
        yield from self._batches([Job(part.tolist(), False, float(view), 0) for part in rows.split(batch_size)])

    def _batches(self, jobs: list[Job]) -> Iterator[Batch]:
        for pixels, indices in self._decoded(jobs):
            labels = self.labels[indices].to(self.feed.world.device, non_blocking=True)
            yield Batch(self.normalise(pixels), labels, indices)

    def _decoded(self, jobs: list[Job]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The pixels of each job on the device, and the positions of its images."""
        self._plan[:] = self._latest = jobs
        for decoded in self._from_workers():
            for index in decoded.unreadable:
                self.feed.unreadable.report(self.listed.paths[index], len(self))
            if not len(decoded.indices):
                continue
            yield decoded.pixels.to(self.feed.world.device, non_blocking=True), decoded.indices
            if self._latest is not jobs:
                raise RuntimeError("a later iteration over the same images has taken over the workers")

    def _from_workers(self) -> Iterator[Decoded]:
        """All batches of the loader.

        Raises:
            UserError: a worker process died, with what it was handing over cut short. See `utils.errors` for what
                PyTorch raises of a death at any other moment.
        """
        try:
            yield from self._loader
        except (MemoryError, OSError, EOFError, pickle.UnpicklingError) as error:
            time.sleep(1)  # as soon as the system says that it is gone, PyTorch's error names the process
            raise dead_worker(error) from None


class Decoder(Dataset[Decoded]):
    """What a worker does: decode and transform a batch, each image with randomness of (seed, epoch, index) alone."""

    def __init__(
        self,
        listed: ImageList,
        size: int,
        seed: int,
        *,
        max_unreadable: float = 0.0,
        interpolation: str = "bilinear",
        whole_image: bool = False,
    ) -> None:
        self.listed, self.size, self.seed, self.max_unreadable = listed, size, seed, max_unreadable
        self.interpolation, self.whole_image = interpolation, whole_image

    def __getitem__(self, job: Job) -> Decoded:
        indices: list[int] = []
        unreadable: list[int] = []
        views: list[list[torch.Tensor]] = [[] for _ in range(job.views)]
        with torch.random.fork_rng(devices=[]):
            for index, pixels in self._readable(job, unreadable):
                # The CPU's generator alone: torch.manual_seed takes a hundred times as long to look for others.
                torch.default_generator.manual_seed(seed_of(self.seed, Stream.AUGMENT, job.epoch, index))
                for of_all in views:
                    of_all.append(self._view(pixels, job))
                indices.append(index)
        rows = torch.empty(0, self.size, self.size, 3, dtype=torch.uint8)
        if indices:
            rows = torch.cat([view for of_all in views for view in of_all])
        return Decoded(rows.permute(0, 3, 1, 2), torch.tensor(indices, dtype=torch.int64), unreadable)

    def _readable(self, job: Job, unreadable: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(index, pixels) of a job's images, or of their stand-ins; what cannot be decoded is added to `unreadable`."""
        yield from self._decoded(job.indices, unreadable)
        if job.stand_ins and len(unreadable) == len(job.indices):
            following = self._following(job.indices, unreadable)
            yield from islice(self._decoded(following, unreadable), len(job.indices))

    def _decoded(self, indices: Iterable[int], unreadable: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        for index in indices:
            pixels = self.listed.pixels(index)
            if pixels is None:
                unreadable.append(index)
            else:
                yield index, pixels

    def _following(self, indices: list[int], unreadable: list[int]) -> Iterator[int]:
        """The other images of the list, from the last of `indices` on, until more are unreadable than a run allows."""
        count = len(self.listed)
        for step in range(1, count):
            if len(unreadable) > self.max_unreadable * count:
                return
            if (index := (indices[-1] + step) % count) not in indices:
                yield index

    def _view(self, pixels: np.ndarray, job: Job) -> torch.Tensor:
        """A view (1, size, size, 3) of an image (H, W, 3); both uint8."""
        if job.resized_crop:
            shape = torch.empty(3, *pixels.shape[:2], device="meta")
            top, left, height, width = RandomResizedCrop.get_params(shape, [job.min_area, 1.0], ASPECT)
            pixels = pixels[top : top + height, left : left + width]
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).unsqueeze(0)
        if job.resized_crop or self.whole_image:
            image = resize(image, self.size, self.interpolation)
        else:  # the usual one: the shorter side to 8/7 of the crop (256 for 224), then the centre
            mode = TF.InterpolationMode(self.interpolation)
            image = TF.resize(image, [self.size * 8 // 7], mode, antialias=True)
            image = TF.center_crop(image, [self.size, self.size])
        image = image.permute(0, 2, 3, 1)
        return image.flip(2) if torch.rand(()) < job.flip else image


def _ignore_termination(worker: int) -> None:
    """A scheduler's SIGTERM reaches every process of a job: how to end is for the main one, and the workers follow."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
