"""One item for each class in the place where its queries look first.

A class mean is a better neighbour than any single item: the nearest item's class is right less often than the nearest
mean's. No gallery holds means. But the item whose class is clearest can stand at its class's mean, since what h knows
of it beyond its class is little; a query then finds the classes in question before the many items of any one of them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from retrieval.ranking.distances import PART_ELEMENTS
from retrieval.validation import check_embeddings, check_same_classes

# Of `class_spread`: galleries of all known classes had 0.97 and more, of half of them or of unknown ones 0.91 and less.
EVEN_SPREAD = 0.95


def class_spread(transformed: Tensor, classifier: Tensor, classifier_bias: Tensor | None = None) -> float:
    """Over which share of the C classes that are known a gallery spreads: the perplexity of its mean prediction / C.

    1 for as many items of each; less where there are few of some, or the items are of classes that are not known.

    Args:
        transformed: h(old) of n gallery items, (n, d).
        classifier: (C, d) weight of the new model's classifier.
        classifier_bias: (C,), if it has one.
    """
    total = torch.zeros(len(classifier), dtype=torch.float64, device=transformed.device)
    for logits in class_logits(transformed, classifier, classifier_bias):
        total += logits.softmax(1).double().sum(0)
    share = total / len(transformed)
    return float(torch.special.entr(share).sum().exp()) / len(classifier)


def representatives(
    transformed: Tensor, classifier: Tensor, classifier_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Of each class that is predicted for any item, the item of which it is predicted with the largest probability.

    Args:
        transformed: h(old) of n gallery items, (n, d).
        classifier: (C, d) weight of the new model's classifier.
        classifier_bias: (C,), if it has one.

    Returns:
        The items and their classes, (m,) and (m,) int64 with m <= C, by rising class; of equal items the first.
    """
    values, indices = [], []
    for logits in class_logits(transformed, classifier, classifier_bias):
        value, index = logits.log_softmax(1).max(1)
        values.append(value)
        indices.append(index)
    predicted, by_probability = torch.cat(indices), torch.cat(values).sort(descending=True, stable=True).indices
    place = torch.arange(len(transformed), device=transformed.device)
    first = place.new_full((len(classifier),), len(transformed))
    first.scatter_reduce_(0, predicted[by_probability], place, "amin")
    (classes,) = (first < len(transformed)).nonzero(as_tuple=True)
    return by_probability[first[classes]], classes


def class_logits(transformed: Tensor, classifier: Tensor, classifier_bias: Tensor | None) -> Iterator[Tensor]:
    """The classifier's logits (c, C) of a part of the items at a time."""
    for part in transformed.split(max(1, PART_ELEMENTS // max(classifier.shape))):
        yield logits_of(part, classifier, classifier_bias)


def logits_of(h: Tensor, classifier: Tensor, classifier_bias: Tensor | None) -> Tensor:
    """(c, d) -> (c, C) float32."""
    return F.linear(h.float(), classifier.float(), None if classifier_bias is None else classifier_bias.float())


def place_representatives(
    transformed: Tensor, classifier: Tensor, class_means: Tensor, classifier_bias: Tensor | None = None
) -> Tensor:
    """h(old) (n, d) with the `representatives` moved to the means (C, d) of their classes, as a new tensor.

    Raises:
        UserError: embeddings, classifier and means are not finite or do not fit together.
    """
    check_embeddings(transformed=transformed, classifier=classifier, class_means=class_means)
    check_same_classes(classifier, class_means)
    items, classes = representatives(transformed, classifier, classifier_bias)
    placed = transformed.clone()
    placed[items] = class_means[classes].to(placed.dtype)
    return placed
