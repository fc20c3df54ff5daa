"""Transformations of embedding files: no model and no image, a sample of pairs, some of it held out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from data.config import PairedEmbeddingsParams
from data.lengths import zeros_kept
from data.paired_embeddings import PairedEmbeddings
from models.baselines import AffineTransformation
from models.config import CLOSED_FORMS
from models.standardisation import Standardisation, mean_and_scale
from models.transformations import build_transformation, transformation_arguments
from models.transformed import Transformation
from trainers.transformation.classifiers import fit_classifier
from trainers.transformation.config import DiscriminativeLoss, ObjectiveParams, TransformationConfig
from trainers.transformation.losses import objective_of
from trainers.transformation.pairs import PairBatch, PairsInMemory, View
from trainers.transformation.residuals import fit_residual_head, squared_errors
from trainers.transformation.training import HeldOut, fit_transformation
from utils.batches import share_of_batch
from utils.distributed import World
from utils.errors import UserError
from utils.files import sha256_of
from utils.paths import without_suffix
from utils.preemption import Preemption
from utils.runs import Run
from utils.seeds import Stream, generator

FEWEST_HELD_OUT = 10  # pairs, whatever the share
FILES = ("old", "new", "side_info", "labels", "classifier")  # keys of `embeddings_params` that name one
# (h of the held-out old embeddings, their new ones, their labels) -> what is measured, and its value: higher is better
Score = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], tuple[str, float]]


@dataclass(frozen=True)
class Sample:
    """Paired embeddings, divided."""

    training: PairsInMemory
    held_out: PairBatch | None
    dims: dict[str, int]  # of each role's embeddings
    classifier: torch.Tensor | None  # (C, d_new)
    normalised: bool

    @property
    def has_labels(self) -> bool:
        """Whether the class of any item to train on is known."""
        return bool((self.training.views[0].labels >= 0).any())


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


def divide(paired: PairedEmbeddings, config: TransformationConfig, world: World) -> Sample:
    """Hold a share of the pairs out, drawn by the seed; where there are labels alone, fit a classifier to the others.

    Raises:
        UserError: the processes do not divide the batch, or the views the rows.
    """
    return sample_of(*split(paired, config), config, world)


def split(paired: PairedEmbeddings, config: TransformationConfig) -> tuple[PairedEmbeddings, PairedEmbeddings | None]:
    """The pairs to train on, and those that are held out, if any; a function of the number of pairs and the seed.

    Raises:
        UserError: the views do not divide the rows.
    """
    params = config.embeddings_params
    assert params is not None
    count, odd = divmod(len(paired), params.views)
    if odd:
        raise UserError(f"embeddings_params.views: the {len(paired)} rows are not {params.views} views of each item")
    share = params.held_out
    if not share and config.refinement_params is not None:
        share = config.refinement_params.held_out
    order = torch.randperm(count, generator=generator(config.seed, Stream.HELD_OUT))
    rest = max(FEWEST_HELD_OUT, round(share * count)) if share else 0
    held, kept = order[:rest].sort().values, order[rest:].sort().values
    kept = torch.cat([kept + view * count for view in range(params.views)])  # no view of what is held out
    return paired.rows(kept), paired.rows(held) if rest else None


def sample_of(
    training: PairedEmbeddings, held_out: PairedEmbeddings | None, config: TransformationConfig, world: World
) -> Sample:
    """Pairs that are divided already, on the device; where there are labels alone, a classifier is fitted to them.

    Raises:
        UserError: the processes do not divide the batch.
    """
    assert config.embeddings_params is not None
    pairs = PairsInMemory(
        [_view_of(training, world)], batch_size=config.embeddings_params.batch_size, world=world, seed=config.seed
    )
    return Sample(
        pairs,
        None if held_out is None else batch_of(held_out, world),
        training.dims,
        classifier_of(training, held_out, config, world),
        training.normalised,
    )


def classifier_of(
    training: PairedEmbeddings, held_out: PairedEmbeddings | None, config: TransformationConfig, world: World
) -> torch.Tensor | None:
    """The new model's classifier (C, d_new), given or fitted to the training pairs; None where these have no labels."""
    if training.classifier is not None or training.labels is None or not (training.labels >= 0).any():
        return training.classifier
    disc = config.objective_params.discriminative_loss or DiscriminativeLoss()
    parts = [part.labels for part in (training, held_out) if part is not None and part.labels is not None]
    classes = 1 + max(int(labels.max()) for labels in parts)
    new, labels = training.embeddings["new"].to(world.device), training.labels.to(world.device)
    return fit_classifier(new, labels, classes, disc.label_smoothing)


def batch_of(paired: PairedEmbeddings, world: World) -> PairBatch:
    """All pairs as one batch on the device, float32."""
    view = _view_of(paired, world)
    embeddings = {role: table.float() for role, table in view.embeddings.items()}
    return PairBatch(embeddings["old"], embeddings.get("side_info"), embeddings["new"], view.labels)


def _view_of(paired: PairedEmbeddings, world: World) -> View:
    labels = torch.full((len(paired),), -1) if paired.labels is None else paired.labels
    embeddings = {role: table.to(world.device) for role, table in paired.embeddings.items()}
    return View(embeddings, labels.to(world.device))


def fit_on_sample(
    config: TransformationConfig, sample: Sample, score: Score, world: World, preemption: Preemption
) -> Fitted:
    """Fit the transformation that `config` names, with uncertainty, and try it on the held-out pairs.

    A network works on standardised embeddings, and its losses do not hang on their scale either (`in_units_of`), nor,
    but where h has length 1, on their mean (`origin`): so embeddings of any scale and offset train alike.

    With `embeddings_params.held_out` 0 this is the papers' recipe: embeddings and losses as they are, every epoch, and
    no uncertainty but the transformation's own. What is held out for a refinement is then for that alone.

    Args:
        score: the quality of retrieval.

    Raises:
        UserError: arguments or losses that do not go together; see also `fit_transformation`.
        Preempted: SIGTERM came.
    """
    assert config.embeddings_params is not None
    torch.manual_seed(config.seed)
    arguments = transformation_arguments(config.arch_params, sample.dims)
    arguments["normalised"] = sample.normalised
    as_published = sample.held_out is None or not config.embeddings_params.held_out
    if not as_published and config.arch_params.arch not in CLOSED_FORMS:
        arguments["standardised"] = True
    transformation = build_transformation(**arguments)
    origin = None
    if transformation.standards is not None:
        standardise(transformation.standards, sample)
        if not sample.normalised:
            origin = cast(Standardisation, transformation.standards["new"]).mean
    disc = config.objective_params.discriminative_loss
    if disc is not None and disc.name in ("LabelSmoothing", "SupCon") and not sample.has_labels:
        raise UserError(
            f"objective_params.discriminative_loss.name: {disc.name} needs embeddings_params.labels; "
            "InfoNCE does without"
        )
    params = config.objective_params if as_published else in_units_of(sample, config.objective_params)
    objective = objective_of(params, sample.classifier, transformation, origin)
    run = Run(config.output_transformation_path, config, world)
    if as_published:
        fit_transformation(transformation, objective, config, sample.training, run, world, preemption)
        return Fitted(arguments, transformation, run, None)
    assert sample.held_out is not None
    held_out = HeldOut(sample.held_out, config.embeddings_params.patience)
    fit_transformation(transformation, objective, config, sample.training, run, world, preemption, held_out)
    transformation.to(world.device).eval()
    if not transformation.has_uncertainty:
        few_parameters = isinstance(transformation, AffineTransformation)
        pairs = sample.training.views_once() if few_parameters else [share_of_batch(sample.held_out, world)]
        fit_residual_head(transformation, pairs, sample.held_out, world)
        assert transformation.residual_head is not None
        arguments["residual_inputs"] = transformation.residual_head.in_features
    with torch.no_grad():
        h = transformation(sample.held_out.old, sample.held_out.side_info).embedding
        h = zeros_kept(h, sample.held_out.old)
        error = float(squared_errors(transformation, sample.held_out).mean())
    measure, value = score(h, sample.held_out.new, sample.held_out.labels if sample.has_labels else None)
    return Fitted(arguments, transformation, run, Trial(measure, value, error))


def standardise(standards: nn.ModuleDict, sample: Sample) -> None:
    """Set the means and scales of a transformation's `standards` to those of the pairs to train on.

    Raises:
        UserError: the old embeddings, and any side-information, are the same for all items.
    """
    (view,) = sample.training.views
    found = {role: mean_and_scale(table) for role, table in view.embeddings.items()}
    if not any(scale for role, (_, scale) in found.items() if role != "new"):
        raise UserError("embeddings_params.old: the old embeddings are all the same")
    for role, (mean, scale) in found.items():
        standard = cast(Standardisation, standards[role])
        standard.mean.copy_(mean)
        standard.scale.fill_(scale or 1.0)  # of what never varies, the mean is all there is to take away


def in_units_of(sample: Sample, params: ObjectiveParams) -> ObjectiveParams:
    """`objective_params` with L_sim in units of the new embeddings' variance, which is near 1 in the papers' models.

    So L_sim and L_disc keep their balance whatever the scale of the embeddings, length 1 included.
    """
    (view,) = sample.training.views
    _, scale = mean_and_scale(view.embeddings["new"])
    if not scale:
        raise UserError("embeddings_params.new: the new embeddings are all the same")
    similarity = params.similarity_loss
    unit = {"mse": scale**2, "l1": scale, "cosine": 1.0}[similarity.name]
    return replace(params, similarity_loss=replace(similarity, mu_similarity=similarity.mu_similarity / unit))


def output_of(config: TransformationConfig, arch: str) -> str:
    """The path, beside the output, by which a transformation that `auto` tries is known."""
    path = Path(config.output_transformation_path)
    name = without_suffix(path).name
    return str(path.with_name(f"{name}.{arch}{path.name.removeprefix(name)}"))


def provenance(params: PairedEmbeddingsParams, sample: Sample, fitted: dict[str, Fitted]) -> dict[str, Any]:
    """Which files a transformation was fitted to, and how each kind did, as plain values for its model file."""
    files = {name: path for name in FILES if (path := getattr(params, name))}
    return {
        "files": {name: {"path": path, "sha256": sha256_of(path)} for name, path in files.items()},
        **outcome(sample, fitted),
    }


def outcome(sample: Sample, fitted: dict[str, Fitted]) -> dict[str, Any]:
    """What a transformation was fitted to, and how each kind did, as plain values."""
    return {
        "dims": sample.dims,
        "normalised": sample.normalised,
        "pairs": {
            "training": len(sample.training),
            "held_out": 0 if sample.held_out is None else len(sample.held_out.labels),
        },
        "held_out": {
            arch: {one.trial.measure: one.trial.score, "mse": one.trial.error}
            for arch, one in fitted.items()
            if one.trial is not None
        },
    }
