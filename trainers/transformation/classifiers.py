"""A linear classifier on embeddings, for new models that come without one."""

import torch
from torch.nn import functional as F

from models.standardisation import mean_and_scale

PENALTY = 1e-3  # of the squared weights, on embeddings of variance 1 a dimension
ITERATIONS = (30, 200)  # at least and at most; between them so many as
OPERATIONS = 1e12  # allow, a weight taking six for each embedding


def fit_classifier(embeddings: torch.Tensor, labels: torch.Tensor, num_classes: int, smoothing: float) -> torch.Tensor:
    """The bias-free softmax classifier of the least label-smoothed cross-entropy with a small L2 penalty.

    It minimises mean cross-entropy + PENALTY / 2 sum W^2 by L-BFGS, starting at zero: the problem is convex, and the
    result a function of the arguments alone, near the minimum where there are many. W is penalised in units of the
    embeddings' variance, about their mean: classes are no harder to tell apart far from the origin, where the mean
    takes the place of a bias.

    Args:
        embeddings: (n, d), float16 or float32.
        labels: (n,) in 0..num_classes - 1; items with a negative one are left out.
        smoothing: share of the label spread over all classes.

    Returns:
        W (num_classes, d) float32, for the embeddings as they are.
    """
    known = labels >= 0
    features, labels = embeddings[known].float(), labels[known]
    unit = mean_and_scale(features)[1] or 1.0
    features = features / unit
    weight = features.new_zeros(num_classes, features.shape[1], requires_grad=True)
    fewest, most = ITERATIONS
    iterations = min(most, max(fewest, int(OPERATIONS / (6 * weight.numel() * max(1, len(features))))))
    optimizer = torch.optim.LBFGS([weight], max_iter=iterations, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight), labels, label_smoothing=smoothing)
        loss = loss + PENALTY / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (weight / unit).detach()
