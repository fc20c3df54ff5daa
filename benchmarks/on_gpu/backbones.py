"""ResNet50-128 at 224 px, the published recipe: the project's trainer against a plain loop, and images fed to it."""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch.nn import functional as F

from benchmarks.bench_feeding import SMALL, feed, render
from benchmarks.bench_training import train_on_images
from benchmarks.harness import DEVICE, Figure, figure, now
from data.folders import list_images
from data.images import Batch
from data.memory_images import MemoryImages
from models import build_backbone
from models.config import BackboneArch
from trainers.config import Compile
from utils.config import to_dict

BATCH, SIZE, PLAIN_BATCH, MICRO_BATCH = 1024, 224, 256, 128
STEPS_AN_EPOCH, EPOCHS = 4, 4  # the first epoch warms up
TINY_BATCH, TINY_SIZE = 8, 32


def network(tiny: bool) -> BackboneArch:
    """ResNet50-128; for a trial a narrow ResNet18."""
    return BackboneArch("ResNet18" if tiny else "ResNet50", num_classes=100, width=0.0625 if tiny else 1.0)


def one_batch(count: int, size: int) -> Batch:
    """Made-up images on the device, channels last."""
    images = torch.randn(count, 3, size, size, device=DEVICE).contiguous(memory_format=torch.channels_last)
    return Batch(images, torch.randint(100, (count,), device=DEVICE), torch.arange(count))


class Timed:
    """An image set for the trainer that notes what each epoch takes; `batches` gives those of an epoch."""

    def __init__(self, batches: Callable[[int], Iterator[Batch]], steps: int, count: int) -> None:
        self.batches, self.steps, self.count = batches, steps, count
        self.labels = torch.zeros(1, dtype=torch.int64)
        self.rates: list[float] = []  # images a second, of each epoch

    def __len__(self) -> int:
        return self.steps * self.count

    def training_batches(self, epoch: int, batch_size: int, *, keep_last: bool = False) -> Iterator[Batch]:
        """The batches; the trainer asks for the next one when it is done with a step."""
        started = now()
        yield from self.batches(epoch)
        self.rates.append(len(self) / (now() - started))


def rate_of(
    images: Timed, tiny: bool, *, compiles: Compile = "off", micro_batch: int | Literal["auto"] = "auto"
) -> list[float]:
    """Images a second of the project's trainer in each epoch but the first."""
    epochs = 2 if tiny else EPOCHS
    batch = TINY_BATCH if tiny else BATCH
    train_on_images(images, network(tiny), batch, epochs, "auto", compiles=compiles, micro_batch=micro_batch)
    return images.rates[1:]


def repeated(batch: Batch, steps: int) -> Timed:
    """One batch, again and again."""
    return Timed(lambda epoch: iter([batch] * steps), steps, len(batch.labels))


def plain_rate(tiny: bool) -> list[float]:
    """Images a second of a plain loop: float32, channels first, `.item()` after every step, PyTorch's defaults."""
    count, size = (TINY_BATCH, TINY_SIZE) if tiny else (PLAIN_BATCH, SIZE)
    model = build_backbone(**to_dict(network(tiny))).to(DEVICE).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    images, labels = torch.randn(count, 3, size, size, device=DEVICE), torch.randint(100, (count,), device=DEVICE)
    rates = []
    for _ in range(2 if tiny else EPOCHS):
        started = now()
        for _ in range(STEPS_AN_EPOCH):
            logits, _ = model(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            (logits.argmax(dim=1) == labels).float().mean().item()
        rates.append(STEPS_AN_EPOCH * count / (now() - started))
    return rates[1:]


def training(tiny: bool) -> Iterator[Figure]:
    """Steps of a batch of 1,024, all at once or as much as fits, and 128 at a time as in the recipe; compiled last."""
    batch = one_batch(TINY_BATCH, TINY_SIZE) if tiny else one_batch(BATCH, SIZE)
    steps, binding = 1 if tiny else STEPS_AN_EPOCH, DEVICE.type == "cuda" and not tiny
    plain = plain_rate(tiny)
    yield figure("plain loop, batch 256", plain, "images/s")
    eager = rate_of(repeated(batch, steps), tiny)
    yield figure("trainer, batch 1024, eager", eager, "images/s", at_least=4_000 if binding else None)
    best = statistics.median(eager) / statistics.median(plain)
    yield figure("  against the plain loop", best, "x", at_least=3.0 if binding else None)
    if tiny:
        return
    yield figure("trainer, 128 at a time", rate_of(repeated(batch, steps), tiny, micro_batch=MICRO_BATCH), "images/s")
    compiled = rate_of(repeated(batch, steps), tiny, compiles="on", micro_batch=MICRO_BATCH)
    yield figure("trainer, 128 at a time, compiled", compiled, "images/s")


def from_memory(tiny: bool) -> Iterator[Figure]:
    """Images of 32 px in the device's memory, resized there: alone, and feeding a real step."""
    count, batch, size = (2 * TINY_BATCH, TINY_BATCH, TINY_SIZE) if tiny else (4 * BATCH, BATCH, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        render(Path(folder), count, (SMALL, SMALL), ".png")
        images = MemoryImages(list_images(Path(folder), "training"), feed(size, "flip"))
    rates = []
    for epoch in range(2 if tiny else EPOCHS):
        started = now()
        for _ in images.training_batches(epoch, batch):
            pass
        rates.append(count / (now() - started))
    yield figure(f"{SMALL} px in memory, resized to {size} there", rates[1:], "images/s")
    fed = Timed(lambda epoch: images.training_batches(epoch, batch), count // batch, batch)
    yield figure("  feeding the trainer", rate_of(fed, tiny), "images/s")


STEPS = (training, from_memory)
