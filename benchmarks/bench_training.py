"""Training against a plain loop: a backbone's step, a transformation's step, and a whole transformation training.

    python benchmarks/bench_training.py [--json FILE] [--tiny]
    python benchmarks/bench_training.py --image-size 224 --arch ResNet50 --width 1 --batch 16    # the published recipe

Claims: a backbone's step takes a third of the plain loop's time where bf16 is fast, and `precision: auto` is no slower
than float32; a whole training of FCT's transformation, 80 epochs on 50,000 images, takes a thirtieth, as each view is
embedded once and the embeddings are kept. Measured: the project's own trainers on images and embeddings in
memory, in turns with the plain loop on the like, in a process of its own. Compared with: float32, channels first,
`.item()` after every step; for the transformation 1x1 convolutions on (N, C, 1, 1), and all images through the frozen
models again in every epoch (the old one twice, as it also stands in for the side-information). Whole trainings are
extrapolated from steps and batches, without reading and augmenting images, which spares the plain loop 80 times of it.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import DEVICE, Apart, Figure, TrainerTurns, figure, options, ratios, run, take_turns
from data.config import DatasetParams
from data.images import Batch
from embedding.cache import rounded
from embedding.extraction import embed_images
from models.backbones import build_backbone
from models.config import BackboneArch, TransformationArch
from models.transformations import build_transformation
from trainers.backbone.config import BackboneConfig
from trainers.backbone.training import train_backbone
from trainers.config import Compile, LrPolicyParams, OptimizerParams
from trainers.loop import train
from trainers.transformation.config import ObjectiveParams, TransformationConfig
from trainers.transformation.losses import TransformationObjective
from trainers.transformation.pairs import Epochs, PairBatch
from trainers.transformation.task import TransformationTask
from utils.choices import Precision
from utils.config import to_dict
from utils.distributed import World
from utils.precision import autocast, resolve_precision
from utils.preemption import Preemption
from utils.runs import Run

EPOCHS, ITEMS, BATCH, DIM, VIEWS = 80, 50_000, 1024, 128, 2  # of a transformation's training
EMBEDDED = 8  # batches that a turn takes through a frozen model
STEPS = EPOCHS * (ITEMS // BATCH)
LR, WEIGHT_DECAY = 5e-4, 2.0**-15
WORLD = World(device=DEVICE)


class OneBatch:
    """What the trainer asks of an image set: an epoch is a turn of `steps` times one batch."""

    def __init__(self, batch: Batch, steps: int, arch: BackboneArch) -> None:
        self.batch, self.steps = batch, steps
        self.turns = TrainerTurns(
            Apart(partial(plain_training, arch, len(batch.labels), batch.images.shape[-1], steps))
        )

    def __len__(self) -> int:
        return self.steps * len(self.batch.labels)

    def training_batches(self, epoch: int, batch_size: int, *, keep_last: bool = False) -> Iterator[Batch]:
        return self.turns.epoch([self.batch] * self.steps)


def one_batch(images: int, size: int) -> Batch:
    """A batch of made-up square images, channels last."""
    made_up = torch.randn(images, 3, size, size, device=DEVICE).contiguous(memory_format=torch.channels_last)
    return Batch(made_up, torch.randint(100, (images,), device=DEVICE), torch.arange(images))


def plain_training(arch: BackboneArch, images: int, size: int, steps: int) -> Callable[[], None]:
    """Steps of the plain loop on a batch of images."""
    batch, model = one_batch(images, size), build_backbone(**to_dict(arch)).to(DEVICE)
    channels_first = batch.images.contiguous()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        logits, _ = model(channels_first)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        (logits.argmax(dim=1) == batch.labels).float().mean().item()

    return lambda: repeat(step, steps)


def plain_embedding(arch: BackboneArch, images: int, size: int) -> Callable[[], None]:
    """The plain way of EMBEDDED batches of images through a frozen model."""
    model, channels_first = (
        build_backbone(**to_dict(arch)).to(DEVICE).eval(),
        one_batch(images, size).images.contiguous(),
    )

    @torch.no_grad()
    def step() -> None:
        model(channels_first)

    return lambda: repeat(step, EMBEDDED)


def repeat(work: Callable[[], object], times: int) -> None:
    """`work` so many times."""
    for _ in range(times):
        work()


class PlainTransformation(nn.Module):
    """FCT's transformation as published: 1x1 convolutions on (N, C, 1, 1)."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

        self.p1 = nn.Sequential(layer(dim, 2 * dim), layer(2 * dim, 2 * dim))
        self.p2 = nn.Sequential(layer(dim, 2 * dim), layer(2 * dim, 2 * dim))
        self.mixer = nn.Sequential(layer(4 * dim, inner_dim), layer(inner_dim, inner_dim), nn.Conv2d(inner_dim, dim, 1))

    def forward(self, old: torch.Tensor) -> torch.Tensor:
        """(B, d) -> (B, d); the old embedding is the side-information too."""
        column = old[:, :, None, None]
        return self.mixer(torch.cat([self.p1(column), self.p2(column)], dim=1)).flatten(1)


class Pairs:
    """Two batches of made-up embeddings; an epoch is a turn of both. Ours are rounded as the cache rounds them."""

    def __init__(self, inner_dim: int) -> None:
        self.old, self.new = two_batches()
        self.turns = TrainerTurns(Apart(partial(plain_transformation, inner_dim)))

    def __len__(self) -> int:
        return len(self.old)

    def batches(self, epoch: int) -> Iterator[PairBatch]:
        old, new = rounded(self.old), rounded(self.new)
        return self.turns.epoch(
            torch.arange(len(self), device=DEVICE).split(BATCH),
            lambda rows: PairBatch(old[rows].float(), None, new[rows].float(), torch.zeros_like(rows)),
        )


def two_batches() -> tuple[torch.Tensor, torch.Tensor]:
    """Old and new embeddings of two batches of items."""
    old, new = (torch.randn(2 * BATCH, DIM, device=DEVICE).relu() for _ in ("old", "new"))
    return old, new


def plain_transformation(inner_dim: int) -> Callable[[], None]:
    """An epoch of the plain loop over two batches of embeddings."""
    (old, new), model = two_batches(), PlainTransformation(DIM, inner_dim).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)

    def epoch() -> None:
        for rows in torch.arange(len(old), device=DEVICE).split(BATCH):
            loss = F.mse_loss(model(old[rows]), new[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return epoch


def train_on_images(
    images: Any,
    arch: BackboneArch,
    batch_size: int,
    epochs: int,
    precision: Precision,
    *,
    compiles: Compile = "off",
    micro_batch: int | Literal["auto"] = "auto",
    world: World = WORLD,
) -> nn.Module:
    """Train a backbone, of the weights of seed 0, with the project's own trainer -> the backbone."""
    torch.manual_seed(0)
    model = build_backbone(**to_dict(arch))
    with tempfile.TemporaryDirectory() as folder:
        config = BackboneConfig(
            arch_params=arch,
            optimizer_params=OptimizerParams("sgd", lr=0.01, weight_decay=5e-4),
            dataset_params=DatasetParams("cifar100", data_root="", batch_size=batch_size),
            epochs=epochs,
            output_model_path=f"{folder}/model.pt",
            label_smoothing=0.1,
            validate_every=0,
            precision=precision,
            compile=compiles,
            micro_batch=micro_batch,
        )
        files = Run(config.output_model_path, config, world)
        train_backbone(model, config, images, images, files, world, Preemption())
    return model


def train_on_pairs(
    pairs: Epochs,
    inner_dim: int,
    epochs: int,
    *,
    compiles: Compile = "off",
    precision: Precision = "auto",
    world: World = WORLD,
) -> nn.Module:
    """Train FCT's transformation, from the weights of seed 0, with the project's own trainer -> the transformation."""
    torch.manual_seed(0)
    dims = {"old_embedding_dim": DIM, "new_embedding_dim": DIM, "side_info_dim": DIM, "inner_dim": inner_dim}
    model, objective = build_transformation("fct", **dims), TransformationObjective(ObjectiveParams(), None)
    with tempfile.TemporaryDirectory() as folder:
        config = TransformationConfig(
            old_model_path="",
            new_model_path="",
            arch_params=TransformationArch("fct"),
            optimizer_params=OptimizerParams("adam", lr=LR, weight_decay=WEIGHT_DECAY),
            dataset_params=DatasetParams("cifar100", data_root="", batch_size=BATCH),
            lr_policy_params=LrPolicyParams("constant_lr", warmup_length=0),
            epochs=epochs,
            output_transformation_path=f"{folder}/h.pt",
            output_transformed_old_model_path=f"{folder}/old_h.pt",
            precision=precision,
            compile=compiles,
        )
        files = Run(config.output_transformation_path, config, world)
        task = TransformationTask(model, objective, pairs, config, files.precision, world)
        train(task, model, config.loop, files, world, Preemption())
    return model


def compare_products(rows: int, turns: int) -> Iterator[Figure]:
    """Square matrix products in bf16 and in float32."""
    factor = torch.randn(rows, rows, device=DEVICE)
    factors = {"bf16": factor.bfloat16(), "fp32": factor}
    times = take_turns({name: partial(torch.matmul, each, each) for name, each in factors.items()}, turns)
    yield figure(f"product of {rows} rows, bf16 against fp32", ratios(times["fp32"], times["bf16"]), "x")
    for name, each in times.items():
        yield figure(f"  {name}", [2e-9 * rows**3 / spent for spent in each], "GFLOP/s")


def convolutions(arch: BackboneArch, batch: Batch, precision: Precision) -> float:
    """The share of a backbone's training step on a CPU that its convolutions take."""
    model = build_backbone(**to_dict(arch)).to(memory_format=torch.channels_last)

    def step() -> None:
        with autocast(resolve_precision(precision, DEVICE), DEVICE):
            logits, _ = model(batch.images)
            loss = F.cross_entropy(logits, batch.labels, label_smoothing=0.1)
        loss.backward()

    step()  # warms up
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    return sum(time for name, time in times.items() if "convolution" in name) / sum(times.values())


def compare_backbones(arch: BackboneArch, batch: Batch, steps: int, turns: int) -> Iterator[Figure]:
    """Steps of a backbone, in the precision that `auto` chooses and in float32."""
    batch_size, speed = len(batch.labels), {}
    choices: tuple[Precision, ...] = ("auto", "fp32")
    for precision in choices:
        images = OneBatch(batch, steps, arch)
        train_on_images(images, arch, batch_size, turns + 1, precision)
        plain, ours = images.turns.times()
        name = f"precision {precision} ({resolve_precision(precision, DEVICE)})"
        bar = 3.0 if precision == "auto" else None
        speed[precision] = median(ratios(plain, ours))
        yield figure(f"backbone, step, {name}, against the plain loop", ratios(plain, ours), "x", at_least=bar)
        yield figure(f"  {name}", [batch_size / spent for spent in ours], "images/s")
        yield figure(f"  plain loop beside it, {name}", [batch_size / spent for spent in plain], "images/s")
        if DEVICE.type == "cpu":
            share = convolutions(arch, batch, precision)
            yield figure(f"  share of convolutions, {name}", share)
            yield figure(f"  against the plain loop, were the rest free, {name}", speed[precision] / share, "x")
    if resolve_precision("auto", DEVICE) == "bf16":
        yield figure("precision auto against fp32", speed["auto"] / speed["fp32"], "x", at_least=1.0)


def compare_transformations(arch: BackboneArch, batch: Batch, inner_dim: int, turns: int) -> Iterator[Figure]:
    """Steps of a transformation, images through a frozen model, and what whole trainings take with both."""
    pairs = Pairs(inner_dim)
    train_on_pairs(pairs, inner_dim, turns + 1)
    plain_steps, steps = pairs.turns.times()
    yield figure("transformation, step, against the plain loop", ratios(plain_steps, steps), "x")
    yield figure("  an epoch of ours, 50,000 items", [STEPS / EPOCHS * spent for spent in steps], "s")
    model = build_backbone(**to_dict(arch)).to(DEVICE).eval()
    total_images = EMBEDDED * len(batch.labels)

    def ours() -> None:
        batches = [batch] * EMBEDDED
        embed_images({"old": model}, batches, total=total_images, precision="auto", world=WORLD, title="")

    plain = Apart(partial(plain_embedding, arch, len(batch.labels), batch.images.shape[-1]))
    times = take_turns({"plain": plain, "ours": ours}, turns)
    yield figure("images through a frozen model, against the plain loop", ratios(times["plain"], times["ours"]), "x")
    plain_image, image = (median(each) / total_images for each in times.values())
    plain_total = STEPS * (3 * BATCH * plain_image + median(plain_steps))
    total = VIEWS * 2 * ITEMS * image + STEPS * median(steps)
    yield figure("transformation, whole training, against the plain loop", plain_total / total, "x", at_least=30.0)
    for way, hours in {"plain": plain_total / 3600, "ours": total / 3600}.items():
        yield figure(f"  {way}, extrapolated", hours, "h")
        yield figure(f"  {way}, embedding", [total_images / spent for spent in times[way]], "images/s")


def measure(arguments: argparse.Namespace) -> Iterator[Figure]:
    size, width, inner_dim, batch_size, steps = arguments.image_size, arguments.width, 2048, arguments.batch, 4
    if arguments.tiny:
        width, inner_dim, batch_size, steps = 0.0625, 32, 8, 1
    stem: Literal["cifar", "imagenet"] = "cifar" if size <= 64 else "imagenet"
    arch = BackboneArch(arguments.arch, num_classes=100, stem=stem, width=width)
    batch = one_batch(batch_size, size)
    yield from compare_products(64 if arguments.tiny else 2048, arguments.turns)
    yield from compare_backbones(arch, batch, steps, arguments.turns)
    yield from compare_transformations(arch, batch, inner_dim, arguments.turns)


if __name__ == "__main__":
    parser = options(__doc__, turns=7)
    parser.add_argument("--arch", default="ResNet18")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128, help="images")
    run(parser, measure)
