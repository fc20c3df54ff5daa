"""How many images a network takes at once: as many as fit into the memory that is free.

What a pass needs is counted, not measured: the bytes that are live after each of its operations, in fp32 where bf16 is
emulated. They are linear in the number of images, so two small passes tell them for any number. On a GPU, where kernels
take workspaces as they please, a training step is tried out instead.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from data.images import Batch
from utils.batches import split_batch
from utils.distributed import World
from utils.errors import UserError
from utils.memory import free_bytes
from utils.precision import Resolved, autocast, computes_bf16, kernels

FEW = 2  # images of the smaller pass, of which batch normalisation can take statistics
# Share of the free memory to fill with what is counted. Kernels take workspaces and an allocator leaves gaps: a process
# on a CPU took 0.9 times the count for ResNet50 at 224 px, and up to 1.4 times for networks of few channels.
PLANNED = 2 / 3
OPTIMIZER_COPIES = 2  # of the parameters, that an optimizer may keep
# An evaluation holds no more than so many times the bytes of its images at once, whatever the network: a batch for
# which that is free need not be looked at.
SURELY = 1000
# Frozen networks on a CPU take so many bytes of images at a time, 8 of 224 px, say: the maps of few images stay in its
# caches. ResNet50 embeds a batch of 64 in two thirds of the time that it takes in one piece.
CPU_PART = 5 * 2**20

Pass = Callable[[Tensor], object]  # takes images (B, 3, H, W) through a network


def most_that_train(module: nn.Module, image: Tensor, count: int, precision: Resolved, world: World) -> int:
    """How many of `count` images `module` can be trained on at once; 0: not even one. Every process finds the same.

    Args:
        module: in train mode, on the device; its state stays as it is.
        image: (1, 3, H, W) of the kind that it takes, on the device.
        count: images of a process's batch, which lies in memory as a whole.
    """
    parameters = sum(parameter.nbytes for parameter in module.parameters())
    exchanged = world.size > 1  # gradients have a second place
    reserve = (OPTIMIZER_COPIES + exchanged) * parameters + count * image.nbytes
    run = _training_pass(module, precision)
    if world.device.type == "cuda":
        with kernels(world.device, fast=True):
            return most_by_trial(run, image, count, reserve, world)
    free = free_bytes(world.device)
    most = count
    if free is not None:
        counted = run if computes_bf16(world.device) else _training_pass(module, "fp32")
        most = most_within(int(PLANNED * free) - reserve, counted, [*module.parameters()], image, count)
    return int(world.gather_rows(torch.tensor([most])).min())


def _training_pass(module: nn.Module, precision: Resolved) -> Pass:
    """Forward and backward through `module`, whose gradients and buffers stay as they are."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def run(images: Tensor) -> None:
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        with autocast(precision, images.device):
            outputs = torch.func.functional_call(module, buffers, (images,))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.grad(sum(output.float().sum() for output in outputs), trained, allow_unused=True)

    return run


def trains_on(module: nn.Module, image: Tensor, count: int) -> bool:
    """Whether `module`, in train mode, takes `count` copies of an image (1, 3, H, W).

    It does not take a single one where a batch normalisation would have one value a channel.
    """
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        with torch.no_grad():
            torch.func.functional_call(module, buffers, (_copies(image, count),))
    except ValueError:
        return False
    return True


def most_by_trial(run: Pass, image: Tensor, count: int, reserve: int, world: World) -> int:
    """How many of `count` images `run` takes at once beside `reserve` bytes: halved while a process lacks memory."""
    size = count
    while size:
        fits = _fits(run, image, size, reserve)
        if image.device.type == "cuda":
            torch.cuda.empty_cache()
        if not world.any(not fits):
            break
        size = even_part(count, size // 2)
    return size


def _fits(run: Pass, image: Tensor, size: int, reserve: int) -> bool:
    try:
        held = torch.empty(reserve, dtype=torch.uint8, device=image.device)
        run(_copies(image, size))
        del held
    except torch.OutOfMemoryError:
        return False
    return True


def most_within(budget: int, run: Pass, present: Sequence[Tensor], image: Tensor, count: int) -> int:
    """How many of `count` images `run` can take at once within `budget` bytes; 0: not even one.

    Args:
        present: tensors that are there before, parameters and buffers.
    """
    few = live_bytes(run, present, _copies(image, FEW))
    if max(few) * max(count, FEW) <= FEW * budget:  # even if all of it grew with the images
        return count
    twice = live_bytes(run, present, _copies(image, 2 * FEW))
    if len(few) != len(twice):  # another number of images takes other operations
        few, twice = [max(few)], [max(twice)]
    most = count
    for less, more in zip(few, twice, strict=True):
        each = (more - less) / FEW
        fixed = less - FEW * each
        if fixed + count * each > budget:
            most = min(most, int((budget - fixed) / each) if each > 0 else 0)
    return max(most, 0)


def _copies(image: Tensor, count: int) -> Tensor:
    """`count` copies of an image (1, 3, H, W), channels last."""
    return image.expand(count, -1, -1, -1).contiguous(memory_format=torch.channels_last)


def live_bytes(run: Pass, present: Iterable[Tensor], images: Tensor) -> list[int]:
    """The bytes that are live after each operation of `run`, beside those of `present` and `images`."""
    with _LiveBytes([*present, images]) as counted:
        run(images)
    return counted.after_each or [0]


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that come and go while it is on."""

    def __init__(self, present: Iterable[Tensor]) -> None:
        super().__init__()
        self.live, self.after_each = 0, list[int]()
        self.present = [tensor.untyped_storage() for tensor in present]
        self.known: dict[int, Any] = {id(storage): None for storage in self.present}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for output in outputs if isinstance(outputs, tuple | list) else (outputs,):
            if isinstance(output, Tensor):
                self._count(output.untyped_storage())
        self.after_each.append(self.live)
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self.known:
            return

        def gone(_: object) -> None:
            self.live -= size
            del self.known[key]

        self.live += size
        self.known[key] = weakref.ref(storage, gone)


def even_part(rows: int, most: int) -> int:
    """The size of equal parts of `rows`, at most `most`; of nearly equal ones where those would be twice as many.

    >>> even_part(1024, 300), even_part(10, 4), even_part(101, 50), even_part(7, 0)
    (256, 2, 34, 0)
    """
    if not most:
        return 0
    fewest = -(-rows // most)
    parts = next((parts for parts in range(fewest, min(2 * fewest, rows + 1)) if rows % parts == 0), fewest)
    return -(-rows // parts)


def in_parts_that_fit(
    batches: Iterable[Batch], run: Pass, models: Iterable[nn.Module], world: World
) -> Iterator[Batch]:
    """`batches` for an evaluation, each cut into parts that `run` takes at once, on a CPU also into parts of CPU_PART.

    Args:
        run: takes images through frozen models, in the context of the caller.
        models: those.

    Raises:
        UserError: not even one image fits.
    """
    largest = at_once = 0
    for batch in batches:
        if len(batch.images) > largest:
            largest = len(batch.images)
            at_once = _most_that_embed(batch.images, run, models, world)
            if at_once < largest and world.is_main:
                print(f"the memory is for {at_once} images at a time, not for the batch of {largest}", flush=True)
            if world.device.type == "cpu":
                at_once = min(at_once, even_part(largest, max(1, CPU_PART // batch.images[0].nbytes)))
        for part, _ in split_batch(batch, at_once):
            yield part


def _most_that_embed(images: Tensor, run: Pass, models: Iterable[nn.Module], world: World) -> int:
    free = free_bytes(world.device)
    if free is None or SURELY * images.nbytes <= free:
        return len(images)
    present = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    budget = int(PLANNED * free) - images.nbytes  # the next batch
    with nullcontext() if computes_bf16(world.device) else autocast("fp32", world.device):
        most = most_within(budget, run, present, images[:1], len(images))
    if not most:
        raise UserError(
            f"dataset_params.image_size: not even one image of {images.shape[-1]} px fits the {free / 2**30:.1f} GiB "
            "of memory that are free; take smaller images"
        )
    return even_part(len(images), most)
