"""Choosing the refinement: what it sees, and that it chooses what is best there."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from data.paired_embeddings import PairedEmbeddings
from models import build_transformation
from models.baselines import AffineTransformation
from retrieval import upgrade_quality
from trainers.transformation.centroids import class_means, k_means
from trainers.transformation.config import FitConfig, HowToFit, RefinementParams
from trainers.transformation.division import divide
from trainers.transformation.losses import check_classifier
from trainers.transformation.pairs import PairsInMemory, StreamedPairs, View, hold_out
from trainers.transformation.refinement import Material, known_classes, material_of_files, material_of_pairs, refine
from utils.distributed import World
from utils.errors import UserError

CLASSES, N, DIMENSION = 4, 80, 8
GENERATOR = torch.Generator().manual_seed(0)
MEANS = 3 * torch.randn(CLASSES, DIMENSION, generator=GENERATOR)
LABELS = torch.arange(N) % CLASSES
NEW = MEANS[LABELS] + torch.randn(N, DIMENSION, generator=GENERATOR)


def pairs_in_memory() -> PairsInMemory:
    """Two views of pairs: old embeddings are new ones with much noise."""
    old = NEW + 3 * torch.randn(2, N, DIMENSION, generator=torch.Generator().manual_seed(1))
    views = [View({"old": rows, "new": NEW + view}, LABELS) for view, rows in enumerate(old)]
    return PairsInMemory(views, batch_size=16, world=World(), seed=5)


def identity() -> AffineTransformation:
    transformation = build_transformation("ridge", old_embedding_dim=8, new_embedding_dim=8, side_info_dim=0)
    assert isinstance(transformation, AffineTransformation)
    transformation.affine.weight.data.copy_(torch.eye(8))
    transformation.affine.bias.data.zero_()
    return transformation


def material_of_classes(params: RefinementParams) -> Material:
    pairs = pairs_in_memory()
    found = material_of_pairs(pairs, pairs.set_aside(params.held_out), params, MEANS)
    assert found is not None
    return found


@pytest.mark.parametrize("clusters", [None, 6])
def test_the_choice_is_the_best_of_all_on_held_out_items_alone(clusters: int | None) -> None:
    strengths = [0.0, 0.1, 0.3, 1.0]
    params = RefinementParams(held_out=0.25, strengths=strengths, clusters=clusters)
    material, seen = material_of_classes(params), []
    partly = material.held_out.labels.where(torch.arange(20) > 4, -1)  # what has no label is no query
    material = material._replace(held_out=material.held_out._replace(labels=partly))

    def quality(new: Tensor, transformed: Tensor, labels: Tensor, classifier: Tensor, bias: Tensor) -> float:
        assert torch.equal(new, material.held_out.new)
        assert torch.equal(labels, partly) == (clusters is None)
        value = upgrade_quality(new, transformed, labels, classifier, bias)
        seen.append((value, transformed))
        return value

    model, chosen = refine(identity(), material, quality, World())
    best = max(value for value, _ in seen)
    assert chosen["quality"] == dict(zip(map(str, strengths), (value for value, _ in seen), strict=True))
    assert chosen["quality"][str(chosen["strength"])] == best
    assert torch.equal(seen[0][1], material.held_out.old)
    (transformed,) = [h for value, h in seen if value == best][:1]
    torch.testing.assert_close(model(material.held_out.old).embedding, transformed)


def test_where_nothing_helps_h_stays() -> None:
    material = material_of_classes(RefinementParams())
    model, chosen = refine(identity(), material, lambda *_: 0.5, World())
    assert chosen["strength"] == 0
    assert torch.equal(model(material.held_out.old).embedding, material.held_out.old)


def test_with_clusters_no_label_is_looked_at() -> None:
    material, other = (material_of_classes(RefinementParams(clusters=6)) for _ in range(2))
    held_out = other.held_out._replace(labels=torch.full((8,), -1))
    other.training.views = [View(view.embeddings, -view.labels) for view in other.training.views]
    (first, chosen), (second, again) = (
        refine(identity(), found, upgrade_quality, World()) for found in (material, other._replace(held_out=held_out))
    )
    assert chosen == again
    assert torch.equal(first.class_means, second.class_means)


def test_class_means_are_of_the_labelled_training_items_in_their_first_view() -> None:
    material = material_of_classes(RefinementParams(held_out=0.25))
    new, labels = material.training.views[0].embeddings["new"], material.training.views[0].labels
    labels[::5] = -3
    known = known_classes(material)
    for label in range(CLASSES):
        torch.testing.assert_close(known.means[label], new[label == labels].mean(0))
    assert torch.equal(known.weight, MEANS)
    assert not known.bias.any()
    means = class_means(new, labels, CLASSES + 1)
    torch.testing.assert_close(means[CLASSES], new.mean(0))  # that of all, for a class without an item


def test_k_means_finds_clusters_and_its_variance() -> None:
    points, variance = k_means(NEW, CLASSES, seed=0)
    nearest = torch.cdist(NEW, points).argmin(1)
    for cluster in range(CLASSES):
        torch.testing.assert_close(points[cluster], NEW[nearest == cluster].mean(0), rtol=1e-4, atol=1e-5)
    assert variance == pytest.approx(float((NEW - points[nearest]).square().mean()), rel=1e-4)
    assert torch.equal(points, k_means(NEW, CLASSES, seed=0).points)
    assert k_means(NEW[:5], 5, seed=0).variance == pytest.approx(0, abs=1e-6)


def test_what_a_refinement_cannot_be_made_from() -> None:
    pairs = pairs_in_memory()
    assert material_of_pairs(pairs, None, None, MEANS) is None
    check_classifier(HowToFit(refinement_params=RefinementParams(clusters=3)), None)
    check_classifier(HowToFit(refinement_params=RefinementParams()), MEANS)
    with pytest.raises(UserError, match="classifier has 2 classes, the training set 4; refinement_params needs"):
        material_of_pairs(pairs, pairs.set_aside(0.1), RefinementParams(), MEANS[:2])
    streamed = StreamedPairs({}, [], batch_size=4, precision="fp32", world=World())  # type: ignore[arg-type]
    for keys in ({"refinement_params": RefinementParams()}, {"calibration_held_out": 0.1}):
        with pytest.raises(UserError, match=f"{next(iter(keys))}: needs embeddings that are computed once; set cached"):
            hold_out(streamed, HowToFit(**keys))
    many = material_of_classes(RefinementParams(clusters=1000))
    with pytest.raises(UserError, match=r"refinement_params.clusters: 1000 are more than the 72 training embeddings"):
        refine(identity(), many, upgrade_quality, World())


# -------------------------------------------------------------------------------------------------- of embedding files

PAIRS = PairedEmbeddings({"old": NEW, "new": NEW}, LABELS, MEANS, normalised=False)
TWO_VIEWS = PairedEmbeddings(
    {"old": torch.cat([NEW, NEW + 1]), "new": torch.cat([NEW, -NEW])}, LABELS.repeat(2), MEANS, normalised=False
)


def config_of_files(**values: Any) -> FitConfig:
    return FitConfig(old="old.npz", new="new.npz", method="ridge", output="h.pt", **values)


def test_of_files_with_views_an_item_is_held_out_in_all_of_them() -> None:
    data = divide(TWO_VIEWS, config_of_files(views=2, held_out=0.25), World())
    material = material_of_files(data, RefinementParams())
    assert material is not None
    assert len(material.training) == 120
    taken = {tuple(row.tolist()) for row in material.held_out.new.abs()}
    assert len(taken) == len(material.held_out.labels) == 20
    assert taken.isdisjoint(tuple(row.tolist()) for row in material.training.views[0].embeddings["new"].abs())
    # The published recipe holds out for a refinement alone.
    assert divide(TWO_VIEWS, config_of_files(views=2, held_out=0), World()).held_out is None
    refined = config_of_files(views=2, held_out=0, refinement_params=RefinementParams(held_out=0.25))
    held_out = divide(TWO_VIEWS, refined, World()).held_out
    assert held_out is not None
    assert torch.equal(held_out.new, material.held_out.new)
    with pytest.raises(UserError, match=r"^views: the 160 rows are not 3 views of each item"):
        divide(TWO_VIEWS, config_of_files(views=3), World())


def test_labels_may_be_those_of_a_part() -> None:
    """The first item has none: what is known of the sample does not hang on it."""
    labels = LABELS.where(torch.arange(N) % 4 > 0, -1)
    data = divide(replace(PAIRS, labels=labels, classifier=None), config_of_files(), World())
    assert data.training.views[0].labels[0] == -1
    assert data.has_labels
    assert data.classifier is not None
    assert data.classifier.shape == (CLASSES, DIMENSION)
    unknown = divide(replace(PAIRS, labels=torch.full((N,), -1), classifier=None), config_of_files(), World())
    assert not unknown.has_labels
    assert unknown.classifier is None


def test_without_labels_and_a_classifier_clusters_stand_for_classes() -> None:
    data = divide(replace(PAIRS, labels=None, classifier=None), config_of_files(), World())
    assert material_of_files(data, None) is None
    with pytest.raises(UserError, match=r"needs labels or a classifier; or set"):
        material_of_files(data, RefinementParams())
    material = material_of_files(data, RefinementParams(clusters=3))
    assert material is not None
    assert material.classifier is None
    assert len(known_classes(material).means) == 3
