"""Training steps of a ResNet: `train_backbone` against a plain loop, bf16 against fp32, two processes against one.

    python benchmarks/bench_backbone.py [--json FILE] [--image-size 224 --arch ResNet50 --width 1] [--quick]

The plain loop is the usual one: float32, channels first, a loss from its parts, `.item()` after every step. Both see
the same images, which lie in memory. They take turns within one run; the figures are medians over the turns.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import multiprocessing, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figure, figure, report
from benchmarks.hardware import bandwidth, flops_of, matmul_rate, synchronise
from data.config import DatasetParams
from data.contrastive_views import ViewRecipe
from data.folders import ImageList
from data.images import Batch, ViewPairs
from models.config import BackboneArch
from models.resnet import build_backbone
from tests.utils.processes import run_processes
from trainers.backbone.config import BackboneConfig
from trainers.backbone.training import train_backbone
from trainers.config import OptimizerParams
from utils.config import to_dict
from utils.distributed import World
from utils.precision import Precision, resolve_precision
from utils.preemption import Preemption
from utils.runs import Run

# Passes over a convolution's output by what is no convolution. Forward: statistics, normalise (2), add or ReLU (2);
# backward: ReLU (3), normalisation's sums (2) and its gradient (3).
PASSES = 13


class Turns:
    """An image set of one batch in memory; an epoch is a turn of `steps` steps, after one of `rival`."""

    listed = ImageList([], [], [])  # it has no files
    num_views: int | None = None

    def __init__(self, batch: Batch, steps: int, items: int, rival: Callable[[], None] | None = None) -> None:
        self.batch, self.steps, self.rival = batch, steps, rival
        self.items, self.labels = items, batch.labels
        self.classes: list[str] = []
        self.seconds: list[float] = []
        self.rival_seconds: list[float] = []

    def __len__(self) -> int:
        return self.items

    def training_batches(self, epoch: int, batch_size: int, *, keep_last: bool = False) -> Iterator[Batch]:
        if self.rival is not None:
            started = time.perf_counter()
            for _ in range(self.steps):
                self.rival()
            self.rival_seconds.append((time.perf_counter() - started) / self.steps)
        device = self.batch.images.device
        synchronise(device)
        started = time.perf_counter()
        for _ in range(self.steps):
            yield self.batch
        synchronise(device)
        self.seconds.append((time.perf_counter() - started) / self.steps)

    def view_pairs(self, recipe: ViewRecipe, epoch: int, batch_size: int) -> Iterator[ViewPairs]:
        yield from ()  # nothing contrastive is trained here

    def view_batches(self, view: int, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        yield self.batch


def plain_step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """A step of the plain loop; `images` are channels first."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        logits, _ = model(images)
        log_probabilities = torch.log_softmax(logits, dim=1)
        picked = -log_probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
        loss = (0.9 * picked - 0.1 * log_probabilities.mean(dim=1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        (logits.argmax(dim=1) == labels).float().mean().item()

    return step


def train(
    arch: BackboneArch, turns: Turns, batch_size: int, turn_count: int, precision: Precision, world: World
) -> None:
    """Take `turn_count` turns with the project's own trainer; the first does not count."""
    with tempfile.TemporaryDirectory() as folder:
        config = BackboneConfig(
            arch_params=arch,
            optimizer_params=OptimizerParams("sgd", lr=0.01, weight_decay=5e-4),
            dataset_params=DatasetParams("cifar100", data_root="", batch_size=batch_size),
            epochs=turn_count + 1,
            output_model_path=f"{folder}/model.pt",
            label_smoothing=0.1,
            validate_every=0,
            precision=precision,
        )
        model = build_backbone(**to_dict(arch))
        train_backbone(model, config, turns, turns, Run(config.output_model_path, config, world), world, Preemption())


def make_batch(batch_size: int, size: int, device: torch.device) -> Batch:
    """Random images, channels last, as the project's image sets give them."""
    images = torch.randn(batch_size, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    return Batch(images, torch.randint(100, (batch_size,), device=device), torch.arange(batch_size))


def process_turns(world: World, arguments: argparse.Namespace, threads: int, result: str) -> None:
    """Turns of one of several processes, on its share of the batch."""
    torch.set_num_threads(threads)
    batch = make_batch(arguments.batch // world.size, arguments.image_size, world.device)
    turns = Turns(batch, arguments.steps, arguments.steps * arguments.batch)
    train(architecture(arguments), turns, arguments.batch, 2, "auto", world)
    if world.is_main:
        torch.save(statistics.mean(turns.seconds[1:]), result)


def two_against_one(arguments: argparse.Namespace) -> Figure:
    """The speed of two gloo processes, half of the threads each, relative to that of one process."""
    threads = torch.get_num_threads()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/seconds.pt"
        for _ in range(min(arguments.repeats, 5)):
            seconds = {}
            for size in (1, 2):
                run_processes(process_turns, size, arguments, max(1, threads // size), path)
                seconds[size] = torch.load(path)
            ratios.append(seconds[1] / seconds[2])
    return figure("2 gloo processes, speed relative to 1 process", statistics.median(ratios), "x", at_least=0.9)


def architecture(arguments: argparse.Namespace) -> BackboneArch:
    """The network that the command line asks for, with the stem that suits the images."""
    stem: Literal["cifar", "imagenet"] = "cifar" if arguments.image_size <= 64 else "imagenet"
    return BackboneArch(arguments.arch, num_classes=100, stem=stem, width=arguments.width)


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """Our trainer in the precision that `auto` chooses and in float32, each in turns with the plain loop."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arch, size, batch_size = architecture(arguments), arguments.image_size, arguments.batch
    batch = make_batch(batch_size, size, device)
    plain_model = build_backbone(**to_dict(arch)).to(device)
    step = plain_step(plain_model, batch.images.contiguous(), batch.labels)
    activations = count_activations(plain_model, batch.images[:1]) * batch_size
    flops = flops_of(step)
    bytes_per_second = bandwidth(device)
    figures: list[Figure] = []
    speed, plain = {}, []
    choices: tuple[Precision, ...] = ("auto", "fp32")
    for precision in choices:
        turns = Turns(batch, arguments.steps, arguments.steps * batch_size, step)
        train(arch, turns, batch_size, arguments.repeats, precision, World(device=device))
        seconds, rival = statistics.median(turns.seconds[1:]), statistics.median(turns.rival_seconds[1:])
        resolved = resolve_precision(precision, device)
        rate = matmul_rate(resolved, device)
        products, passes = flops / rate, PASSES * activations * (2 if resolved == "bf16" else 4) / bytes_per_second
        name = f"precision {precision} ({resolved})"
        figures += [
            figure(
                f"training step, {name}, against the plain loop",
                rival / seconds,
                "x",
                at_least=3.0 if precision == "auto" else None,
            ),
            figure(f"training, {name}", batch_size / seconds, "images/s"),
            figure(f"  measured matmul rate, {name}", rate / 1e9, "GFLOP/s"),
            figure(f"  {name}, share of the limit: products alone", products / seconds, ""),
            figure(
                f"  {name}, share of the limit: products, then passes over memory", (products + passes) / seconds, ""
            ),
        ]
        speed[precision] = rival / seconds
        plain.append(rival)
    return [
        *figures,
        figure("training, plain loop", batch_size / statistics.median(plain), "images/s"),
        figure("precision auto against fp32", speed["auto"] / speed["fp32"], "x", at_least=1.0),
        figure("measured memory bandwidth", bytes_per_second / 1e9, "GB/s"),
        figure("model, forward and backward", flops / batch_size / 1e9, "GFLOP/image"),
    ]


def count_activations(model: nn.Module, image: torch.Tensor) -> int:
    """Numbers in the outputs of all convolutions for one image."""
    counts: list[int] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: counts.append(output.numel()))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        model.eval()(image)
    model.train()
    for hook in hooks:
        hook.remove()
    return sum(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    parser.add_argument("--arch", default="ResNet18")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="a turn")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs; the figures mean nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.width, arguments.batch, arguments.steps, arguments.repeats = 0.0625, 8, 1, 1
    figures = measure(arguments)
    if not torch.cuda.is_available() and torch.get_num_threads() > 1:  # two processes share the threads of one
        figures.append(two_against_one(arguments))
    report(figures, arguments.json)


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
