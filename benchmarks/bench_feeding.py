"""How fast images reach the model: sets in memory, and folders of JPEGs, against torchvision's and PIL's usual ways.

    python benchmarks/bench_feeding.py [--json FILE] [--workers N] [--cifar DATA_ROOT] [--quick]

Three claims, each measured in one run whose contenders take turns; figures are medians of ratios over the turns.

- A training step fed from memory against the same step on one synthetic batch that is ready in memory (32 px).
- Small images alone, at 32 px (crop, flip) and resized to 224 (flip), against torchvision's ImageFolder with PIL
  transforms in a DataLoader of as many workers as there are cores, which are started before the clock.
- Folders of 500 x 375 JPEGs, in random resized crops of 224 px: N worker processes against N times the rate of the
  same decoding and cropping in a plain loop on one core, and against ImageFolder with PIL transforms.

The training step and resizing use every core; other feeding takes one thread in this process.

The images are rendered for the benchmark and deleted; --cifar names a prepared CIFAR-100 to take in their place.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figure, figure, print_figure, print_machine
from data.datasets import IMAGENET_MEAN, IMAGENET_STD
from data.folder_images import Decoder, FolderImages, Job
from data.folders import list_images
from data.images import Batch, Feed, ImageSet, Unreadable
from data.memory_images import MemoryImages
from models.resnet import build_backbone
from utils.distributed import World
from utils.files import write_json
from utils.precision import autocast, resolve_precision

SMALL, LARGE = 32, 224  # pixels a side
BATCH, LARGE_BATCH = 128, 32
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
THREADS = torch.get_num_threads()
Contender = Callable[[], int]  # does some work -> how many images it took


@dataclass(frozen=True)
class Comparison:
    """Two ways to feed the same images: the figure is our rate over `times` the other's."""

    name: str
    bar: float | None
    ours: Contender
    other: Contender
    times: int = 1
    threads: int = 1  # of PyTorch in this process

    def measure(self, turns: int) -> Figure:
        """Let the two take turns, print a line, and return the figure."""
        torch.set_num_threads(self.threads)
        contenders = (self.ours, self.other)
        for contender in contenders:
            contender()  # warm-up: starts the workers too
        rates: list[list[float]] = [[], []]
        for _ in range(turns):
            for contender, rate in zip(contenders, rates, strict=True):
                started = time.perf_counter()
                rate.append(contender() / (time.perf_counter() - started))
        ratio = statistics.median(ours / (self.times * theirs) for ours, theirs in zip(*rates, strict=True))
        medians = " against ".join(f"{statistics.median(rate):,.0f}" for rate in rates)
        row = figure(self.name, ratio, "x", at_least=self.bar)
        print_figure(row, remark=f"{medians} images/s")
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="decoding processes; default: every core")
    parser.add_argument("--cifar", type=Path, metavar="DATA_ROOT", help="a prepared CIFAR-100")
    parser.add_argument("--quick", action="store_true", help="few images and turns: a trial; its figures mean nothing")
    arguments = parser.parse_args()
    workers, quick = arguments.workers, arguments.quick
    print_machine()
    print(f"{workers} decoding processes, training on {DEVICE}")
    with tempfile.TemporaryDirectory() as folder:
        small, large = arguments.cifar or Path(folder, "small"), Path(folder, "large")
        if arguments.cifar is None:
            render(small, count=128 if quick else 5_120, size=(SMALL, SMALL), suffix=".png")
        render(large, count=32 if quick else 384, size=(500, 375), suffix=".jpg")
        comparisons = [
            compare_steps(small, steps=1 if quick else 4),
            compare_small(small, SMALL, workers, limit=128 if quick else 5_120),
            compare_small(small, LARGE, workers, limit=128 if quick else 1_280),
            compare_with_one_core(large, workers),
            compare_large(large, workers),
        ]
        figures = [comparison.measure(turns=1 if quick else 7) for comparison in comparisons]
    if arguments.json:
        write_json(arguments.json, figures)


def compare_steps(root: Path, steps: int) -> Comparison:
    """Training steps of the 32 px recipe's ResNet18, on batches from memory and on one that stays the same."""
    model = build_backbone("ResNet18", num_classes=100, stem="cifar", width=0.25)
    model.to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    precision = resolve_precision("auto", DEVICE)
    fed = endless(MemoryImages(list_images(root, "training"), feed(SMALL, "crop_flip")))
    images = torch.randn(BATCH, 3, SMALL, SMALL, device=DEVICE).contiguous(memory_format=torch.channels_last)
    synthetic = repeat(Batch(images, torch.randint(100, (BATCH,), device=DEVICE), torch.arange(BATCH)))

    def train(batches: Iterator[Batch]) -> int:
        for batch in islice(batches, steps):
            with autocast(precision, DEVICE):
                logits, _ = model(batch.images)
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), batch.labels).backward()
            optimizer.step()
        synchronise()
        return steps * BATCH

    name = f"training step: fed from memory / synthetic batch, {SMALL} px"
    return Comparison(name, 0.97, partial(train, fed), partial(train, synthetic), threads=THREADS)


def compare_small(root: Path, size: int, workers: int, limit: int) -> Comparison:
    """Batches of small images: from memory, and from ImageFolder with PIL transforms on `limit` images."""
    resizes = size != SMALL
    ours = endless(MemoryImages(list_images(root, "training"), feed(size, "flip" if resizes else "crop_flip")))
    first = transforms.Resize(size) if resizes else transforms.RandomCrop(SMALL, padding=SMALL // 8)
    transform = [first, transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    other = plain_loader(root, transform, workers, BATCH, limit)
    name = f"images in memory / ImageFolder + PIL, {SMALL} to {size} px"
    threads = THREADS if resizes else 1
    return Comparison(name, 10, partial(take, ours, limit // BATCH), partial(take_all, other), threads=threads)


def compare_with_one_core(root: Path, workers: int) -> Comparison:
    """Batches of JPEGs from all workers, and the same work in a plain loop on one core."""
    listed = list_images(root, "training")
    decoder, random_crops = Decoder(listed, LARGE, seed=0), feed(LARGE, "resized_crop_flip")

    def decode_on_one_core() -> int:
        for start in range(0, len(listed), LARGE_BATCH):
            indices = list(range(start, min(start + LARGE_BATCH, len(listed))))
            decoder[Job(indices, resized_crop=True, flip=0.5, epoch=0)]
        return len(listed)

    ours = FolderImages(listed, random_crops, num_workers=workers)
    name = f"JPEG folder, {workers} processes / {workers} x decode and crop on one core"
    return Comparison(name, 0.85, partial(take_epoch, ours), decode_on_one_core, times=workers)


def compare_large(root: Path, workers: int) -> Comparison:
    """Batches of JPEGs from our workers, and from as many of ImageFolder with PIL transforms."""
    ours = FolderImages(list_images(root, "training"), feed(LARGE, "resized_crop_flip"), num_workers=workers)
    transform = [transforms.RandomResizedCrop(LARGE), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    other = plain_loader(root, transform, workers, LARGE_BATCH, limit=len(ours))
    name = "JPEG folder / ImageFolder + PIL"
    return Comparison(name, None, partial(take_epoch, ours), partial(take_all, other))


def feed(size: int, augmentation: str) -> Feed:
    return Feed(size, augmentation, IMAGENET_MEAN, IMAGENET_STD, Unreadable(0.0), World(device=DEVICE), seed=0)


def plain_loader(root: Path, transform: list[Any], workers: int, batch: int, limit: int) -> DataLoader[Any]:
    """What a plain script trains from: ImageFolder, PIL transforms, normalisation on the workers."""
    normalised = transforms.Compose([*transform, transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    folder = ImageFolder(str(root / "training"), normalised)
    chosen = Subset(folder, torch.randperm(len(folder))[:limit].tolist())
    return DataLoader(
        chosen, batch, shuffle=True, num_workers=workers, persistent_workers=True, pin_memory=DEVICE.type == "cuda"
    )


def endless(images: ImageSet) -> Iterator[Batch]:
    """Epoch after epoch."""
    return chain.from_iterable(images.training_batches(epoch, BATCH) for epoch in count())


def take(batches: Iterator[Batch], number: int) -> int:
    taken = sum(len(batch.labels) for batch in islice(batches, number))
    synchronise()
    return taken


def take_epoch(images: FolderImages) -> int:
    return take(images.training_batches(0, LARGE_BATCH), len(images))


def take_all(loader: DataLoader[Any]) -> int:
    taken = 0
    for images, labels in loader:
        images.to(DEVICE, non_blocking=True)
        taken += len(labels)
    synchronise()
    return taken


def synchronise() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def render(root: Path, count: int, size: tuple[int, int], suffix: str) -> None:
    """Write `count` pictures of smooth colours under noise, which compress about as photographs do, in 8 classes."""
    rng = np.random.default_rng(0)
    width, height = size
    for index in range(count):
        colours = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(colours.resize(size, Image.Resampling.BICUBIC))
        pixels = (smooth + rng.normal(0, 12, (height, width, 1))).clip(0, 255).astype(np.uint8)
        path = root / "training" / str(index % 8) / f"{index:05d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=92)


if __name__ == "__main__":
    main()
