"""What the device computes is what the CPU computes, to tolerances that say how arithmetic may differ.

- Distances are float64 rounded to float32 on every device, so metrics differ where a last bit swaps two neighbours:
  each query of 2,000 that this concerns moves CMC by 0.0005.
- Orders sort scores whose last bits differ: what may change is who is on which side of the middle, not by how much.
- Training steps multiply in TF32 on a GPU, 10 bits of mantissa, so that one training leaves the other: after a few
  steps h and weights are compared, relative to how far training has moved them.

tests/test_gpu.py runs the same checks wherever there is a GPU.
"""

import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.bench_eval import Upgrade, synthetic
from benchmarks.bench_training import train_on_images, train_on_pairs
from benchmarks.harness import DEVICE, Figure, figure
from data.images import Batch
from models.config import BackboneArch
from retrieval import ORDERS, backfilling_curve, backfilling_order, choose_calibration, cutoffs, evaluate
from trainers.transformation.pairs import PairsInMemory, View
from utils.distributed import World
from utils.precision import autocast, kernels

ITEMS, FEW = 2_000, 200
CPU = torch.device("cpu")
Outcome = dict[str, Tensor]  # what a device has computed, by name


class Check(NamedTuple):
    """What is computed on a device, and by how much it may differ from the same on the CPU at most."""

    compute: Callable[[torch.device, int], Outcome]  # by how many items
    tolerance: float


def flattened(values: Any) -> list[float]:
    """All numbers in nested dicts and lists, in their order."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        return [number for value in values for number in flattened(value)]
    return [float(values)] if isinstance(values, int | float) else []


def classifier_of(items: Upgrade) -> Tensor:
    """The classes' means, computed on the CPU: the same on every device."""
    new, labels = items.new.cpu().double(), items.labels.cpu()
    means = [new[labels == label].mean(0) for label in range(int(labels.max()) + 1)]
    return torch.stack(means).float().to(items.new.device)


def orders_of(items: Upgrade, names: list[str]) -> dict[str, Tensor]:
    """Backfilling orders, of all the evidence that there is; the error stands in for sigma."""
    classifier, sigma = classifier_of(items), (items.new - items.transformed).square().mean(1).log()
    return {
        name: backfilling_order(
            name,
            transformed=items.transformed,
            new=items.new,
            log_variance=sigma,
            classifier=classifier,
            class_means=classifier,
            labels=items.labels,
        )
        for name in names
    }


def metrics(device: torch.device, count: int) -> Outcome:
    """Of one evaluation, under both distances."""
    new, transformed, labels = synthetic(count, device)
    found = [evaluate(new, transformed, labels, distance=distance).to_json() for distance in ("l2", "cosine")]
    return {"metrics": torch.tensor(flattened(found))}


def curves(device: torch.device, count: int) -> Outcome:
    """Of three orders, every point."""
    items = synthetic(count, device)
    orders = {name: order.cpu().to(device) for name, order in orders_of(synthetic(count, CPU), THREE_ORDERS).items()}
    found = backfilling_curve(
        items.new, items.transformed, items.new, items.labels, orders=orders, cutoffs=cutoffs(count, 20)
    )
    return {name: torch.tensor(flattened(curve.to_json())) for name, curve in found.items()}


def halves(device: torch.device, count: int) -> Outcome:
    """Of every order, who is in its first half, as shares of all items."""
    found = orders_of(synthetic(count, device), list(ORDERS))
    return {name: torch.zeros(count).index_fill(0, order.cpu()[: count // 2], 1.0) for name, order in found.items()}


def calibration(device: torch.device, count: int) -> Outcome:
    """The agreement that the calibration reaches, and that without it."""
    items = synthetic(count, device)
    chosen = choose_calibration(items.new, items.transformed)
    return {name: torch.tensor(chosen[name]) for name in ("agreement", "uncalibrated")}


def transformation(device: torch.device, count: int) -> Outcome:
    """h of the first items after a training of FCT's transformation, in float32."""
    items, world = synthetic(count, device), World(device=device)
    view = View({"old": items.transformed, "new": items.new}, items.labels)
    pairs = PairsInMemory([view], batch_size=1024, world=world, seed=0)
    model = train_on_pairs(pairs, 256, 4, precision="fp32", world=world).eval()
    with torch.inference_mode():
        return {"h": model(items.transformed[:100]).embedding.cpu()}


def backbone(device: torch.device, count: int) -> Outcome:
    """The weights of a small ResNet18 after a step of 32 images, in float32."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, 32, 32, generator=random).contiguous(memory_format=torch.channels_last).to(device)
    labels = torch.randint(10, (32,), generator=random)
    batch = Batch(images, labels.to(device), torch.arange(32))
    arch = BackboneArch("ResNet18", num_classes=10, stem="cifar", width=0.25)
    model = train_on_images(OneStep(batch), arch, 32, 1, "fp32", micro_batch=32, world=World(device=device))
    return {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}


class OneStep:
    """An image set of one batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.labels = batch, batch.labels

    def __len__(self) -> int:
        return len(self.labels)

    def training_batches(self, epoch: int, batch_size: int, *, keep_last: bool = False) -> Iterator[Batch]:
        yield self.batch


THREE_ORDERS = ["distance", "sigma", "random"]
CHECKS = {
    "metrics": Check(metrics, 2e-3),
    "curves": Check(curves, 2e-3),
    "orders": Check(halves, 2e-3),
    "calibration": Check(calibration, 2e-3),
    "transformation": Check(transformation, 2e-2),
    "backbone": Check(backbone, 2e-2),
}
RELATIVE = ("transformation", "backbone")  # to the size of what is compared, by root mean squares


def difference(name: str, device: torch.device, count: int) -> float:
    """How far the device is from the CPU: the largest difference, mean for orders, relative for what is trained."""
    check = CHECKS[name]
    ours, theirs = check.compute(device, count), check.compute(CPU, count)
    assert ours.keys() == theirs.keys()
    gaps = {key: (ours[key].double() - theirs[key].double()).abs() for key in ours}
    if name in RELATIVE:
        return max(float(gaps[key].norm() / theirs[key].double().norm()) for key in gaps)
    return max(float(gap.mean() if name == "orders" else gap.max()) for gap in gaps.values())


def product_error(device: torch.device, *, fast: bool) -> float:
    """The relative error of a float32 product of 512 x 512 matrices, in training steps (`fast`) or outside of them."""
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=random, dtype=torch.float64) for _ in range(2))
    with kernels(device, fast=fast):
        product = (a.float().to(device) @ b.float().to(device)).cpu().double()
    exact = a.float().double() @ b.float().double()
    return float((product - exact).norm() / exact.norm())


def collectives_error(device: torch.device) -> float:
    """How far a data-parallel gradient is from a plain one, in a group of one process: nccl on a GPU, else gloo."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to(device)
    inputs = torch.randn(32, 8).to(device)

    def gradient(model: nn.Module) -> Tensor:
        plain.zero_grad()
        model(inputs).square().mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in plain.parameters() if parameter.grad is not None])

    expected = gradient(plain).clone()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        try:
            found = gradient(DistributedDataParallel(plain))
            dist.all_reduce(found)
            flag = torch.ones(1)  # between the hosts
            dist.all_reduce(flag)
        finally:
            dist.destroy_process_group()
    return float((found - expected).abs().max()) + float(flag - 1)


def against_the_cpu(tiny: bool) -> Iterator[Figure]:
    """The checks."""
    for name, check in CHECKS.items():
        gap = difference(name, DEVICE, FEW if tiny else ITEMS)
        yield figure(f"{name}, difference from the CPU", gap, at_most=check.tolerance)


def arithmetic(tiny: bool) -> Iterator[Figure]:
    """Float32, TF32 and autocast are what they say."""
    yield figure("float32 product, relative error", product_error(DEVICE, fast=False), at_most=1e-6)
    on_gpu = DEVICE.type == "cuda"
    error = product_error(DEVICE, fast=True)
    yield figure("the same in training steps, TF32 on a GPU", error, at_least=1e-5 if on_gpu else None)
    one = torch.ones(16, 16, device=DEVICE)
    with autocast("bf16", DEVICE):
        yield figure("a product is bf16 under bf16 autocast", float((one @ one).dtype == torch.bfloat16), at_least=1)
    with autocast("fp32", DEVICE):
        yield figure("and float32 without", float((one @ one).dtype == torch.float32), at_least=1)


def collectives(tiny: bool) -> Iterator[Figure]:
    """A group of one process."""
    backend = "nccl" if DEVICE.type == "cuda" else "gloo"
    yield figure(f"data-parallel gradient by {backend}, difference", collectives_error(DEVICE), at_most=1e-6)


STEPS = (against_the_cpu, arithmetic, collectives)
