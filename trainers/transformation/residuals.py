"""What ridge regression makes of the pairs that it is fitted to, each item left out of its own fit."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from models.modes import in_eval_mode
from models.standardisation import mean_and_scale
from models.transformed import Transformation, joined
from trainers.transformation.closed_forms import Affine, Moments, Spectrum, ridge
from trainers.transformation.config import FitConfig
from trainers.transformation.division import FittingData
from trainers.transformation.pairs import PairBatch, PairsInMemory
from utils.batches import share_of_batch
from utils.distributed import World

SMALLEST = 1e-12  # squared error whose logarithm is still taken, of the new embeddings' variance
LEAST_FREE = 1e-6  # 1 - leverage of an item: at 0 the others would say nothing of it


@dataclass(frozen=True)
class Regression:
    """The ridge regression of the training pairs, and how large its error is expected to be for an item."""

    moments: Moments
    solution: Affine
    log_error: Affine  # of the inputs -> log of the squared error a dimension, (1,)

    @classmethod
    def of(cls, pairs: PairsInMemory, held_out: PairBatch, normalised: bool, world: World) -> "Regression":
        """Fit both to all pairs; the strength of the ridge validates best on the held-out ones.

        The squared errors are those of each item by a regression that is fitted to the others, so they are as on items
        that were never seen; their logarithms are fitted by a ridge regression again.

        Args:
            normalised: h has length 1.

        Raises:
            UserError: see `Moments.of`.
        """
        moments = Moments.of(pairs.views_once(), world)
        spectrum = Spectrum.of(moments)
        solution = ridge(moments, spectrum, Moments.of([share_of_batch(held_out, world)], world))
        smallest = smallest_error(held_out)

        def logs() -> Iterator[PairBatch]:
            for batch in pairs.views_once():
                h = left_out(moments, spectrum, solution, batch)
                h = nn.functional.normalize(h, dim=1) if normalised else h
                errors = (h - batch.new).square().mean(1, keepdim=True).clamp_min(smallest)
                yield batch._replace(new=errors.log())

        return cls(moments, solution, ridge(moments.towards(logs(), world), spectrum))


def regression_of(data: FittingData, config: FitConfig, world: World) -> Regression | None:
    """The regression that a fit starts from; None with `held_out` 0.

    Raises:
        UserError: see `Moments.of`.
    """
    if not config.held_out:
        return None
    assert data.held_out is not None
    return Regression.of(data.training, data.held_out, data.normalised, world)


def left_out(moments: Moments, spectrum: Spectrum, solution: Affine, batch: PairBatch) -> torch.Tensor:
    """What the ridge regressions of all other pairs make of each item of a batch, (B, d_new) float32.

    With residual r_i and leverage l_i = 1 / n + sum_j a_ij^2 / (e_j + strength), where a_i = V^T (x_i - mean), leaving
    item i out makes its residual r_i / (1 - l_i) (Allen, 1974): exact for a strength that stays.
    """
    device = batch.new.device
    mean, values, vectors = (part.float().to(device) for part in (moments.mean_x, *spectrum))
    x = joined(batch.old, batch.side_info)
    leverage = 1 / moments.count + ((x - mean) @ vectors).square() @ (1 / (values + solution.found["strength"]))
    residual = batch.new - (x @ solution.weight.T.float().to(device) + solution.bias.float().to(device))
    return batch.new - residual / (1 - leverage).clamp_min(LEAST_FREE).unsqueeze(1)


def squared_errors(transformation: Transformation, batch: PairBatch) -> torch.Tensor:
    """The squared error a dimension of each item, (B,), in eval mode."""
    with in_eval_mode(transformation):
        return (transformation(batch.old, batch.side_info).embedding - batch.new).square().mean(1)


def smallest_error(held_out: PairBatch) -> float:
    """The squared error below which no logarithm is taken."""
    return SMALLEST * (mean_and_scale(held_out.new)[1] ** 2 or 1.0)


@torch.no_grad()
def residual_head(regression: Regression, device: torch.device) -> nn.Linear:
    """A log variance that is affine in the inputs: the expected log of the squared error of the regression."""
    weight = regression.log_error.weight
    head = nn.Linear(weight.shape[1], 1).to(device)
    head.weight.copy_(weight)
    head.bias.copy_(regression.log_error.bias)
    return head


@torch.no_grad()
def set_level(transformation: Transformation, held_out: PairBatch) -> None:
    """Set the constant of the residual head's log variance s on held-out pairs.

    The mean of r_i^2 exp(-s_i) becomes 1, where their Gaussian likelihood is highest, r_i^2 being the transformation's
    squared error a dimension. So exp(s) is one in the units of the new embeddings.
    """
    assert transformation.residual_head is not None
    with in_eval_mode(transformation):
        h, log_variance = transformation(held_out.old, held_out.side_info)
    smallest = smallest_error(held_out)
    ratios = (h - held_out.new).square().mean(1).clamp_min(smallest).log() - log_variance.squeeze(1)
    transformation.residual_head.bias.add_(ratios.logsumexp(0) - math.log(len(ratios)))
