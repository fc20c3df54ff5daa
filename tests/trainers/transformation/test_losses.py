"""The equations of FCT and FastFill, one sample and one dimension at a time."""

import math
from typing import Any

import pytest
import torch

from models.transformations import Transformed, build_transformation
from trainers.transformation.config import (
    DiscriminativeLoss,
    HowToFit,
    ObjectiveParams,
    RefinementParams,
    SimilarityLoss,
    UncertaintyLoss,
)
from trainers.transformation.losses import TransformationObjective, build_objective, check_classes, check_classifier
from utils.errors import UserError

B, D, C = 7, 5, 4
GENERATOR = torch.Generator().manual_seed(0)
H, NEW = torch.randn(B, D, generator=GENERATOR), torch.randn(B, D, generator=GENERATOR)
CLASSIFIER = torch.randn(C, D, generator=GENERATOR)
LABELS = torch.randint(C, (B,), generator=GENERATOR)
PARTLY = LABELS.where(
    torch.tensor([False, True, True, False, True, True, False]), torch.tensor([-1, -7, -1, -1, -1, -1, -2])
)
FASTFILL = ObjectiveParams(SimilarityLoss(), DiscriminativeLoss(), UncertaintyLoss())
SCALAR, VECTOR = torch.randn(B, 1, generator=GENERATOR), torch.randn(B, D, generator=GENERATOR)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def similarity(name: str, h: list[float], n: list[float]) -> list[float]:
    """The terms of L_sim by dimension; for the cosine there is one."""
    if name == "cosine":
        return [1 - cosine(h, n)] * D
    return [(a - b) ** 2 if name == "mse" else abs(a - b) for a, b in zip(h, n, strict=True)]


def discriminative(disc: DiscriminativeLoss, i: int, labels: list[int]) -> float:
    """L_disc of item i: by the classifier or, without one, by contrast with the batch."""
    h = H[i].tolist()
    if disc.name is None:
        if labels[i] < 0:
            return 0.0
        logits = [sum(w * a for w, a in zip(row, h, strict=True)) for row in CLASSIFIER.tolist()]
        target = [disc.label_smoothing / C + (1 - disc.label_smoothing) * (labels[i] == c) for c in range(C)]
    else:
        logits = [cosine(h, n) / disc.temperature for n in NEW.tolist()]
        by_class = disc.name == "SupCon" and labels[i] >= 0
        alike = [labels[j] == labels[i] if by_class else j == i for j in range(B)]
        target = [same / sum(alike) for same in alike]
    total = sum(math.exp(logit) for logit in logits)
    return -sum(t * math.log(math.exp(logit) / total) for t, logit in zip(target, logits, strict=True))


def naive(params: ObjectiveParams, s: torch.Tensor | None, labels: list[int]) -> float:
    """The objective as the papers give it: a mean over samples, and over dimensions where s has some."""
    total = 0.0
    for i in range(B):
        terms = similarity(params.similarity_loss.name, H[i].tolist(), NEW[i].tolist())
        terms = [params.similarity_loss.mu_similarity * term for term in terms]
        if (disc := params.discriminative_loss) is not None:
            terms = [term + disc.mu_disc * discriminative(disc, i, labels) for term in terms]
        if params.uncertainty_loss is None:
            total += sum(terms) / D
            continue
        assert s is not None
        mu = params.uncertainty_loss.mu_uncertainty
        if s.shape[1] == 1:  # the published equation
            s_i = s[i].item()
            total += 0.5 * math.exp(-s_i) * sum(terms) / D + mu * s_i
        else:
            by_dimension = zip(terms, s[i].tolist(), strict=True)
            total += sum(0.5 * math.exp(-s_ij) * term + mu * s_ij for term, s_ij in by_dimension) / D
    return total / B


@pytest.mark.parametrize("labels", [LABELS, PARTLY], ids=["labelled", "partly"])
@pytest.mark.parametrize("name", ["mse", "l1", "cosine"])
@pytest.mark.parametrize(
    "disc",
    [
        None,
        DiscriminativeLoss(),
        DiscriminativeLoss(label_smoothing=0.0, mu_disc=0.3),
        DiscriminativeLoss("InfoNCE", mu_disc=2.0),
        DiscriminativeLoss("SupCon", temperature=1.0),
    ],
    ids=["fct", "smoothed", "plain", "InfoNCE", "SupCon"],
)
@pytest.mark.parametrize("s", [None, SCALAR, VECTOR], ids=["certain", "scalar", "vector"])
def test_the_objective_is_the_naive_loop(
    name: Any, disc: DiscriminativeLoss | None, s: torch.Tensor | None, labels: torch.Tensor
) -> None:
    assert len(labels.unique()) < B  # or both contrasts are the same
    uncertainty = None if s is None else UncertaintyLoss(mu_uncertainty=0.7)
    params = ObjectiveParams(SimilarityLoss(name, mu_similarity=1.5), disc, uncertainty)
    objective = TransformationObjective(params, CLASSIFIER if params.needs_classifier else None)
    loss = objective(Transformed(H, s), NEW, labels)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(naive(params, s, labels.tolist()), rel=1e-5)


@pytest.mark.parametrize("name", ["InfoNCE", "SupCon"])
def test_cosines_of_a_contrast_may_be_taken_from_another_origin(name: Any) -> None:
    params = ObjectiveParams(SimilarityLoss(mu_similarity=0.0), DiscriminativeLoss(name=name))
    there = TransformationObjective(params, None, origin=torch.full((D,), 100.0))
    expected = TransformationObjective(params, None)(Transformed(H, None), NEW, LABELS)
    torch.testing.assert_close(there(Transformed(H + 100, None), NEW + 100, LABELS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("s", [SCALAR, VECTOR], ids=["scalar", "vector"])
def test_gradients_reach_h_and_the_log_variance_but_not_the_classifier(s: torch.Tensor) -> None:
    classifier = CLASSIFIER.clone().requires_grad_()
    objective = TransformationObjective(FASTFILL, classifier)
    h, s = H.clone().requires_grad_(), s.clone().requires_grad_()
    objective(Transformed(h, s), NEW, LABELS).backward()
    for inputs in (h, s):
        assert inputs.grad is not None
        assert (inputs.grad != 0).all()
    assert classifier.grad is None
    assert not list(objective.parameters())


def test_the_log_variance_settles_where_the_weighted_loss_is_twice_its_price() -> None:
    # d/ds [0.5 exp(-s) L + 0.5 s] = 0 at s = log L: the log variance is the log of the item's own loss.
    losses = (H - NEW).square().mean(1, keepdim=True)
    s = losses.log().requires_grad_()
    params = ObjectiveParams(uncertainty_loss=UncertaintyLoss(mu_uncertainty=0.5))
    TransformationObjective(params, None)(Transformed(H, s), NEW, LABELS).backward()
    torch.testing.assert_close(s.grad, torch.zeros(B, 1))


def test_bf16_outputs_are_judged_in_float32() -> None:
    loss = TransformationObjective(FASTFILL, CLASSIFIER)(Transformed(H.bfloat16(), SCALAR.bfloat16()), NEW, LABELS)
    assert loss.dtype == torch.float32


def test_parts_that_do_not_go_together() -> None:
    dims = {"old_embedding_dim": 3, "new_embedding_dim": 8, "side_info_dim": 3, "inner_dim": 4}
    fct, fastfill = (build_transformation(arch, **dims) for arch in ("fct", "fastfill"))
    with pytest.raises(UserError, match=r"objective_params\.uncertainty_loss: needs a transformation with uncertainty"):
        build_objective(ObjectiveParams(uncertainty_loss=UncertaintyLoss()), None, fct)
    with pytest.raises(UserError, match=r"objective_params\.uncertainty_loss: is missing"):
        build_objective(ObjectiveParams(), None, fastfill)
    with pytest.raises(UserError, match=r"objective_params\.discriminative_loss: needs a new model with a classifier"):
        check_classifier(HowToFit(objective_params=ObjectiveParams(discriminative_loss=DiscriminativeLoss())), None)
    with pytest.raises(UserError, match=r"needs a new model with a classifier, .*; or set refinement_params.clusters"):
        check_classifier(HowToFit(refinement_params=RefinementParams()), None)
    check_classifier(HowToFit(), None)
    assert build_objective(FASTFILL, CLASSIFIER, fastfill).num_classes == C


def test_a_training_set_with_classes_that_the_classifier_does_not_know() -> None:
    for classifier, label in ((CLASSIFIER, C - 1), (None, 99)):
        check_classes(classifier, torch.tensor([0, label]), needed_by="L_disc")
    with pytest.raises(UserError, match=r"new_model_path: .* has 4 classes, the training set 5; L_disc needs them all"):
        check_classes(CLASSIFIER, torch.tensor([0, C]), needed_by="L_disc")
