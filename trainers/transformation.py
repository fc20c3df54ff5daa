"""Training a transformation h(old, side-information) -> new (FCT, section 4.2; FastFill, section 4)."""

from torch import nn

from models.baselines import AffineTransformation
from models.transformed import Transformation
from trainers.closed_form import fit_closed_form
from trainers.loop import Step, Trainer
from trainers.objectives import TransformationObjective
from trainers.optimizers import build_optimizer, build_schedule
from trainers.pairs import PairBatch, Pairs
from utils.distributed import World
from utils.precision import autocast
from utils.preemption import Preemption
from utils.runs import Run
from utils.schema import TransformationConfig


def fit_transformation(
    transformation: Transformation,
    objective: TransformationObjective,
    config: TransformationConfig,
    pairs: Pairs,
    run: Run,
    world: World,
    preemption: Preemption,
) -> None:
    """Set `transformation` to what the pairs ask for: computed where it has a closed form, else trained.

    Raises:
        UserError, Preempted: see `fit_closed_form` and `train_transformation`.
    """
    if isinstance(transformation, AffineTransformation):
        fit_closed_form(transformation, config.arch_params.arch, pairs, run, world)
    else:
        train_transformation(transformation, objective, config, pairs, run, world, preemption)


def train_transformation(
    transformation: Transformation,
    objective: TransformationObjective,
    config: TransformationConfig,
    pairs: Pairs,
    run: Run,
    world: World,
    preemption: Preemption,
) -> None:
    """Train `transformation` in place. Half-way, `switch_mode_to_eval` freezes its BN statistics (not its weights).

    Raises:
        UserError, Preempted: see `Trainer.fit`.
    """
    assert config.epochs is not None
    assert config.optimizer_params is not None
    epochs = config.epochs
    transformation.to(world.device)
    objective.to(world.device)

    def step(model: nn.Module, batch: PairBatch) -> Step:
        with autocast(run.precision, world.device):
            transformed = model(batch.old, batch.side_info)
        return Step(objective(transformed, batch.new, batch.labels), len(batch.labels))

    def set_mode(model: nn.Module, epoch: int) -> None:
        model.train(not (config.switch_mode_to_eval and epoch >= epochs / 2))

    Trainer(
        transformation,
        build_optimizer(transformation, config.optimizer_params),
        build_schedule(config.lr_policy_params, config.optimizer_params, epochs),
        epochs=epochs,
        items=len(pairs),
        batch_size=config.dataset_params.batch_size,
        batches=pairs.batches,
        step=step,
        run=run,
        world=world,
        preemption=preemption,
        compilation=config.compile,
        set_mode=set_mode,
    ).fit()
