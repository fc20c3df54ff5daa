"""Fitting a transformation to a sample of paired embeddings: no model and no image."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from data.lengths import zeros_kept
from models.baselines import AffineTransformation
from models.config import CLOSED_FORMS
from models.modes import in_eval_mode
from models.standardisation import Standardisation, mean_and_scale
from models.transformations import TRANSFORMATIONS, build_transformation, transformation_arguments
from models.transformed import Network, Transformation
from trainers.budget import Clock, Limit
from trainers.loop import train
from trainers.transformation.closed_forms import Affine, fit_closed_form, procrustes, take_closed_form
from trainers.transformation.config import PAPERS_EPOCHS, FitConfig, ObjectiveParams
from trainers.transformation.division import FittingData
from trainers.transformation.losses import build_objective
from trainers.transformation.residuals import Regression, squared_errors
from trainers.transformation.task import TransformationTask
from utils.distributed import World
from utils.errors import UserError
from utils.files import sha256_of
from utils.preemption import Preemption
from utils.runs import Run

FILES = ("old", "new", "side_info", "labels", "classifier")  # keys that name one
STEPS = 1500  # of a training that starts from ridge
FEWEST_EPOCHS = 20
WIDTHS = (512, 384, 256, 192, 128, 96, 64, 48, 32)  # of a branch; the papers' are 256 at 128 dimensions
WIDENING = 4  # of the mixer
PARAMETERS = 3
OPERATIONS = 6e12  # some minutes on two CPU cores
# (h of the held-out old embeddings, their new ones, their labels) -> what is measured, its value for each query (q,)
Score = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], tuple[str, torch.Tensor]]


class Trial(NamedTuple):
    """How a transformation does on the held-out pairs."""

    measure: str  # of retrieval
    of_queries: torch.Tensor  # (q,) float64, its values: higher is better
    error: float  # mean squared error a dimension

    @property
    def score(self) -> float:
        """The mean over queries."""
        return float(self.of_queries.mean())


@dataclass(frozen=True)
class Fitted:
    """A transformation of one kind."""

    arguments: dict[str, Any]  # of `build_transformation`
    transformation: Transformation
    run: Run
    trial: Trial | None  # None where nothing is held out
    seconds: float = 0.0
    ending: str = ""  # why a training ended before its last epoch


@dataclass(frozen=True)
class Allowance:
    """How long a method may take, and what it has to beat."""

    clock: Clock
    until: float = float("inf")  # seconds on the clock
    to_beat: float = float("-inf")  # the best score of other methods


def fit(
    config: FitConfig,
    data: FittingData,
    regression: Regression | None,
    score: Score,
    world: World,
    preemption: Preemption,
    allowance: Allowance,
) -> Fitted:
    """Fit the transformation that `config` names, and try it on the held-out pairs.

    A network starts from the ridge regression, and learns what that leaves over: of its epochs and the start, what
    retrieves best with the held-out pairs is kept, so it is never worse there. It works on standardised embeddings, and
    its losses do not hang on their scale either (`in_units_of`), nor, but where h has length 1, on their mean
    (`origin`): so embeddings of any scale and offset train alike.

    With `held_out` 0 this is the papers' recipe: embeddings and losses as they are, every epoch, from random weights,
    and no uncertainty but the transformation's own. What is held out for a refinement is then for that alone.

    Args:
        regression: of the training pairs; None with `held_out` 0.
        score: the quality of retrieval.

    Raises:
        UserError: arguments or losses that do not go together; see also `fit_closed_form`, `TransformationTask` and
            `train`.
        Preempted: SIGTERM came.
    """
    torch.manual_seed(config.seed)
    began = allowance.clock.spent()
    arguments = arguments_of(config, data)
    if config.method not in CLOSED_FORMS:
        config = replace(config, epochs=epochs_for(config, len(data.training)))
    transformation = build_transformation(**arguments)
    origin = None
    if transformation.standards is not None:
        assert regression is not None
        standardise(transformation.standards, data)
        set_start(transformation, regression.solution)
        if not data.normalised:
            origin = cast(Standardisation, transformation.standards["new"]).mean
    disc = config.objective_params.discriminative_loss
    if disc is not None and disc.name in ("LabelSmoothing", "SupCon") and not data.has_labels:
        raise UserError(
            f"objective_params.discriminative_loss.name: {disc.name} needs labels=FILE; InfoNCE does without"
        )
    losses = config.objective_params if regression is None else in_units_of(data, config.objective_params)
    objective = build_objective(losses, data.classifier, transformation, origin)
    run = Run(config.output, config, world)
    ending = ""
    if isinstance(transformation, AffineTransformation):
        if regression is None:
            fit_closed_form(transformation, config.method, data.training, run, world)
        else:
            solution = regression.solution if config.method == "ridge" else procrustes(regression.moments)
            take_closed_form(transformation, config.method, solution, regression.moments.count, run, world)
    else:
        held_out = None if regression is None else data.held_out
        task = TransformationTask(transformation, objective, data.training, config, run.precision, world, held_out)
        limit = None
        if held_out is not None:
            task.score = lambda: measured(try_out(transformation, data, score))
            measure, start = measured(try_out(transformation.to(world.device), data, score))
            limit = Limit(config.method, allowance.clock, measure, start, allowance.until, allowance.to_beat)
        outcome = train(task, transformation, config.loop, run, world, preemption, limit)
        ending = outcome.ending
        if outcome.best < 0 and isinstance(transformation, Network):
            transformation.return_to_start()
    transformation.to(world.device)
    trial = None if regression is None else try_out(transformation, data, score)
    return Fitted(arguments, transformation, run, trial, allowance.clock.spent() - began, ending)


def epochs_for(config: FitConfig, pairs: int) -> int:
    """The epochs of a training: those that the config says, or else about `STEPS` steps from the start on."""
    if config.epochs is not None or not config.held_out:
        return config.epochs or PAPERS_EPOCHS
    return max(FEWEST_EPOCHS, min(PAPERS_EPOCHS, ceil(STEPS * config.batch_size / pairs)))


def arguments_of(config: FitConfig, data: FittingData) -> dict[str, Any]:
    """The arguments of `build_transformation`: with held-out pairs those of a network that starts from ridge."""
    arguments = {**transformation_arguments(config.arch_params, data.dims), "normalised": data.normalised}
    if "old" in data.wider:
        arguments["wider_old_dim"], arguments["unit_prefix"] = data.wider["old"]
    if not config.held_out or config.method in CLOSED_FORMS:
        return arguments
    if TRANSFORMATIONS[config.method].old_stands_in:
        pairs = len(data.training)
        width = width_for(pairs, epochs_for(config, pairs), data.dims)
        arguments["branch_dim"] = min(width, 2 * data.dims["new"])
        if config.inner_dim is None:
            arguments["inner_dim"] = WIDENING * width
    return {**arguments, "standardised": True, "start_inputs": sum(data.dims.values()) - data.dims["new"]}


def width_for(pairs: int, epochs: int, dims: dict[str, int]) -> int:
    """The width of the branches of FCT's and FastFill's networks, whose mixer is `WIDENING` times as wide.

    The papers' grows with the square of the dimension. Here it is the largest of `WIDTHS` that neither has more than
    `PARAMETERS` parameters for each number of the new embeddings, nor needs more than `OPERATIONS` to be trained, a
    parameter taking six for each pair in each epoch.
    """
    old, new, side = dims["old"], dims["new"], dims.get("side_info", dims["old"])
    most = min(PARAMETERS * pairs * new, OPERATIONS / (6 * pairs * epochs))
    for width in WIDTHS:
        inner, branch = WIDENING * width, min(width, 2 * new)
        if (old + side + 2 * branch) * branch + (2 * branch + inner + new) * inner <= most:
            return width
    return WIDTHS[-1]


def set_start(transformation: Transformation, solution: Affine) -> None:
    """Set the start of a transformation to a solution for embeddings as they are, between its `standards`."""
    assert isinstance(transformation, Network)
    assert transformation.standards is not None
    assert transformation.start is not None
    standards = {role: cast(Standardisation, standard) for role, standard in transformation.standards.items()}
    inputs = [standards[role] for role in ("old", "side_info") if role in standards]
    columns = solution.weight.shape[1]
    means = torch.cat([standard.mean.double() for standard in inputs])[:columns]
    scales = torch.cat([standard.scale.double().expand(len(standard.mean)) for standard in inputs])[:columns]
    new = standards["new"]
    with torch.no_grad():
        transformation.start.weight.copy_(solution.weight * scales / new.scale.double())
        bias = solution.bias + solution.weight @ means - new.mean.double()
        transformation.start.bias.copy_(bias / new.scale.double())


@torch.no_grad()
def try_out(transformation: Transformation, data: FittingData, score: Score) -> Trial:
    """Try a transformation on the held-out pairs."""
    assert data.judged is not None
    items = data.judged
    with in_eval_mode(transformation):
        h = zeros_kept(transformation(items.old, items.side_info).embedding, items.old)
    measure, of_queries = score(h, items.new, items.labels if data.has_labels else None)
    return Trial(measure, of_queries, float(squared_errors(transformation, items).mean()))


def measured(trial: Trial) -> tuple[str, float]:
    """What is measured, and its value: of an epoch, for its log record."""
    return trial.measure, trial.score


def standardise(standards: nn.ModuleDict, data: FittingData) -> None:
    """Set the means and scales of a transformation's `standards` to those of the pairs to train on.

    Raises:
        UserError: the old embeddings, and any side-information, are the same for all items.
    """
    (view,) = data.training.views
    found = {role: mean_and_scale(table) for role, table in view.embeddings.items()}
    if not any(scale for role, (_, scale) in found.items() if role != "new"):
        raise UserError("old: the old embeddings are all the same")
    for role, (mean, scale) in found.items():
        standard = cast(Standardisation, standards[role])
        standard.mean.copy_(mean)
        standard.scale.fill_(scale or 1.0)  # of what never varies, the mean is all there is to take away


def in_units_of(data: FittingData, params: ObjectiveParams) -> ObjectiveParams:
    """`objective_params` with L_sim in units of the new embeddings' variance, which is near 1 in the papers' models.

    So L_sim and L_disc keep their balance whatever the scale of the embeddings, length 1 included.
    """
    (view,) = data.training.views
    _, scale = mean_and_scale(view.embeddings["new"])
    if not scale:
        raise UserError("new: the new embeddings are all the same")
    similarity = params.similarity_loss
    unit = {"mse": scale**2, "l1": scale, "cosine": 1.0}[similarity.name]
    return replace(params, similarity_loss=replace(similarity, mu_similarity=similarity.mu_similarity / unit))


def provenance(config: FitConfig, data: FittingData, fitted: dict[str, Fitted]) -> dict[str, Any]:
    """Which files a transformation was fitted to, and how each kind did, as plain values for its model file."""
    files = {name: path for name in FILES if (path := getattr(config, name))}
    return {
        "files": {name: {"path": path, "sha256": sha256_of(path)} for name, path in files.items()},
        **outcome(data, fitted),
    }


def outcome(data: FittingData, fitted: dict[str, Fitted]) -> dict[str, Any]:
    """What a transformation was fitted to, and how each kind did, as plain values."""
    return {
        "dims": data.dims,
        "normalised": data.normalised,
        "wider": {role: {"dim": dim, "of_length_1": unit} for role, (dim, unit) in data.wider.items()},
        "pairs": {
            "training": len(data.training),
            "held_out": 0 if data.held_out is None else len(data.held_out.labels),
        },
        "held_out": {
            method: {one.trial.measure: one.trial.score, "mse": one.trial.error, "seconds": round(one.seconds, 1)}
            for method, one in fitted.items()
            if one.trial is not None
        },
    }
