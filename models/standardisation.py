"""Embeddings brought to zero mean and unit scale, and back."""

import torch
from torch import nn

CONSTANT = 1e-12  # share of the mean square below which a variance is rounding


class Standardisation(nn.Module):
    """x -> (x - mean) / scale, in float32: a mean for each dimension, and one scale for all, so that angles stay.

    Made as the identity; the mean and the scale are part of the model's state.
    """

    mean: torch.Tensor  # (d,)
    scale: torch.Tensor  # ()

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(B, d) as they are -> (B, d) of zero mean and unit scale."""
        return (embeddings.float() - self.mean) / self.scale

    def inverse(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(B, d) of zero mean and unit scale -> (B, d) as they are."""
        return embeddings.float() * self.scale + self.mean


def mean_and_scale(embeddings: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The mean (d,) of embeddings (n, d), and the root of their variance, a mean over dimensions.

    The scale is 0 where the embeddings are all the same, but for the rounding of their mean.
    """
    variance, mean = torch.var_mean(embeddings.float(), 0, correction=0)
    spread, square = float(variance.double().mean()), float(mean.double().square().mean())
    return mean, 0.0 if spread <= CONSTANT * square else spread**0.5
