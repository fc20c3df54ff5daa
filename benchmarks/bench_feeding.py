"""How fast images reach the model: sets in memory, and folders of JPEGs, against torchvision's ImageFolder and PIL.

    python benchmarks/bench_feeding.py [--workers N] [--json FILE] [--tiny]

Claims: small images in memory, at 32 px (crop, flip) and resized to 224 (flip), come ten times as fast; 500 x 375 JPEGs
from a folder, in random resized crops of 224 px, faster by as many workers. Measured: normalised batches on the device.
Compared with: PIL transforms in a DataLoader of as many workers as there are cores, which are started before the clock.

Resizing uses every core; other feeding takes one thread in this process. The images are rendered for the benchmark.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import DEVICE, Figure, figure, options, ratios, run, take_turns
from data.datasets import IMAGENET_MEAN, IMAGENET_STD
from data.folder_images import FolderImages
from data.folders import list_images
from data.images import Feed, Unreadable
from data.memory_images import MemoryImages
from utils.distributed import World

SMALL, LARGE = 32, 224  # pixels a side
BATCH, LARGE_BATCH = 128, 32
THREADS = torch.get_num_threads()


def compare(
    name: str, ours: Callable[[], None], other: DataLoader[Any], turns: int, images: int, bar: float | None = None
) -> Iterator[Figure]:
    """Our speed over the loader's, where both take `images` images in a turn."""
    spent = take_turns({"ours": ours, "other": partial(take, other)}, turns)
    yield figure(f"{name}: ours / ImageFolder + PIL", ratios(spent["other"], spent["ours"]), "x", at_least=bar)
    for way, each in spent.items():
        yield figure(f"  {name}: {way}", [images / turn for turn in each], "images/s")


def compare_small(root: Path, size: int, workers: int, limit: int, turns: int) -> Iterator[Figure]:
    """Batches of `limit` small images from memory."""
    resizes = size != SMALL
    torch.set_num_threads(THREADS if resizes else 1)
    images = MemoryImages(list_images(root, "training"), feed(size, "flip" if resizes else "crop_flip"))
    endless = chain.from_iterable(images.training_batches(epoch, BATCH) for epoch in count())
    first = transforms.Resize(size) if resizes else transforms.RandomCrop(SMALL, padding=SMALL // 8)
    other = plain_loader(root, first, workers, BATCH, limit)
    ours = partial(take, endless, limit // BATCH)
    return compare(f"images in memory, {SMALL} to {size} px", ours, other, turns, limit, bar=10)


def compare_large(root: Path, workers: int, turns: int) -> Iterator[Figure]:
    """Batches of JPEGs from our workers."""
    torch.set_num_threads(1)
    images = FolderImages(list_images(root, "training"), feed(LARGE, "resized_crop_flip"), num_workers=workers)
    other = plain_loader(root, transforms.RandomResizedCrop(LARGE), workers, LARGE_BATCH, len(images))

    def ours() -> None:
        take(images.training_batches(0, LARGE_BATCH))

    return compare(f"JPEG folder, {workers} processes", ours, other, turns, len(images))


def feed(size: int, augmentation: str) -> Feed:
    return Feed(size, augmentation, IMAGENET_MEAN, IMAGENET_STD, Unreadable(0.0), World(device=DEVICE), seed=0)


def plain_loader(root: Path, transform: Any, workers: int, batch: int, limit: int) -> DataLoader[Any]:
    """What a plain script trains from: ImageFolder, PIL transforms, flips and normalisation on the workers."""
    last = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    folder = ImageFolder(str(root / "training"), transforms.Compose([transform, *last]))
    chosen = Subset(folder, torch.randperm(len(folder))[:limit].tolist())
    return DataLoader(
        chosen, batch, shuffle=True, num_workers=workers, persistent_workers=True, pin_memory=DEVICE.type == "cuda"
    )


def take(batches: Iterable[Any], number: int | None = None) -> None:
    """Bring `number` batches, or all, onto the device."""
    for images, *_ in islice(batches, number):
        images.to(DEVICE, non_blocking=True)


def render(root: Path, number: int, size: tuple[int, int], suffix: str) -> None:
    """Write `number` pictures of smooth colours under noise, which compress about as photographs do, in 8 classes."""
    rng = np.random.default_rng(0)
    width, height = size
    for index in range(number):
        colours = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(colours.resize(size, Image.Resampling.BICUBIC))
        pixels = (smooth + rng.normal(0, 12, (height, width, 1))).clip(0, 255).astype(np.uint8)
        path = root / "training" / str(index % 8) / f"{index:05d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=92)


def measure(arguments: argparse.Namespace) -> Iterator[Figure]:
    workers, tiny, turns = arguments.workers, arguments.tiny, arguments.turns
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder, "small"), Path(folder, "large")
        render(small, 128 if tiny else 5_120, (SMALL, SMALL), ".png")
        render(large, 32 if tiny else 384, (500, 375), ".jpg")
        yield from compare_small(small, SMALL, workers, 128 if tiny else 5_120, turns)
        yield from compare_small(small, LARGE, workers, 128 if tiny else 1_280, turns)
        yield from compare_large(large, workers, turns)


if __name__ == "__main__":
    parser = options(__doc__, turns=7)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="decoding processes (default: every core)")
    run(parser, measure)
