"""Training a transformation h(old, side-information) -> new (FCT, section 4.2; FastFill, section 4)."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from models.baselines import AffineTransformation
from models.transformed import Transformation
from trainers.loop import HELD_OUT, Step, Trainer
from trainers.optimizers import build_optimizer, build_schedule
from trainers.transformation.closed_forms import fit_closed_form
from trainers.transformation.config import TransformationConfig
from trainers.transformation.losses import TransformationObjective
from trainers.transformation.mixup import mixed
from trainers.transformation.pairs import Epochs, PairBatch, Pairs
from utils.batches import check_parts, share_of_batch, split_batch
from utils.distributed import World
from utils.precision import autocast
from utils.preemption import Preemption
from utils.runs import Run


class HeldOut(NamedTuple):
    """Pairs that are not trained on, and for how many epochs they may fail to get better."""

    batch: PairBatch
    patience: int


def fit_transformation(
    transformation: Transformation,
    objective: TransformationObjective,
    config: TransformationConfig,
    pairs: Pairs,
    run: Run,
    world: World,
    preemption: Preemption,
    held_out: HeldOut | None = None,
) -> None:
    """Set `transformation` to what the pairs ask for: computed where it has a closed form, else trained.

    Raises:
        UserError, Preempted: see `fit_closed_form` and `train_transformation`.
    """
    if isinstance(transformation, AffineTransformation):
        fit_closed_form(transformation, config.arch_params.arch, pairs, run, world)
    else:
        train_transformation(transformation, objective, config, pairs, run, world, preemption, held_out)


def train_transformation(
    transformation: Transformation,
    objective: TransformationObjective,
    config: TransformationConfig,
    pairs: Epochs,
    run: Run,
    world: World,
    preemption: Preemption,
    held_out: HeldOut | None = None,
) -> None:
    """Train `transformation` in place. Half-way, `switch_mode_to_eval` freezes its BN statistics (not its weights).

    With `held_out` the training ends early, at the weights with the smallest objective on it. With `mixup` the items
    that it trains on are mixed, those held out are not.

    Raises:
        UserError: the batch is too small for batch normalisation; see also `Trainer.fit`.
        Preempted: see `Trainer.fit`.
    """
    assert config.epochs is not None
    assert config.optimizer_params is not None
    epochs = config.epochs
    of_files = config.embeddings_params is not None
    check_parts(
        len(pairs),
        config.batch_size,
        None,
        world,
        key=f"{'embeddings_params' if of_files else 'dataset_params'}.batch_size",
        trains_on_one=lambda: not any(isinstance(module, nn.BatchNorm1d) for module in transformation.modules()),
    )
    transformation.to(world.device)
    objective.to(world.device)

    def step(model: nn.Module, batch: PairBatch) -> Step:
        with autocast(run.precision, world.device):
            transformed = model(batch.old, batch.side_info)
        return Step(objective(transformed, batch.new, batch.labels), len(batch.labels))

    def batches(epoch: int) -> Iterator[PairBatch]:
        if config.mixup is None:
            return pairs.batches(epoch)
        draws = {"seed": config.seed, "epoch": epoch, "rank": world.rank}
        return mixed(pairs.batches(epoch), config.mixup, objective.num_classes, **draws)

    def set_mode(model: nn.Module, epoch: int) -> None:
        model.train(not (config.switch_mode_to_eval and epoch >= epochs / 2))

    def validate(epoch: int) -> dict[str, float]:
        if held_out is None:
            return {}
        transformation.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=world.device)  # loss, items
        own: PairBatch = share_of_batch(held_out.batch, world)
        with torch.no_grad():
            # A contrast depends on the number of items, so the parts are as large as the batches.
            for part, count in split_batch(own, world.local_batch(config.batch_size)):
                if count:  # or there are more processes than pairs
                    sums[0] += step(transformation, part).loss.double() * count
                    sums[1] += count
        loss, count = world.sum(sums).tolist()  # so that all processes stop at the same epoch
        return {HELD_OUT: loss / count}

    Trainer(
        transformation,
        build_optimizer(transformation, config.optimizer_params),
        build_schedule(config.lr_policy_params, config.optimizer_params, epochs),
        epochs=epochs,
        items=len(pairs),
        batch_size=config.batch_size,
        batches=batches,
        step=step,
        run=run,
        world=world,
        preemption=preemption,
        compilation=config.compile,
        set_mode=set_mode,
        validate=validate,
        patience=None if held_out is None else held_out.patience,
    ).fit()
