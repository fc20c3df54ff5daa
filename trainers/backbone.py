"""Training an embedding model for what its config names as the objective."""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn

from data.images import ImageSet
from models.resnet import ResNet
from trainers.classification import Classification
from trainers.compatible import Compatible, OldModel
from trainers.contrastive import SimCLR
from trainers.loop import Step, Trainer
from trainers.optimizers import build_optimizer, build_schedule
from utils.distributed import World
from utils.errors import UserError
from utils.preemption import Preemption
from utils.runs import Run
from utils.schema import BackboneConfig


class BackboneObjective(Protocol):
    """What a backbone is trained for."""

    module: nn.Module  # what is trained: the backbone, and what the objective needs beside it

    def batches(self, epoch: int) -> Iterable[Any]:
        """This process's batches of an epoch, a function of its argument."""

    def step(self, model: nn.Module, batch: Any) -> Step:
        """The loss of a batch by `model`, which is the data-parallel `module`."""

    def validate(self) -> dict[str, float]:
        """Figures on the validation split, as fractions."""


def train_backbone(
    model: ResNet,
    config: BackboneConfig,
    training: ImageSet,
    validation: ImageSet,
    run: Run,
    world: World,
    preemption: Preemption,
    old: OldModel | None = None,
) -> None:
    """Train `model` in place on this process's share of `training`.

    Args:
        validation: images of the trained classes, for the figures in the log.
        old: the model to be compatible with; needed with `bct_params`.

    Raises:
        UserError: `sync_bn` over several processes without GPUs; see `Trainer.fit`.
        Preempted: see `Trainer.fit`.
    """
    objective: BackboneObjective
    if config.objective == "simclr":
        objective = SimCLR(model, config, training, validation, run.precision, world)
    elif old is not None:
        objective = Compatible(model, config, training, validation, run.precision, world, old)
    else:
        objective = Classification(model, config, training, validation, run.precision, world)
    if config.sync_bn:
        synchronise_batch_norms(objective.module, world)
    # Convolutions over channels-last images are the faster ones, in bf16 and in float32.
    objective.module.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def validate(epoch: int) -> dict[str, float]:
        every = config.validate_every
        if not every or ((epoch + 1) % every and epoch + 1 < config.epochs):
            return {}
        objective.module.eval()
        return objective.validate()

    trainer: Trainer[Any] = Trainer(
        objective.module,
        build_optimizer(objective.module, config.optimizer_params),
        build_schedule(config.lr_policy_params, config.optimizer_params, config.epochs),
        epochs=config.epochs,
        items=len(training),
        batch_size=config.dataset_params.batch_size,
        batches=objective.batches,
        step=objective.step,
        run=run,
        world=world,
        preemption=preemption,
        micro_batch=config.micro_batch,
        compilation=config.compile,
        validate=validate,
    )
    trainer.fit()


def synchronise_batch_norms(model: nn.Module, world: World) -> None:
    """Let every batch normalisation use the statistics of all processes' images, in place; names stay as they are.

    Of one process's images it does so anyway.

    Raises:
        UserError: several processes have no GPUs.
    """
    if world.size == 1:
        return
    if world.device.type != "cuda":
        raise UserError(
            "sync_bn: needs GPUs; set it to False on CPUs, each process then uses its own statistics"
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
