"""Uncertainty for transformations that have none of their own: how large their error is expected to be."""

from collections.abc import Iterator

import torch
from torch import nn

from models.transformed import Transformation, joined
from trainers.closed_form import Moments, ridge
from trainers.pairs import PairBatch, Pairs
from utils.distributed import World

SMALLEST = 1e-12  # squared error whose logarithm is still taken


def squared_errors(transformation: Transformation, batch: PairBatch) -> torch.Tensor:
    """The squared error a dimension of each item, (B,)."""
    return (transformation(batch.old, batch.side_info).embedding - batch.new).square().mean(1)


@torch.no_grad()
def fit_residual_head(transformation: Transformation, pairs: Pairs, held_out: PairBatch, world: World) -> None:
    """Give `transformation` a log variance s that is affine in its inputs x.

    Its direction is the ridge regression of log r_i^2 on x_i over the training pairs, r_i^2 being the squared error a
    dimension. As those errors may be smaller than others', and the mean of a logarithm lies below the logarithm of the
    mean, the constant is set on the held-out pairs: so that the mean of r_i^2 exp(-s_i) is 1, which is where their
    Gaussian likelihood is highest. So exp(s) is an error in the units of the new embeddings, as in FastFill.
    """
    transformation.eval()

    def batches() -> Iterator[PairBatch]:
        for batch in pairs.views_once():
            logs = squared_errors(transformation, batch).clamp_min(SMALLEST).log()
            yield PairBatch(batch.old, batch.side_info, logs.unsqueeze(1), batch.labels)

    solution = ridge(Moments.of(batches(), world))
    inputs = joined(held_out.old, held_out.side_info)
    head = nn.Linear(inputs.shape[1], 1).to(inputs.device)
    head.weight.copy_(solution.weight)
    head.bias.copy_(solution.bias)
    errors = squared_errors(transformation, held_out).clamp_min(SMALLEST)
    head.bias += (errors.log() - head(inputs).squeeze(1)).logsumexp(0) - torch.tensor(float(len(errors))).log()
    transformation.residual_head = head
