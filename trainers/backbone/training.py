"""Training an embedding model for what its config names as the objective."""

from typing import Any

import torch
from torch import nn

from data.datasets import resolve_image_size
from data.images import ImageSet
from embedding.memory import even_part, most_that_train, trains_on
from models.backbones import Backbone
from models.modes import modes_kept
from trainers.backbone.bct import Compatible, OldModel, completed_classifier
from trainers.backbone.classification import Classification
from trainers.backbone.config import BackboneConfig
from trainers.backbone.simclr import ProjectedBackbone, ProjectionHead, SimCLR
from trainers.loop import Task, train
from utils.batches import check_parts
from utils.distributed import World
from utils.errors import UserError
from utils.preemption import Preemption
from utils.runs import Run


def train_backbone(
    model: Backbone,
    config: BackboneConfig,
    training: ImageSet,
    validation: ImageSet | None,
    run: Run,
    world: World,
    preemption: Preemption,
    old: OldModel | None = None,
    image_size: int | None = None,
) -> None:
    """Train `model` in place on this process's share of `training`, for what the config names as the objective.

    Args:
        validation: images of the trained classes, for the figures in the log; None where the config wants none.
        old: the model to be compatible with; needed with `bct_params`.
        image_size: pixels a side; None: as the config or the data set says.

    Raises:
        UserError: `sync_bn` over several processes without GPUs, a batch too small for batch normalisation or too large
            for the memory; see also `train`.
        Preempted: see `train`.
    """
    batch_size, size = config.dataset_params.batch_size, image_size or resolve_image_size(config.dataset_params)
    setting = (config, training, validation, run.precision, world)
    task: Task[Any] = Classification(*setting)
    module: nn.Module = model
    views = 1  # of an image in a batch
    if config.objective == "simclr":
        task, views = SimCLR(*setting), 2
        simclr = config.simclr_params
        head = ProjectionHead(model.fc.in_channels, simclr.projection_hidden_dim, simclr.projection_dim)
        module = ProjectedBackbone(model, head)
    elif old is not None and config.bct_params is not None:
        classifier = completed_classifier(old, training, batch_size, run.precision, world)
        task = Compatible(*setting, classifier, config.bct_params.weight)
    # Convolutions over channels-last images are the faster ones, in bf16 and in float32.
    module.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.zeros(1, 3, size, size, device=world.device)
    with modes_kept(module):
        module.train()
        micro_batch = images_at_once(module, image, views, config, run, world)
        check_parts(
            len(training),
            batch_size,
            micro_batch,
            world,
            key="dataset_params.batch_size",
            trains_on_one=lambda: (config.sync_bn and world.size > 1) or trains_on(module, image, views),
        )
    if config.sync_bn:
        synchronise_batch_norms(module, world)
    train(task, module, config.loop(micro_batch), run, world, preemption)


def images_at_once(
    module: nn.Module, image: torch.Tensor, views: int, config: BackboneConfig, run: Run, world: World
) -> int | None:
    """How many images a process takes through `module` at once: `micro_batch`; None: its whole share of a batch.

    Args:
        image: (1, 3, H, W) of the kind that it takes.
        views: of an image in a batch; where they are several, all of a batch are compared and must go through at once.

    Raises:
        UserError: the memory is too small.
    """
    share = world.local_batch(config.dataset_params.batch_size)

    def fitting(count: int) -> int:
        return most_that_train(module, image, count * views, run.precision, world) // views

    if config.micro_batch is None:
        return None
    if views > 1:
        if (most := fitting(share)) < share:
            raise UserError(
                f"dataset_params.batch_size: the {share} images of a process's batch do not fit into its memory, about "
                f"{most} would, and simclr compares all of a batch; lower it"
            )
        return None
    if config.micro_batch == "auto":
        chosen = run.decide("micro_batch", lambda: even_part(share, fitting(share)))
        if chosen == 0:
            raise UserError(
                f"dataset_params.image_size: not even one image of {image.shape[-1]} px fits into the memory in "
                "training; take smaller images, or a narrower network"
            )
        if chosen < share and world.is_main:
            print(f"micro_batch: {chosen} of {share} images fit at a time; batch statistics are theirs", flush=True)
        return chosen
    at_once = min(config.micro_batch, share)
    if world.device.type != "cuda" and (most := fitting(at_once)) < at_once and world.is_main:  # a GPU says so itself
        print(f"micro_batch: {at_once} images at a time may not fit into the memory; about {most} would", flush=True)
    return at_once


def synchronise_batch_norms(model: nn.Module, world: World) -> None:
    """Let every batch normalisation use the statistics of all processes' images, in place; names stay as they are.

    Of one process's images it does so anyway.

    Raises:
        UserError: several processes have no GPUs.
    """
    if world.size == 1:
        return
    if world.device.type != "cuda":
        raise UserError("sync_bn: needs GPUs; set it to False on CPUs, each process then uses its own statistics")
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
