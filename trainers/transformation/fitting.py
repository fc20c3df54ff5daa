"""Fitting a transformation to a sample of paired embeddings: no model and no image."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from data.lengths import zeros_kept
from models.baselines import AffineTransformation
from models.config import CLOSED_FORMS
from models.modes import in_eval_mode
from models.standardisation import Standardisation, mean_and_scale
from models.transformations import build_transformation, transformation_arguments
from models.transformed import Transformation
from trainers.loop import train
from trainers.transformation.closed_forms import fit_closed_form
from trainers.transformation.config import FitConfig, ObjectiveParams
from trainers.transformation.division import FittingData
from trainers.transformation.losses import build_objective
from trainers.transformation.pairs import PairBatch
from trainers.transformation.residuals import fit_residual_head, squared_errors
from trainers.transformation.task import TransformationTask
from utils.batches import share_of_batch
from utils.distributed import World
from utils.errors import UserError
from utils.files import sha256_of
from utils.preemption import Preemption
from utils.runs import Run

FILES = ("old", "new", "side_info", "labels", "classifier")  # keys that name one
# (h of the held-out old embeddings, their new ones, their labels) -> what is measured, and its value: higher is better
Score = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], tuple[str, float]]


class Trial(NamedTuple):
    """How a transformation does on the held-out pairs."""

    measure: str  # of retrieval
    score: float
    error: float  # mean squared error a dimension


@dataclass(frozen=True)
class Fitted:
    """A transformation of one kind."""

    arguments: dict[str, Any]  # of `build_transformation`
    transformation: Transformation
    run: Run
    trial: Trial | None  # None where nothing is held out


def fit(config: FitConfig, data: FittingData, score: Score, world: World, preemption: Preemption) -> Fitted:
    """Fit the transformation that `config` names, with uncertainty, and try it on the held-out pairs.

    A network works on standardised embeddings, and its losses do not hang on their scale either (`in_units_of`), nor,
    but where h has length 1, on their mean (`origin`): so embeddings of any scale and offset train alike.

    With `held_out` 0 this is the papers' recipe: embeddings and losses as they are, every epoch, and no uncertainty but
    the transformation's own. What is held out for a refinement is then for that alone.

    Args:
        score: the quality of retrieval.

    Raises:
        UserError: arguments or losses that do not go together; see also `fit_closed_form`, `TransformationTask` and
            `train`.
        Preempted: SIGTERM came.
    """
    torch.manual_seed(config.seed)
    held_out = data.held_out if config.held_out else None
    arguments = {**transformation_arguments(config.arch_params, data.dims), "normalised": data.normalised}
    if "old" in data.wider:
        arguments["wider_old_dim"], arguments["unit_prefix"] = data.wider["old"]
    if held_out is not None and config.method not in CLOSED_FORMS:
        arguments["standardised"] = True
    transformation = build_transformation(**arguments)
    origin = None
    if transformation.standards is not None:
        standardise(transformation.standards, data)
        if not data.normalised:
            origin = cast(Standardisation, transformation.standards["new"]).mean
    disc = config.objective_params.discriminative_loss
    if disc is not None and disc.name in ("LabelSmoothing", "SupCon") and not data.has_labels:
        raise UserError(
            f"objective_params.discriminative_loss.name: {disc.name} needs labels=FILE; InfoNCE does without"
        )
    losses = config.objective_params if held_out is None else in_units_of(data, config.objective_params)
    objective = build_objective(losses, data.classifier, transformation, origin)
    run = Run(config.output, config, world)
    if isinstance(transformation, AffineTransformation):
        fit_closed_form(transformation, config.method, data.training, run, world)
    else:
        task = TransformationTask(transformation, objective, data.training, config, run.precision, world, held_out)
        train(task, transformation, config.loop, run, world, preemption)
    if held_out is None:
        return Fitted(arguments, transformation, run, None)
    transformation.to(world.device)
    if not transformation.has_uncertainty:
        few_parameters = isinstance(transformation, AffineTransformation)
        pairs = data.training.views_once() if few_parameters else [share_of_batch(held_out, world)]
        arguments["residual_inputs"] = fit_residual_head(transformation, pairs, held_out, world).in_features
    return Fitted(arguments, transformation, run, _try(transformation, held_out, data.has_labels, score))


@torch.no_grad()
def _try(transformation: Transformation, held_out: PairBatch, has_labels: bool, score: Score) -> Trial:
    with in_eval_mode(transformation):
        h = zeros_kept(transformation(held_out.old, held_out.side_info).embedding, held_out.old)
    measure, value = score(h, held_out.new, held_out.labels if has_labels else None)
    return Trial(measure, value, float(squared_errors(transformation, held_out).mean()))


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
            method: {one.trial.measure: one.trial.score, "mse": one.trial.error}
            for method, one in fitted.items()
            if one.trial is not None
        },
    }
