"""Backfilling orders that ask what h(old) says of an item's class: an item of unclear class does most harm.

None needs a label of the gallery. Items are looked at a chunk at a time, in float32.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from retrieval.orders.evidence import Gallery
from retrieval.ranking.buffers import PART_ELEMENTS
from retrieval.ranking.distances import unit
from utils.errors import UserError

NEIGHBOURS = 10
SAMPLE = 4096  # items among which neighbours are looked for, so that the cost grows with n and not with its square


def confidence(gallery: Gallery) -> Tensor:
    """Smallest largest class probability of the new model's classifier on h first."""
    return torch.cat([-log_p.amax(1) for log_p in _log_probabilities("confidence", gallery)])


def entropy(gallery: Gallery) -> Tensor:
    """Largest entropy of the new model's classifier on h first."""
    return torch.cat([-(log_p.exp() * log_p).sum(1) for log_p in _log_probabilities("entropy", gallery)])


def class_distance(gallery: Gallery) -> Tensor:
    """Largest distance of h to the mean of its predicted class first (after arXiv 2509.16664).

    Without a classifier the predicted class is that of the nearest mean.
    """
    means = gallery.class_means
    if means is None:
        raise UserError(
            "order `class_distance` needs class means; evaluate a transformation with a refinement, "
            "or give embeddings_params.class_means"
        )
    means = _placed(means, gallery)
    scores = []
    for h in _parts(gallery.transformed, len(means)):
        own = means[_classes(h, gallery, means)]
        scores.append((_placed(h, gallery) - own).square().sum(1))
    return torch.cat(scores)


def knn_disagreement(gallery: Gallery) -> Tensor:
    """Most of the nearest items in h of another class than the item's own first.

    The neighbours are the 10 nearest of a random sample of the gallery, each with the class predicted for it. What
    counts is the probability that the item is of their class, 1 or 0 where class means stand in for a classifier.
    """
    means = None if gallery.class_means is None else _placed(gallery.class_means, gallery)
    if gallery.classifier is None and means is None:
        raise UserError(
            "order `knn_disagreement` needs a classifier or class means; evaluate with a backbone as query model, "
            "or give embeddings_params.classifier or .class_means"
        )
    n = len(gallery.transformed)
    sample = torch.randperm(n, generator=torch.Generator().manual_seed(gallery.seed))[:SAMPLE]
    place = torch.full((n,), -1)  # of an item in the sample
    place[sample] = torch.arange(len(sample))
    place = place.to(gallery.new.device)
    near = gallery.transformed[sample.to(gallery.new.device)].float()
    classes = torch.cat([_classes(h, gallery, means) for h in _parts(near, SAMPLE)])  # (S,)
    near = _placed(near, gallery)
    scores, start = [], 0
    for h in _parts(gallery.transformed, SAMPLE):
        distances = near.square().sum(1) - 2 * _placed(h, gallery) @ near.T  # (c, S), less |h|^2
        itself = place[start : start + len(h)]
        (row,) = (itself >= 0).nonzero(as_tuple=True)
        distances[row, itself[row]] = torch.inf
        count = min(NEIGHBOURS, len(sample) - 1)
        theirs = classes[distances.topk(count, largest=False).indices]  # (c, k)
        if gallery.classifier is None:
            agreement = (theirs == _classes(h, gallery, means).unsqueeze(1)).float()
        else:
            agreement = _logits(h, gallery).softmax(1).gather(1, theirs)
        scores.append(-agreement.mean(1))
        start += len(h)
    return torch.cat(scores)


def _parts(rows: Tensor, columns: int) -> Iterator[Tensor]:
    """Chunks (c, d) float32 of `rows`, so that a table (c, columns) stays small."""
    for part in rows.split(max(1, PART_ELEMENTS // max(columns, rows.shape[1]))):
        yield part.float()


def _placed(vectors: Tensor, gallery: Gallery) -> Tensor:
    vectors = vectors.float()
    return unit(vectors) if gallery.distance == "cosine" else vectors


def _logits(h: Tensor, gallery: Gallery) -> Tensor:
    assert gallery.classifier is not None
    bias = gallery.classifier_bias
    return F.linear(h, gallery.classifier.float(), None if bias is None else bias.float())  # (c, d) -> (c, C)


def _log_probabilities(order: str, gallery: Gallery) -> Iterator[Tensor]:
    if gallery.classifier is None:
        raise UserError(
            f"order `{order}` needs a classifier of the new model; evaluate with a backbone as query model, "
            "or give embeddings_params.classifier"
        )
    for h in _parts(gallery.transformed, len(gallery.classifier)):
        yield _logits(h, gallery).log_softmax(1)


def _classes(h: Tensor, gallery: Gallery, means: Tensor | None) -> Tensor:
    """The predicted classes (c,) of h (c, d)."""
    if gallery.classifier is not None:
        return _logits(h, gallery).argmax(1)
    assert means is not None
    return (means.square().sum(1) - 2 * _placed(h, gallery) @ means.T).argmin(1)
