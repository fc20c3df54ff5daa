"""FCT's transformation: how fast it transforms, and what 80 epochs on 50,000 embeddings take."""

import statistics
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.bench_training import BATCH, DIM, EPOCHS, ITEMS, LR, WEIGHT_DECAY, train_on_pairs
from benchmarks.bench_training import STEPS as TRAINING_STEPS
from benchmarks.harness import DEVICE, Figure, figure, now, seconds
from embedding.cache import rounded
from models.folding import folded
from models.transformations import build_transformation
from trainers.config import Compile
from trainers.transformation.pairs import PairsInMemory, View
from utils.distributed import World
from utils.precision import kernels, resolve_precision

INNER_DIM, TINY_INNER_DIM = 2048, 32
VIEWS = 2  # an image and its mirror image, both embedded once


def fct(inner_dim: int) -> torch.nn.Module:
    """FCT's transformation with the papers' branches, on the device."""
    dims = {"old_embedding_dim": DIM, "new_embedding_dim": DIM, "side_info_dim": DIM, "inner_dim": inner_dim}
    return build_transformation("fct", **dims).to(DEVICE)


def rate(work: Callable[[], object], items: int, turns: int) -> list[float]:
    """Items a second in each turn, after one that warms up."""
    work()
    return [items / seconds(work) for _ in range(turns)]


def transforming(tiny: bool) -> Iterator[Figure]:
    """Vectors a second: on the device alone, and from and to the host as `upgrade_gallery.py transform` keeps them."""
    from upgrade.computing import CPU_BATCH, GPU_BATCH, transform_rows  # needs pyarrow, the other steps do not
    from upgrade.state import State

    rows = 2 * CPU_BATCH if tiny else 16 * GPU_BATCH
    module = folded(fct(TINY_INNER_DIM if tiny else INNER_DIM).eval(), resolve_precision("auto", DEVICE))
    old = torch.randn(rows, DIM, device=DEVICE)

    def on_the_device() -> None:
        with torch.inference_mode():
            for part in old.split(GPU_BATCH):
                module(part)

    bar = 20e6 if DEVICE.type == "cuda" and not tiny else None
    yield figure("transform, on the device", rate(on_the_device, rows, 3), "vectors/s", at_least=bar)
    given, tool = [old.cpu().numpy().astype(np.float16)], {"version": "", "git_revision": None, "torch": ""}
    state = State("new", DIM, "float16", False, False, None, "old", DIM, False, "", rows, "", "", None, "auto", tool)
    through_the_host = rate(lambda: transform_rows(module, given, state, DEVICE, "h", 0), rows, 3)
    yield figure("  transform, host to host in float16", through_the_host, "vectors/s")


def made_up_pairs(items: int, world: World) -> PairsInMemory:
    """Embeddings of random numbers, as the cache keeps them."""
    torch.manual_seed(0)
    labels = torch.zeros(items, dtype=torch.int64, device=DEVICE)
    views = [
        View({role: rounded(torch.randn(items, DIM, device=DEVICE).relu()) for role in ("old", "new")}, labels)
        for _ in range(VIEWS)
    ]
    return PairsInMemory(views, batch_size=BATCH, world=world, seed=0)


def training(tiny: bool) -> Iterator[Figure]:
    """80 epochs on 50,000 embeddings by the project's own trainer, eager and compiled."""
    items, epochs, inner_dim = (BATCH, 2, TINY_INNER_DIM) if tiny else (ITEMS, EPOCHS, INNER_DIM)
    pairs = made_up_pairs(items, World(device=DEVICE))
    bar = 5.0 if DEVICE.type == "cuda" and not tiny else None
    ways: tuple[Compile, ...] = ("off",) if tiny else ("off", "on")
    for compiles in ways:
        spent = seconds(lambda: train_on_pairs(pairs, inner_dim, epochs, compiles=compiles))  # noqa: B023 - done here
        name = "eager" if compiles == "off" else "compiled, with its compilation"
        yield figure(f"training of FCT, {epochs} epochs, {items:,} items, {name}", spent, "s", at_most=bar)
        bar = None


def graph(tiny: bool) -> Iterator[Figure]:
    """What steps would take if a whole one were a CUDA graph, on one batch that stays in place."""
    if DEVICE.type != "cuda":
        return
    module = fct(TINY_INNER_DIM if tiny else INNER_DIM).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, fused=True, capturable=True)
    old, new = (torch.randn(BATCH, DIM, device=DEVICE) for _ in range(2))
    precision = resolve_precision("auto", DEVICE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            h = module(old).embedding
        F.mse_loss(h.float(), new).backward()
        optimizer.step()

    with kernels(DEVICE, fast=True):
        yield figure("step of FCT, batch 1024, eager", [each * 1e3 for each in step_times(step)], "ms")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            step()
        times = step_times(captured.replay)
    yield figure("  the same as a CUDA graph", [each * 1e3 for each in times], "ms")
    yield figure("  80 epochs of such steps", TRAINING_STEPS * statistics.median(times), "s")


def step_times(step: Callable[[], object], turns: int = 5, steps: int = 100) -> list[float]:
    """Seconds a step in each turn."""
    times = []
    for _ in range(turns):
        started = now()
        for _ in range(steps):
            step()
        times.append((now() - started) / steps)
    return times


STEPS = (transforming, training, graph)
