"""One number for the quality of an upgrade while its gallery is backfilled."""

from statistics import fmean

from torch import Tensor

from retrieval.evaluation import backfilling_curve, cutoffs
from retrieval.orders.backfilling import backfilling_order

BACKFILLING = 4  # points between the ends: few, since choices are compared at the same ones


def upgrade_quality(new: Tensor, transformed: Tensor, labels: Tensor, classifier: Tensor, bias: Tensor) -> float:
    """The mean of the areas under the curves of CMC-1, CMC-5 and mAP, under `confidence` order.

    Args:
        new: the new model's embeddings of n items, which are queries and what the gallery is backfilled with, (n, d).
        transformed: h(old) of the same items, (n, d).
        labels: (n,) integers.
        classifier: (C, d), and its bias (C,), for the order.

    Raises:
        UserError: as `backfilling_curve`.
    """
    order = backfilling_order(
        "confidence", transformed=transformed, new=new, classifier=classifier, classifier_bias=bias
    )
    points = cutoffs(len(new), BACKFILLING)
    curve = backfilling_curve(new, transformed, new, labels, orders={"confidence": order}, cutoffs=points)
    return fmean(value for value in curve["confidence"].auc.to_json().values() if value is not None)
