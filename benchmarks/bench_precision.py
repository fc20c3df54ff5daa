"""Training steps of a small ResNet in float32 and in bf16: what `precision: auto` and channels-last images gain.

    python benchmarks/bench_precision.py [--json FILE] [--batch 128] [--width 0.25] [--repeats 7]

The variants take turns in one run; figures are medians, and ratios are to float32 with channels first.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.resnet import build_backbone
from trainers.optimizers import build_optimizer
from utils.files import write_json
from utils.precision import autocast, resolve_precision
from utils.schema import OptimizerParams, Precision

STEPS = 3  # timed together


def training_step(precision: Precision, layout: torch.memory_format, batch: int, width: float) -> Callable[[], None]:
    """A function that takes one optimizer step on random 32 px images."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resolved = resolve_precision(precision, device)
    model = build_backbone("ResNet18", num_classes=100, stem="cifar", width=width)
    model.to(device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = build_optimizer(model, OptimizerParams(algorithm="sgd", lr=0.01))
    images = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=layout)
    labels = torch.randint(100, (batch,), device=device)

    def step() -> None:
        with autocast(resolved, device):
            logits, _ = model(images)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    variants: dict[str, tuple[Precision, torch.memory_format]] = {
        "fp32, channels first": ("fp32", torch.contiguous_format),
        "fp32, channels last": ("fp32", torch.channels_last),
        "bf16, channels last": ("bf16", torch.channels_last),
        "auto, channels last": ("auto", torch.channels_last),
    }
    steps = {
        name: training_step(precision, layout, arguments.batch, arguments.width)
        for name, (precision, layout) in variants.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()  # warm-up
    for _ in range(arguments.repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(STEPS):
                step()
            seconds[name].append((time.perf_counter() - started) / STEPS)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    baseline = next(iter(medians.values()))
    figures = []
    print(f"{'':24}{'images/s':>10}{'ratio':>8}")
    for name, median in medians.items():
        print(f"{name:24}{arguments.batch / median:10.0f}{baseline / median:8.2f}")
        figures.append(
            {"name": f"training step, {name}", "value": baseline / median, "unit": "x", "bar": None, "holds": None}
        )
    if arguments.json:
        write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
