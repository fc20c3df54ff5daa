"""Uncertainty for transformations that have none of their own: how large their error is expected to be."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from models.modes import in_eval_mode
from models.standardisation import mean_and_scale
from models.transformed import Transformation, joined
from trainers.transformation.closed_forms import Moments, ridge
from trainers.transformation.pairs import PairBatch
from utils.distributed import World

SMALLEST = 1e-12  # squared error whose logarithm is still taken, of the new embeddings' variance


def squared_errors(transformation: Transformation, batch: PairBatch) -> torch.Tensor:
    """The squared error a dimension of each item, (B,), in eval mode."""
    with in_eval_mode(transformation):
        return (transformation(batch.old, batch.side_info).embedding - batch.new).square().mean(1)


@torch.no_grad()
def fit_residual_head(
    transformation: Transformation, pairs: Iterable[PairBatch], held_out: PairBatch, world: World
) -> nn.Linear:
    """Give `transformation` a log variance s that is affine in its inputs x.

    Its direction is the ridge regression of log r_i^2 on x_i over `pairs`, r_i^2 being the squared error a dimension.
    As the mean of a logarithm lies below the logarithm of the mean, and errors on other pairs may be larger, the
    constant is set on the held-out ones: so that the mean of r_i^2 exp(-s_i) is 1, where their Gaussian likelihood is
    highest. So exp(s) is a squared error in the units of the new embeddings.

    Args:
        pairs: this process's share of pairs whose errors are as those on others: not such as a large network has seen.
        held_out: the same on every process.

    Raises:
        UserError: see `Moments.of`.
    """
    smallest = SMALLEST * (mean_and_scale(held_out.new)[1] ** 2 or 1.0)

    def batches() -> Iterator[PairBatch]:
        for batch in pairs:
            logs = squared_errors(transformation, batch).clamp_min(smallest).log()
            yield PairBatch(batch.old, batch.side_info, logs.unsqueeze(1), batch.labels)

    solution = ridge(Moments.of(batches(), world))
    inputs = joined(held_out.old, held_out.side_info)
    head = nn.Linear(inputs.shape[1], 1).to(inputs.device)
    head.weight.copy_(solution.weight)
    head.bias.copy_(solution.bias)
    errors = squared_errors(transformation, held_out).clamp_min(smallest)
    ratios = errors.log() - head(inputs).squeeze(1)
    head.bias.add_(ratios.logsumexp(0) - math.log(len(ratios)))
    transformation.residual_head = head
    return head
