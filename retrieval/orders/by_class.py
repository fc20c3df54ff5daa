"""Backfilling orders that ask what h(old) says of an item's class: an item of unclear class does most harm.

None needs a label of the gallery. Items are looked at a chunk at a time, in float32.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from retrieval.orders.evidence import Evidence
from retrieval.ranking.distances import PART_ELEMENTS, unit
from retrieval.representatives import class_logits, logits_of
from utils.errors import UserError

NEIGHBOURS = 10
SAMPLE = 4096  # items among which neighbours are looked for, so that the cost grows with n and not with its square


def confidence(evidence: Evidence) -> Tensor:
    """Smallest largest class probability of the new model's classifier on h first."""
    return torch.cat([-log_p.amax(1) for log_p in _log_probabilities("confidence", evidence)])


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
    means = _placed(means, evidence)
    scores = []
    for h in _parts(evidence.transformed, len(means)):
        own = means[_classes(h, evidence, means)]
        scores.append((_placed(h, evidence) - own).square().sum(1))
    return torch.cat(scores)


def knn_disagreement(evidence: Evidence) -> Tensor:
    """Most of the nearest items in h of another class than the item's own first.

    The neighbours are the 10 nearest of a random sample of the gallery, each with the class predicted for it. What
    counts is the probability that the item is of their class, 1 or 0 where class means stand in for a classifier.
    """
    means = None if evidence.class_means is None else _placed(evidence.class_means, evidence)
    if evidence.classifier is None and means is None:
        raise UserError(
            "order `knn_disagreement` needs a classifier or class means; evaluate with a backbone as query model, "
            "or give embeddings_params.classifier or .class_means"
        )
    n = len(evidence.transformed)
    sample = torch.randperm(n, generator=torch.Generator().manual_seed(evidence.seed))[:SAMPLE]
    place = torch.full((n,), -1)  # of an item in the sample
    place[sample] = torch.arange(len(sample))
    place = place.to(evidence.new.device)
    near = evidence.transformed[sample.to(evidence.new.device)].float()
    classes = torch.cat([_classes(h, evidence, means) for h in _parts(near, SAMPLE)])  # (S,)
    near = _placed(near, evidence)
    scores, start = [], 0
    for h in _parts(evidence.transformed, SAMPLE):
        distances = near.square().sum(1) - 2 * _placed(h, evidence) @ near.T  # (c, S), less |h|^2
        itself = place[start : start + len(h)]
        (row,) = (itself >= 0).nonzero(as_tuple=True)
        distances[row, itself[row]] = torch.inf
        count = min(NEIGHBOURS, len(sample) - 1)
        theirs = classes[distances.topk(count, largest=False).indices]  # (c, k)
        if evidence.classifier is None:
            agreement = (theirs == _classes(h, evidence, means).unsqueeze(1)).float()
        else:
            agreement = logits_of(h, evidence.classifier, evidence.classifier_bias).softmax(1).gather(1, theirs)
        scores.append(-agreement.mean(1))
        start += len(h)
    return torch.cat(scores)


def _parts(rows: Tensor, columns: int) -> Iterator[Tensor]:
    """Chunks (c, d) float32 of `rows`, so that a table (c, columns) stays small."""
    for part in rows.split(max(1, PART_ELEMENTS // max(columns, rows.shape[1]))):
        yield part.float()


def _placed(vectors: Tensor, evidence: Evidence) -> Tensor:
    vectors = vectors.float()
    return unit(vectors) if evidence.distance == "cosine" else vectors


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
    return (means.square().sum(1) - 2 * _placed(h, evidence) @ means.T).argmin(1)
