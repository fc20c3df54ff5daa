"""Small images: the whole set as uint8 in the device's memory, gathered and augmented there."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL
import torch
from tqdm import tqdm

from data.augmentation import Augmentation, resize
from data.contrastive_views import Crops, ViewRecipe, recolour, resized_crops
from data.folders import ImageList
from data.images import Batch, Feed, Unreadable, ViewPairs, evenly_spaced, shuffled_batches
from data.normalisation import Normalisation
from utils.data_roots import digest
from utils.errors import UserError
from utils.files import atomic_path, remove_leftovers, sync
from utils.seeds import Stream, generator

DECODED = ".decoded"  # folder in a data root, which may be deleted at any time
WORTH_KEEPING = 5_000  # images: fewer are decoded in a second or so


class MemoryImages:
    """An `ImageSet` that decodes every image once, at the start. All images have the same size.

    Args:
        data_root: keep what was decoded here, for later runs on the same images; None: nowhere.
    """

    AUGMENTATIONS = ("none", "flip", "crop", "crop_flip")

    def __init__(self, listed: ImageList, feed: Feed, *, data_root: str | Path | None = None) -> None:
        self.listed, self.labels, self.feed = listed, torch.tensor(listed.labels), feed
        self.classes = listed.classes
        path = None if data_root is None or len(listed) < WORTH_KEEPING else kept_at(listed, data_root)
        pixels = None if path is None else read_kept(path, len(listed))
        readable = torch.arange(len(listed))
        if pixels is None:
            pixels, readable = decode(listed, feed.unreadable, progress=feed.world.is_main)
            if path is not None and feed.world.is_main and len(readable) == len(listed):
                keep(path, pixels)  # not where images are unreadable: each run is to name those
        self.readable = readable  # (m,) positions in the list
        self.pixels = pixels.to(feed.world.device)  # (m, H, W, 3) uint8
        self.device_labels = self.labels[readable].to(feed.world.device)
        # An eighth of the side is the usual padding: 4 pixels at 32.
        padding = pixels.shape[1] // 8 if "crop" in feed.augmentation else 0
        self.augmentation = Augmentation(padding, flips="flip" in feed.augmentation)
        self.num_views = self.augmentation.num_views
        self.normalise = Normalisation(feed.mean, feed.std)

    def __len__(self) -> int:
        return len(self.labels)

    def training_batches(self, epoch: int, batch_size: int, *, keep_last: bool = False) -> Iterator[Batch]:
        count, seed, world = len(self.pixels), self.feed.seed, self.feed.world
        views = self.augmentation.draw(count, generator(seed, Stream.AUGMENT, epoch))
        for rows in shuffled_batches(count, batch_size, world, seed=seed, epoch=epoch, keep_last=keep_last):
            yield self._batch(rows, views[rows])

    def view_pairs(self, recipe: ViewRecipe, epoch: int, batch_size: int) -> Iterator[ViewPairs]:
        count, height, width, _ = self.pixels.shape
        seed = self.feed.seed
        random = generator(seed, Stream.AUGMENT, epoch)
        # The first views of all images, then the second ones.
        crops = recipe.draw_crops(2 * count, height, width, random)
        colours = recipe.draw_colours(2 * count, random)
        for rows in shuffled_batches(count, batch_size, self.feed.world, seed=seed, epoch=epoch):
            on_device, views = rows.to(self.pixels.device), torch.cat([rows, rows + count])
            pixels = self.pixels[on_device].repeat(2, 1, 1, 1)
            images = resized_crops(pixels, Crops(*(column[views] for column in crops)), self.feed.image_size)
            images = recolour(images, colours.take(views))
            yield ViewPairs(self.normalise(images))

    def view_batches(self, view: int, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        rows = evenly_spaced(len(self.pixels), limit, self.feed.world)
        for part in rows.split(batch_size):
            yield self._batch(part, self.augmentation.view(view, len(part)))

    def _batch(self, rows: torch.Tensor, views: torch.Tensor) -> Batch:
        on_device = rows.to(self.pixels.device)
        images = self.augmentation.apply(self.pixels[on_device], views)
        images = resize(images, self.feed.image_size, self.feed.interpolation)
        return Batch(self.normalise(images), self.device_labels[on_device], self.readable[rows])


def kept_at(listed: ImageList, data_root: str | Path) -> Path:
    """Where the decoded images of a list are kept: known by the files' names, sizes and times, and by the decoder."""
    return Path(data_root, DECODED, f"{digest([('Pillow', PIL.__version__), *listed.files(data_root)])}.npy")


def read_kept(path: Path, count: int) -> torch.Tensor | None:
    """The pixels (count, H, W, 3) uint8 that an earlier run has kept; None where there are none."""
    with suppress(OSError, ValueError, EOFError):
        pixels = np.load(path, allow_pickle=False)
        if pixels.dtype == np.uint8 and pixels.ndim == 4 and len(pixels) == count:
            return torch.from_numpy(pixels)
    return None


def keep(path: Path, pixels: torch.Tensor) -> None:
    """Write pixels for later runs; where the folder is read-only or the disk is full, they decode as this one did."""
    with suppress(OSError, UserError):
        remove_leftovers(path)
        with atomic_path(path) as temporary:
            with temporary.open("wb") as file:
                np.save(file, pixels.numpy())
            sync(temporary)


def decode(listed: ImageList, unreadable: Unreadable, *, progress: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode all images of a list -> pixels (m, H, W, 3) uint8, positions in the list (m,) of the m readable ones.

    On one thread: small images take Python longer than their decoder, and threads would wait for each other.

    Raises:
        UserError: the images differ in size, or too many are unreadable.
    """
    images: list[np.ndarray] = []
    readable: list[int] = []
    for position in tqdm(
        range(len(listed)), "reading images", unit="img", leave=False, disable=None if progress else True
    ):
        path, pixels = listed.paths[position], listed.pixels(position)
        if pixels is None:
            unreadable.report(path, len(listed))
            continue
        if images and pixels.shape != images[0].shape:
            raise UserError(f"{path}: is {pixels.shape[:2]} pixels, others {images[0].shape[:2]}; use name: imagenet")
        images.append(pixels)
        readable.append(position)
    if not images:
        raise UserError(f"{listed.paths[0].parent}: no image of the data set is readable")
    return torch.from_numpy(np.stack(images)), torch.tensor(readable)
