"""Refining a trained transformation: class means from the pairs it was trained on, the rest chosen on held-out ones."""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import nn

from models.refinement import RefinedTransformation, soft_assignment
from models.resnet import ResNet
from models.transformed import Transformation
from trainers.centroids import class_means, k_means
from trainers.pairs import CachedPairs, PairBatch, Pairs
from utils.distributed import World
from utils.errors import UserError
from utils.schema import RefinementParams

# What is tried. Strength 0 comes first, so that h stays as it is where no pull does better.
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
TEMPERATURES = (1.0, 2.0)
FOCUSES = (0.0, 2.0)

# (new (n, d), h (n, d), labels (n,), classifier (C, d), its bias (C,)) -> quality of the upgrade; higher is better
Quality = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], float]


class HeldOut(NamedTuple):
    """Items of the training set that a transformation is not trained on, and what its refinement will be made from."""

    items: PairBatch
    training: CachedPairs  # without them
    classifier: torch.Tensor | None  # (C, d_new); None: k-means centroids stand for classes
    clusters: int


class Refinement(NamedTuple):
    """What was chosen."""

    transformation: RefinedTransformation
    record: dict[str, Any]  # strength, temperature, focus, and the quality that they reach, as plain values


def hold_out(pairs: Pairs, params: RefinementParams | None, new_model: nn.Module) -> HeldOut | None:
    """Take what the refinement needs out of `pairs`, before any training; None where no refinement is asked for.

    Raises:
        UserError: the pairs are not kept, or there is neither a classifier of all their classes nor `clusters`.
    """
    if params is None:
        return None
    if not isinstance(pairs, CachedPairs):
        raise UserError(
            "refinement_params: needs embeddings that are computed once; set cached_views, and leave "
            "cache_embeddings=off out"
        )
    if params.clusters is not None:
        return HeldOut(pairs.hold_out(params.held_out), pairs, None, params.clusters)
    if not isinstance(new_model, ResNet):
        raise UserError(
            "refinement_params: needs a new model with a classifier, a backbone file; or set refinement_params.clusters"
        )
    classifier = new_model.fc.weight.flatten(1)  # (C, d, 1, 1) -> (C, d)
    known, classes = len(classifier), int(pairs.views[0].labels.max()) + 1
    if classes > known:
        raise UserError(
            f"new_model_path: the new model's classifier has {known} classes, the training set {classes}; "
            "refinement_params needs them all"
        )
    return HeldOut(pairs.hold_out(params.held_out), pairs, classifier, 0)


@torch.no_grad()
def refine(transformation: Transformation, held_out: HeldOut, quality: Quality, world: World) -> Refinement:
    """Pull h towards class means, as strongly as is best for retrieval among items that neither was made from.

    What `held_out` holds is all that is looked at. With `clusters` that is no label either: the classes of the held-out
    items are then the clusters of their new embeddings.

    Args:
        transformation: trained on `held_out.training`.
        quality: of the upgrade of a gallery of held-out items.

    Raises:
        UserError: there are fewer embeddings than clusters.
    """
    transformation.to(world.device).eval()
    items, training = held_out.items, held_out.training
    if held_out.classifier is None:
        new = torch.cat([view.embeddings["new"] for view in training.views])
        means, variance = k_means(new, held_out.clusters, training.seed)
        weight, bias = soft_assignment(means, variance)
        labels = torch.cdist(items.new, means).argmin(1)
    else:
        weight, labels = held_out.classifier, items.labels
        bias = weight.new_zeros(len(weight))
        means = class_means(training.views_once(), len(weight), world)
    h = transformation(items.old, items.side_info).embedding.float()
    tried: dict[tuple[float, float, float], float] = {}
    for strength, temperature, focus in product(STRENGTHS, TEMPERATURES, FOCUSES):
        if strength == 0 and tried:  # h itself, whatever the others are
            continue
        candidate = refined(transformation, weight, bias, means, (strength, temperature, focus))
        tried[strength, temperature, focus] = quality(items.new, candidate.refine(h), labels, weight, bias)
    best = max(tried, key=lambda choice: tried[choice])  # of equal ones, the first
    record = dict(zip(("strength", "temperature", "focus"), best, strict=True))
    record |= {"quality": tried[best], "quality_of_h": next(iter(tried.values())), "held_out": len(h)}
    return Refinement(refined(transformation, weight, bias, means, best), record)


def refined(
    transformation: Transformation,
    weight: torch.Tensor,
    bias: torch.Tensor,
    means: torch.Tensor,
    choice: tuple[float, float, float],
) -> RefinedTransformation:
    """`transformation` with a refinement of that strength, temperature and focus, in eval mode."""
    strength, temperature, focus = choice
    num_classes, dim = means.shape
    model = RefinedTransformation(
        transformation,
        num_classes=num_classes,
        new_embedding_dim=dim,
        strength=strength,
        temperature=temperature,
        focus=focus,
    ).to(means.device)
    for buffer, value in ((model.classifier, weight), (model.bias, bias), (model.class_means, means)):
        buffer.copy_(value)
    return model.eval()
