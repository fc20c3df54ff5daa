"""JPEGs of 500 x 375: decoded by workers, and by the GPU, alone and feeding a real step of ResNet50 at 224 px."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torchvision.io import decode_jpeg

from benchmarks.bench_feeding import IMAGENET_MEAN, IMAGENET_STD, feed, render
from benchmarks.harness import DEVICE, Figure, figure, now
from benchmarks.on_gpu.backbones import BATCH, SIZE, TINY_BATCH, TINY_SIZE, Timed, rate_of
from data.augmentation import resize
from data.folder_images import FolderImages
from data.folders import list_images
from data.images import Batch
from data.normalisation import Normalisation

DISTINCT, COPIES = 128, 32  # images that are rendered, and links to each
EPOCHS = 3


def folder_of_jpegs(root: Path, distinct: int, copies: int) -> None:
    """Render JPEGs, and link each under more names: drawing takes longer than all that is measured."""
    render(root, distinct, (500, 375), ".jpg")
    for path in sorted(root.rglob("*.jpg")):
        for copy in range(1, copies):
            os.link(path, path.with_stem(f"{path.stem}_{copy}"))


def by_device(files: list[torch.Tensor], size: int, batch: int) -> Iterator[Batch]:
    """Batches that the device decodes and resizes, from files in memory."""
    normalise = Normalisation(IMAGENET_MEAN, IMAGENET_STD)
    for start in range(0, len(files) - batch + 1, batch):
        images = resize(torch.stack(decode_jpeg(files[start : start + batch], device=DEVICE)), size)
        labels = torch.zeros(batch, dtype=torch.int64, device=DEVICE)
        yield Batch(normalise(images.contiguous(memory_format=torch.channels_last)), labels, torch.arange(batch))


def decoding(tiny: bool) -> Iterator[Figure]:
    """Both ways on the same files: workers cut crops at random out of what they decode, the GPU takes whole images."""
    batch, size = (TINY_BATCH, TINY_SIZE) if tiny else (BATCH, SIZE)
    count = 2 * TINY_BATCH if tiny else DISTINCT * COPIES
    workers = 0 if tiny else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        folder_of_jpegs(Path(folder), count if tiny else DISTINCT, 1 if tiny else COPIES)
        listed = list_images(Path(folder), "training")
        images = FolderImages(listed, feed(size, "resized_crop_flip"), num_workers=workers)
        files = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in listed.paths]
        ways = {
            f"{workers} workers": lambda epoch: images.training_batches(epoch, batch),
            "decode_jpeg on the device": lambda epoch: by_device(files, size, batch),
        }
        for name, batches in ways.items():
            rates = []
            for epoch in range(2 if tiny else EPOCHS):
                started = now()
                for _ in batches(epoch):
                    pass
                rates.append(count / (now() - started))
            yield figure(f"JPEG, {name}", rates[1:], "images/s")
        for name, batches in ways.items():
            fed = Timed(batches, count // batch, batch)
            yield figure(f"  {name}, feeding the trainer", rate_of(fed, tiny), "images/s")


STEPS = (decoding,)
