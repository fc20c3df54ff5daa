"""Training an embedding model as a classifier (FCT, section 4.1)."""

import torch
from torch import nn
from torch.nn import functional as F

from data.images import Batch, ImageSet
from models.resnet import ResNet
from trainers.loop import Step, Trainer
from trainers.optimizers import build_optimizer, build_schedule
from utils.distributed import World
from utils.errors import UserError
from utils.precision import autocast
from utils.preemption import Preemption
from utils.runs import Run
from utils.schema import BackboneConfig


def train_backbone(
    model: ResNet,
    config: BackboneConfig,
    training: ImageSet,
    validation: ImageSet,
    run: Run,
    world: World,
    preemption: Preemption,
) -> None:
    """Train `model` in place on this process's share of `training`, with the label-smoothed cross-entropy.

    Args:
        validation: images of the trained classes, for the accuracy in the log.

    Raises:
        UserError: `sync_bn` without GPUs; see `Trainer.fit`.
        Preempted: see `Trainer.fit`.
    """
    precision, batch_size = run.precision, config.dataset_params.batch_size
    if config.sync_bn:
        synchronise_batch_norms(model, world)
    # Convolutions over channels-last images are the faster ones, in bf16 and in float32.
    model.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def step(model: nn.Module, batch: Batch) -> Step:
        with autocast(precision, world.device):
            logits, _ = model(batch.images)
        logits = logits.float()
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=config.label_smoothing)
        return Step(loss, len(batch.labels), (logits.argmax(1) == batch.labels).sum())

    def validate(epoch: int) -> dict[str, float]:
        every = config.validate_every
        if not every or ((epoch + 1) % every and epoch + 1 < config.epochs):
            return {}
        counts = torch.zeros(2, dtype=torch.float64, device=world.device)
        model.eval()
        with torch.inference_mode(), autocast(precision, world.device):
            for batch in validation.view_batches(0, world.local_batch(batch_size)):
                logits, _ = model(batch.images)
                counts += torch.stack([(logits.argmax(1) == batch.labels).sum(), counts.new_tensor(len(batch.labels))])
        correct, count = world.sum(counts).tolist()
        return {"validation_accuracy": correct / count}

    Trainer(
        model,
        build_optimizer(model, config.optimizer_params),
        build_schedule(config.lr_policy_params, config.optimizer_params, config.epochs),
        epochs=config.epochs,
        items=len(training),
        batch_size=batch_size,
        batches=lambda epoch: training.training_batches(epoch, batch_size),
        step=step,
        run=run,
        world=world,
        preemption=preemption,
        micro_batch=config.micro_batch,
        compilation=config.compile,
        validate=validate,
    ).fit()


def synchronise_batch_norms(model: nn.Module, world: World) -> None:
    """Let every batch normalisation use the statistics of all processes' images, in place; names stay as they are.

    Raises:
        UserError: the processes have no GPUs.
    """
    if world.device.type != "cuda":
        raise UserError("sync_bn: needs GPUs; on CPUs leave it out, each process then uses its own statistics")
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
