"""Refining a trained transformation: class means from the pairs it was trained on, the rest chosen on held-out ones."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from models.model_files import Description, describe_refined, describe_transformation
from models.modes import in_eval_mode
from models.refinement import RefinedTransformation, soft_assignment
from models.transformed import Transformation
from trainers.transformation.centroids import class_means, k_means
from trainers.transformation.config import RefinementParams
from trainers.transformation.division import FittingData
from trainers.transformation.losses import check_classes
from trainers.transformation.pairs import PairBatch, Pairs, PairsInMemory
from utils.distributed import World
from utils.errors import UserError

# (new (n, d), h (n, d), labels (n,), classifier (C, d), its bias (C,)) -> quality of the upgrade; higher is better
Quality = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], float]


class Material(NamedTuple):
    """What a refinement is made from: the items of the training set that h is trained on, and others to choose by."""

    params: RefinementParams
    held_out: PairBatch
    training: PairsInMemory  # without them
    classifier: torch.Tensor | None  # (C, d_new); None: k-means centroids stand for classes


def material_of_pairs(
    pairs: Pairs, held_out: PairBatch | None, params: RefinementParams | None, classifier: torch.Tensor | None
) -> Material | None:
    """What the refinement needs, of pairs from which the `held_out` ones are gone; None where none is asked for.

    Args:
        classifier: (C, d_new) weight of the new model's, as `check_classifier` found it.

    Raises:
        UserError: the classifier does not know all of the pairs' classes.
    """
    if params is None:
        return None
    assert isinstance(pairs, PairsInMemory)
    assert held_out is not None
    classifier = classifier if params.clusters is None else None
    check_classes(classifier, pairs.views[0].labels, needed_by="refinement_params")
    return Material(params, held_out, pairs, classifier)


def material_of_files(data: FittingData, params: RefinementParams | None) -> Material | None:
    """The same of a sample of embedding files, which has been divided already.

    Raises:
        UserError: there is neither a classifier (or labels to fit one to) nor `clusters`.
    """
    if params is None or data.held_out is None:
        return None
    if params.clusters is not None:
        return Material(params, data.held_out, data.training, None)
    if data.classifier is None:
        raise UserError("refinement_params: needs labels or a classifier; or set refinement_params.clusters")
    return Material(params, data.held_out, data.training, data.classifier.to(data.held_out.new.device))


@torch.no_grad()
def refine(
    transformation: Transformation, material: Material, quality: Quality, world: World
) -> tuple[RefinedTransformation, dict[str, Any]]:
    """Pull h towards class means, as strongly as is best for retrieval among items that neither was made from.

    What `material` holds is all that is looked at. With `clusters` that is no label either: the classes of the held-out
    items are then the clusters of their new embeddings.

    Args:
        transformation: trained on `material.training`.
        quality: of the upgrade of a gallery of held-out items.

    Returns:
        The refined transformation, and as plain values what was chosen and the quality that it reaches.

    Raises:
        UserError: there are fewer embeddings than clusters.
    """
    transformation.to(world.device)
    items, classes = material.held_out, known_classes(material)
    with in_eval_mode(transformation):
        h = transformation(items.old, items.side_info).embedding.float()
    labels = items.labels if material.classifier is not None else torch.cdist(items.new, classes.means).argmin(1)
    tried: dict[float, float] = {}
    for strength in material.params.strengths:
        h_refined = refined(transformation, classes, strength).refine(h)
        tried[strength] = quality(items.new, h_refined, labels, classes.weight, classes.bias)
    strength = max(tried, key=lambda choice: tried[choice])  # of equal ones, the first
    record = {"strength": strength, "quality": {str(key): value for key, value in tried.items()}, "held_out": len(h)}
    return refined(transformation, classes, strength), record


def describe_with_refinement(
    transformation: Transformation, arguments: dict[str, Any], material: Material | None, quality: Quality, world: World
) -> Description:
    """The trained transformation for its file; refined where there is material for it.

    Raises:
        UserError: see `refine`.
    """
    description = describe_transformation(transformation, arguments)
    if material is None:
        return description
    model, chosen = refine(transformation, material, quality, world)
    if world.is_main:
        print(f"refinement, chosen on held-out training items: {chosen}", flush=True)
    return describe_refined(model, description, chosen)


class Classes(NamedTuple):
    """What is known of the new space's classes, or clusters, from the training items."""

    weight: torch.Tensor  # (C, d) of the classifier
    bias: torch.Tensor  # (C,)
    means: torch.Tensor  # (C, d)


def known_classes(material: Material) -> Classes:
    """What a refinement is made from, of the first view of the training items."""
    embeddings, labels = material.training.views[0]
    new = embeddings["new"].float()
    if material.classifier is None:
        means, variance = k_means(new, material.params.clusters or 0, material.training.seed)
        return Classes(*soft_assignment(means, variance), means)
    weight = material.classifier
    return Classes(weight, weight.new_zeros(len(weight)), class_means(new, labels, len(weight)))


def refined(transformation: Transformation, classes: Classes, strength: float) -> RefinedTransformation:
    """`transformation` with a refinement of that strength."""
    num_classes, dim = classes.means.shape
    model = RefinedTransformation(transformation, num_classes=num_classes, new_embedding_dim=dim, strength=strength).to(
        classes.means.device
    )
    model.classifier.copy_(classes.weight)
    model.bias.copy_(classes.bias)
    model.class_means.copy_(classes.means)
    return model
