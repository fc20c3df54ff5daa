"""A whole transformation training, 80 epochs on 50,000 images: ours against the published way, run plainly.

    python benchmarks/bench_transformation.py [--json FILE] [--quick]

Plainly is: every epoch runs the frozen models over all images again (the old one twice, as it also stands in for the
side-information), float32, channels first, and the transformation as 1x1 convolutions on (N, C, 1, 1), with `.item()`
after every step. Ours embeds both views of each image once and trains on the embeddings.

Both totals are extrapolated from parts, which take turns in one run: the parts are batches through the frozen models
and steps of the transformation, and the figures are medians. Reading and augmenting images is left out on both sides,
which spares the plain loop 80 times as much. It is done for the models of the 32 px experiment and for ResNet50 at
224 px, the published recipe. A last part trains both ways on the same made-up embeddings and compares the losses.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figure, figure, report
from benchmarks.hardware import flops_of, matmul_rate, synchronise
from data.config import DatasetParams
from data.images import shuffled_batches
from embedding.cache import rounded
from models.config import TransformationArch
from models.embedding import embed
from models.resnet import build_backbone
from models.transformations import build_transformation
from models.transformed import Transformation
from trainers.config import LrPolicyParams, OptimizerParams
from trainers.transformation.config import ObjectiveParams, TransformationConfig
from trainers.transformation.losses import TransformationObjective
from trainers.transformation.pairs import PairBatch
from trainers.transformation.training import train_transformation
from utils.distributed import World
from utils.precision import autocast, resolve_precision
from utils.preemption import Preemption
from utils.runs import Run

EPOCHS, ITEMS, BATCH, DIM, VIEWS = 80, 50_000, 1024, 128, 2
LR, WEIGHT_DECAY = 5e-4, 2.0**-15


class PlainTransformation(nn.Module):
    """FCT's transformation as published: 1x1 convolutions on (N, C, 1, 1)."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

        self.p1 = nn.Sequential(layer(dim, 2 * dim), layer(2 * dim, 2 * dim))
        self.p2 = nn.Sequential(layer(dim, 2 * dim), layer(2 * dim, 2 * dim))
        self.mixer = nn.Sequential(layer(4 * dim, inner_dim), layer(inner_dim, inner_dim), nn.Conv2d(inner_dim, dim, 1))

    def forward(self, old: torch.Tensor, side_info: torch.Tensor) -> torch.Tensor:
        """(B, d, 1, 1), (B, d, 1, 1) -> (B, d, 1, 1)."""
        return self.mixer(torch.cat([self.p1(old), self.p2(side_info)], dim=1))


class PlainTraining:
    """The plain loop on embeddings."""

    def __init__(self, inner_dim: int, device: torch.device) -> None:
        self.model = PlainTransformation(DIM, inner_dim).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)

    def step(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """A step on (B, d), (B, d)."""
        loss = F.mse_loss(self.model(old[:, :, None, None], old[:, :, None, None]), new[:, :, None, None])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()


class Turns:
    """Made-up embeddings: an epoch is a turn of the plain loop, then one of our trainer on the same batches.

    Ours are rounded as the cache rounds them.
    """

    def __init__(self, old: torch.Tensor, new: torch.Tensor, batch: int, seed: int, plain: PlainTraining) -> None:
        self.old, self.new, self.batch, self.seed, self.plain = old, new, batch, seed, plain
        self.rounded = rounded(old), rounded(new)
        self.seconds: list[float] = []  # a step
        self.plain_seconds: list[float] = []

    def __len__(self) -> int:
        return len(self.old)

    def batches(self, epoch: int) -> Iterator[PairBatch]:
        device = self.old.device
        rows = [
            part.to(device) for part in shuffled_batches(len(self), self.batch, World(), seed=self.seed, epoch=epoch)
        ]
        started = time.perf_counter()
        for part in rows:
            self.plain.step(self.old[part], self.new[part])
        synchronise(device)
        self.plain_seconds.append((time.perf_counter() - started) / len(rows))
        started = time.perf_counter()
        old, new = self.rounded
        for part in rows:
            yield PairBatch(old[part].float(), None, new[part].float(), torch.zeros_like(part))
        synchronise(device)
        self.seconds.append((time.perf_counter() - started) / len(rows))


def train_ours(transformation: Transformation, turns: Turns, epochs: int, world: World) -> None:
    """Train with the project's own trainer."""
    with tempfile.TemporaryDirectory() as folder:
        config = TransformationConfig(
            old_model_path="",
            new_model_path="",
            arch_params=TransformationArch("fct"),
            optimizer_params=OptimizerParams("adam", lr=LR, weight_decay=WEIGHT_DECAY),
            dataset_params=DatasetParams("cifar100", data_root="", batch_size=turns.batch),
            lr_policy_params=LrPolicyParams("constant_lr", warmup_length=0),
            epochs=epochs,
            output_transformation_path=f"{folder}/h.pt",
            output_transformed_old_model_path=f"{folder}/old_h.pt",
        )
        run = Run(config.output_transformation_path, config, world)
        objective = TransformationObjective(ObjectiveParams(), None)
        train_transformation(transformation, objective, config, turns, run, world, Preemption())


def make_pairs(items: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Old and new embeddings (n, d): non-negative as a ReLU leaves them, the new ones a noisy function of the old."""
    g = torch.Generator().manual_seed(0)
    old = torch.randn(items, DIM, generator=g).relu()
    hidden = (old @ torch.randn(DIM, 256, generator=g) / DIM**0.5 - 0.3).relu()
    new = (hidden @ torch.randn(256, DIM, generator=g) / 16 + 0.3 * torch.randn(items, DIM, generator=g)).relu()
    return old.to(device), new.to(device)


def build(inner_dim: int) -> Transformation:
    """FCT's transformation."""
    dims = {"old_embedding_dim": DIM, "new_embedding_dim": DIM, "side_info_dim": DIM, "inner_dim": inner_dim}
    return build_transformation("fct", **dims)


def measure_steps(arguments: argparse.Namespace, device: torch.device) -> tuple[float, float, list[Figure]]:
    """Seconds of a step on embeddings, plain and ours, and what to report of them."""
    old, new = make_pairs(2 * BATCH, device)
    turns = Turns(old, new, BATCH, 0, PlainTraining(arguments.inner_dim, device))
    model = build(arguments.inner_dim)
    train_ours(model, turns, arguments.repeats + 1, World(device=device))
    plain_seconds, seconds = statistics.median(turns.plain_seconds[1:]), statistics.median(turns.seconds[1:])
    resolved = resolve_precision("auto", device)
    flops = flops_of(lambda: F.mse_loss(model(old[:BATCH]).embedding, new[:BATCH]).backward())
    rate = matmul_rate(resolved, device)
    steps = ITEMS // BATCH
    return (
        plain_seconds,
        seconds,
        [
            figure("training step on embeddings against the plain loop", plain_seconds / seconds, "x"),
            figure("an epoch on embeddings, 50,000 items", steps * seconds, "s"),
            figure(
                f"{EPOCHS} epochs on embeddings",
                EPOCHS * steps * seconds,
                "s",
                at_most=5.0 if device.type == "cuda" else None,
            ),
            figure(f"  measured matmul rate, {resolved}", rate / 1e9, "GFLOP/s"),
            figure("  share of the limit: matrix products alone", flops / rate / seconds, ""),
        ],
    )


def measure_embedding(
    arch: str, size: int, width: float, batch: int, repeats: int, device: torch.device
) -> tuple[float, float]:
    """Seconds that a frozen model takes for one image, plain and ours, in turns."""
    stem = "cifar" if size <= 64 else "imagenet"
    plain = build_backbone(arch, num_classes=100, stem=stem, width=width).to(device).eval()
    ours = build_backbone(arch, num_classes=100, stem=stem, width=width).to(device).eval()
    precision = resolve_precision("auto", device)
    images = torch.randn(batch, 3, size, size, device=device)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    times: list[tuple[float, float]] = []
    for _ in range(repeats + 1):
        synchronise(device)
        started = time.perf_counter()
        with torch.no_grad():
            plain(images)
        synchronise(device)
        between = time.perf_counter()
        with torch.inference_mode(), autocast(precision, device):
            embed(ours, channels_last)
        synchronise(device)
        times.append((between - started, time.perf_counter() - between))
    first, second = (statistics.median(column) / batch for column in zip(*times[1:], strict=True))
    return first, second


def compare_losses(arguments: argparse.Namespace, device: torch.device) -> list[Figure]:
    """Validation losses of both ways, trained alike with several seeds."""
    old, new = make_pairs(arguments.quality_items + 2048, device)
    held_out = old[-2048:], new[-2048:]
    losses: dict[str, list[float]] = {"plain": [], "ours": []}
    for seed in range(3):
        torch.manual_seed(seed)
        plain, model = PlainTraining(arguments.inner_dim, device), build(arguments.inner_dim)
        turns = Turns(old[:-2048], new[:-2048], 256, seed, plain)
        train_ours(model, turns, arguments.quality_epochs, World(device=device))
        with torch.inference_mode():
            column = held_out[0][:, :, None, None]
            losses["plain"].append(F.mse_loss(plain.model.eval()(column, column).flatten(1), held_out[1]).item())
            losses["ours"].append(F.mse_loss(model.eval()(held_out[0]).embedding, held_out[1]).item())
    means = {name: statistics.mean(values) for name, values in losses.items()}
    noise = max(statistics.stdev(values) for values in losses.values())
    return [
        figure("validation loss, plain, mean of 3 seeds", means["plain"], ""),
        figure("validation loss, ours, mean of 3 seeds", means["ours"], ""),
        figure(
            "difference of the means, in standard deviations over seeds",
            abs(means["plain"] - means["ours"]) / noise,
            "",
            at_most=2.0,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    parser.add_argument("--inner-dim", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--quality-items", type=int, default=8192)
    parser.add_argument("--quality-epochs", type=int, default=6)
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs; the figures mean nothing")
    arguments = parser.parse_args()
    settings = {"32 px ResNet18": ("ResNet18", 32, 0.25, 256), "224 px ResNet50": ("ResNet50", 224, 1.0, 8)}
    if arguments.quick:
        arguments.inner_dim, arguments.repeats, arguments.quality_items, arguments.quality_epochs = 32, 1, 256, 1
        settings = {"32 px ResNet18": ("ResNet18", 32, 0.0625, 4)}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plain_step, step, figures = measure_steps(arguments, device)
    steps = ITEMS // BATCH
    for name, (arch, size, width, batch) in settings.items():
        plain_image, image = measure_embedding(arch, size, width, batch, arguments.repeats, device)
        plain_total = EPOCHS * steps * (3 * BATCH * plain_image + plain_step)
        total = VIEWS * 2 * ITEMS * image + EPOCHS * steps * step
        figures += [
            figure(f"{name}: whole training against the plain loop", plain_total / total, "x", at_least=30.0),
            figure(f"{name}: plain, extrapolated", plain_total / 3600, "h"),
            figure(f"{name}: ours, extrapolated", total / 3600, "h"),
            figure(f"{name}: embedding, plain", 1 / plain_image, "images/s"),
            figure(f"{name}: embedding, ours", 1 / image, "images/s"),
        ]
    report([*figures, *compare_losses(arguments, device)], arguments.json)


if __name__ == "__main__":
    main()
