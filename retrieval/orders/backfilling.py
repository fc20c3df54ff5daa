"""Backfilling orders: which gallery items to give their new embedding first. Ties go by index."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from retrieval.orders.by_class import class_distance, confidence, entropy, gain, knn_disagreement
from retrieval.orders.evidence import Evidence
from retrieval.orders.neighbours import density
from retrieval.orders.oracle import retrieval_error
from retrieval.ranking.distances import check_distance, row_parts, unit
from retrieval.representatives import EVEN_SPREAD, class_spread
from retrieval.validation import as_integers, check_embeddings, check_finite, check_same_classes, check_same_items
from utils.config import unknown_choice
from utils.errors import UserError


def random_score(evidence: Evidence) -> Tensor:
    """A random order, the same for a seed on every device."""
    order = torch.randperm(len(evidence.new), generator=torch.Generator().manual_seed(evidence.seed))
    return -order.argsort()  # so that the item at place i of `order` comes i-th


def distance_score(evidence: Evidence) -> Tensor:
    """Largest distance between new and h(old) first: an oracle, since it needs the new embeddings."""
    parts = zip(row_parts(evidence.transformed), row_parts(evidence.new), strict=True)
    if evidence.distance == "cosine":
        return torch.cat([-(unit(h.double()) * unit(new.double())).sum(1) for h, new in parts])
    return torch.cat([(new.double() - h.double()).square().sum(1) for h, new in parts])


def sigma_score(evidence: Evidence) -> Tensor:
    """Largest log variance first (FastFill); one of several dimensions counts by its mean."""
    if evidence.log_variance is None:
        raise UserError(
            "order `sigma` needs a gallery with sigma (log variance); "
            "train with MLP_BN_SIDE_PROJECTION_SIGMA or give a gallery file with `sigma`"
        )
    rows = evidence.log_variance.double().view(len(evidence.log_variance), -1)  # (n,) or (n, sigma_dim)
    check_same_items(new=evidence.new, sigma=rows)
    check_finite("sigma", rows)
    return rows.mean(1)


def auto_score(evidence: Evidence) -> Tensor:
    """`confidence` where the gallery spreads over the classes that the classifier knows, else `sigma`.

    Of unknown classes the classifier's confidence says less than sigma does. An order that is known to be unhelpful is
    left out, and `random` takes its place where there is no other.
    """
    if evidence.classifier is None and evidence.log_variance is None:
        raise UserError("order `auto` needs a classifier of the new model, or a gallery with sigma (log variance)")
    by_confidence = evidence.classifier is not None and "confidence" not in evidence.unhelpful
    by_sigma = evidence.log_variance is not None and "sigma" not in evidence.unhelpful
    if not (by_confidence and by_sigma):
        return confidence(evidence) if by_confidence else sigma_score(evidence) if by_sigma else random_score(evidence)
    assert evidence.classifier is not None
    spread = class_spread(evidence.transformed, evidence.classifier, evidence.classifier_bias)
    return confidence(evidence) if spread >= EVEN_SPREAD else sigma_score(evidence)


# A score (n,) of the items, the largest to be backfilled first; and what it looks at beside h(old).
ORDERS: dict[str, Callable[[Evidence], Tensor]] = {
    "random": random_score,  # nothing
    "distance": distance_score,  # new embeddings: an oracle
    "sigma": sigma_score,  # log variance
    "auto": auto_score,  # classifier or log variance; both to choose between them
    "density": density,  # nothing
    "confidence": confidence,  # classifier
    "gain": gain,  # classifier
    "entropy": entropy,  # classifier
    "class_distance": class_distance,  # class means; classifier if there is one
    "knn_disagreement": knn_disagreement,  # classifier or class means
    "oracle": retrieval_error,  # new embeddings and labels: an oracle
}


def backfilling_order(
    name: str,
    *,
    transformed: Tensor,
    new: Tensor,
    log_variance: Tensor | None = None,
    classifier: Tensor | None = None,
    classifier_bias: Tensor | None = None,
    class_means: Tensor | None = None,
    labels: Tensor | None = None,
    seed: int = 0,
    distance: str = "l2",
    unhelpful: Collection[str] = (),
) -> Tensor:
    """The order `name` of ORDERS for a gallery -> permutation (n,) int64, on the device of `new`.

    Memory beyond the embeddings does not grow with n, but for a few numbers an item.

    Args:
        name: of ORDERS, which say what each needs.
        transformed: h(old) of the gallery items, (n, d).
        new: the new model's embeddings of the same items, (n, d); only `distance` and `oracle` look at them.
        log_variance: of h's output, (n,) or (n, sigma_dim).
        classifier: (C, d) weight of the new model's classifier.
        classifier_bias: (C,), if it has one.
        class_means: (C, d) mean new embedding of each class over the training set, in the classifier's order; where
            there is no classifier, those of any clusters.
        labels: (n,) integers, for `oracle`; negative ones: of no class.
        seed: of the order `random`, and of the sample that `knn_disagreement` looks at.
        distance: `l2` or `cosine`, for the orders that look at distances.
        unhelpful: orders that `auto` is not to choose.

    Raises:
        UserError: an unknown name, something missing that the order needs, or tensors that are not finite or do not
            fit together.
    """
    if name not in ORDERS:
        raise UserError(unknown_choice("order", name, ORDERS))
    check_distance(distance)
    check_embeddings(new=new, transformed=transformed)
    check_same_items(new=new, transformed=transformed)
    vectors = {"classifier": classifier, "class_means": class_means}
    check_embeddings(new=new, **{key: value for key, value in vectors.items() if value is not None})
    if classifier is not None and class_means is not None:
        check_same_classes(classifier, class_means)
    if classifier is not None and classifier_bias is not None and classifier_bias.shape != classifier.shape[:1]:
        raise UserError(f"classifier_bias: should be ({len(classifier)},), got {tuple(classifier_bias.shape)}")
    if labels is not None:
        labels = as_integers("labels", labels, new)
    evidence = Evidence(
        transformed, new, log_variance, classifier, classifier_bias, class_means, labels, distance, seed, unhelpful
    )
    scores = ORDERS[name](evidence)
    return scores.sort(descending=True, stable=True).indices.to(new.device)
