"""Backfilling orders that ask what h(old) says of an item's class: an item of unclear class does most harm.

None needs a label of the gallery. Items are looked at a chunk at a time, in float32.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from retrieval.orders.evidence import Evidence
from retrieval.orders.neighbours import SAMPLE, nearest, parts, placed, sampled
from retrieval.representatives import class_logits, logits_of
from utils.errors import UserError


def confidence(evidence: Evidence) -> Tensor:
    """Smallest largest class probability of the new model's classifier on h first."""
    return torch.cat([-log_p.amax(1) for log_p in _log_probabilities("confidence", evidence)])


def gain(evidence: Evidence) -> Tensor:
    """Largest p (1 - p) first, where p is the largest class probability of the new model's classifier on h.

    It is the chance that h has the class wrong times the chance that the class can be told: a clear item has little to
    gain by its new embedding, and one that is quite unclear often stays so.
    """
    logs = torch.cat([log_p.amax(1) for log_p in _log_probabilities("gain", evidence)])
    return -logs.exp() * torch.expm1(logs)


def entropy(evidence: Evidence) -> Tensor:
    """Largest entropy of the new model's classifier on h first."""
    return torch.cat([-(log_p.exp() * log_p).sum(1) for log_p in _log_probabilities("entropy", evidence)])


def class_distance(evidence: Evidence) -> Tensor:
    """Largest distance of h to the mean of its predicted class first (after arXiv 2509.16664).

    Without a classifier the predicted class is that of the nearest mean.
    """
    means = evidence.class_means
    if means is None:
        raise UserError(
            "order `class_distance` needs class means; evaluate a transformation with a refinement, "
            "or give embeddings_params.class_means"
        )
    means = placed(means, evidence)
    scores = []
    for h in parts(evidence.transformed, len(means)):
        own = means[_classes(h, evidence, means)]
        scores.append((placed(h, evidence) - own).square().sum(1))
    return torch.cat(scores)


def knn_disagreement(evidence: Evidence) -> Tensor:
    """Most of the nearest items in h of another class than the item's own first.

    The neighbours are the 10 nearest of a random sample of the gallery, each with the class predicted for it. What
    counts is the probability that the item is of their class, 1 or 0 where class means stand in for a classifier.
    """
    means = None if evidence.class_means is None else placed(evidence.class_means, evidence)
    if evidence.classifier is None and means is None:
        raise UserError(
            "order `knn_disagreement` needs a classifier or class means; evaluate with a backbone as query model, "
            "or give embeddings_params.classifier or .class_means"
        )
    sample = sampled(evidence)
    chosen = evidence.transformed[sample]
    classes = torch.cat([_classes(h, evidence, means) for h in parts(chosen, SAMPLE)])  # (S,)
    scores = []
    for h, _, places in nearest(evidence, sample):
        theirs = classes[places]  # (c, k)
        if evidence.classifier is None:
            agreement = (theirs == _classes(h, evidence, means).unsqueeze(1)).float()
        else:
            agreement = logits_of(h, evidence.classifier, evidence.classifier_bias).softmax(1).gather(1, theirs)
        scores.append(-agreement.mean(1))
    return torch.cat(scores)


def _log_probabilities(order: str, evidence: Evidence) -> Iterator[Tensor]:
    if evidence.classifier is None:
        raise UserError(
            f"order `{order}` needs a classifier of the new model; evaluate with a backbone as query model, "
            "or give embeddings_params.classifier"
        )
    for logits in class_logits(evidence.transformed, evidence.classifier, evidence.classifier_bias):
        yield logits.log_softmax(1)


def _classes(h: Tensor, evidence: Evidence, means: Tensor | None) -> Tensor:
    """The predicted classes (c,) of h (c, d)."""
    if evidence.classifier is not None:
        return logits_of(h, evidence.classifier, evidence.classifier_bias).argmax(1)
    assert means is not None
    return (means.square().sum(1) - 2 * placed(h, evidence) @ means.T).argmin(1)
