"""Transformations h(old embedding, side-information) -> new embedding (FCT, figure 3; FastFill, section 4).

The published networks are 1x1 convolutions on (N, C, 1, 1); here they are linear layers on (N, C), which is the same
function and many times faster.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from utils.config import unknown_choice
from utils.errors import UserError
from utils.schema import TransformationArch


class Transformed(NamedTuple):
    """What a transformation gives for a batch."""

    embedding: torch.Tensor  # (B, d_new)
    log_variance: torch.Tensor | None  # (B, sigma_dim); None from a transformation without uncertainty


def linear_bn_relu(inputs: int, outputs: int) -> nn.Sequential:
    """Linear without bias, batch normalisation, ReLU."""
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True))


class FCTTransformation(nn.Module):
    """The transformation of FCT: a projection of each input, then a mixer (`MLP_BN_SIDE_PROJECTION`)."""

    def __init__(
        self, *, old_embedding_dim: int, new_embedding_dim: int, side_info_dim: int, inner_dim: int = 2048
    ) -> None:
        super().__init__()
        self.p1 = self._projection(old_embedding_dim, new_embedding_dim)
        self.p2 = self._projection(side_info_dim, new_embedding_dim)
        self.mixer = nn.Sequential(
            linear_bn_relu(4 * new_embedding_dim, inner_dim),
            linear_bn_relu(inner_dim, inner_dim),
            nn.Linear(inner_dim, new_embedding_dim),
        )

    @staticmethod
    def _projection(inputs: int, new_embedding_dim: int) -> nn.Sequential:
        return nn.Sequential(linear_bn_relu(inputs, 2 * inputs), linear_bn_relu(2 * inputs, 2 * new_embedding_dim))

    def forward(self, old: torch.Tensor, side_info: torch.Tensor | None = None) -> Transformed:
        """Old embeddings (B, d_old) and side-information (B, d_side) -> h (B, d_new).

        Without side-information the old embedding takes its place; (B, d, 1, 1) inputs are taken too.
        """
        old = old.flatten(1)  # (B, d_old[, 1, 1]) -> (B, d_old)
        side_info = old if side_info is None else side_info.flatten(1)
        return Transformed(self.mixer(torch.cat([self.p1(old), self.p2(side_info)], dim=1)), None)


class FastFillTransformation(FCTTransformation):
    """FCT's transformation with an uncertainty head on h (`MLP_BN_SIDE_PROJECTION_SIGMA`).

    The head gives the log variance s: one number an item (`sigma_dim` 1), or one a dimension (`sigma_dim` d_new).
    """

    def __init__(
        self,
        *,
        old_embedding_dim: int,
        new_embedding_dim: int,
        side_info_dim: int,
        inner_dim: int = 2048,
        sigma_dim: int = 1,
    ) -> None:
        super().__init__(
            old_embedding_dim=old_embedding_dim,
            new_embedding_dim=new_embedding_dim,
            side_info_dim=side_info_dim,
            inner_dim=inner_dim,
        )
        if sigma_dim not in (1, new_embedding_dim):
            raise UserError(
                f"arch_params.sigma_dim: should be 1 or new_embedding_dim {new_embedding_dim}, got {sigma_dim}"
            )
        self.uncertainty_head = nn.Linear(new_embedding_dim, sigma_dim)

    def forward(self, old: torch.Tensor, side_info: torch.Tensor | None = None) -> Transformed:
        """As FCT's, with the log variance (B, sigma_dim)."""
        h = super().forward(old, side_info).embedding
        return Transformed(h, self.uncertainty_head(h))


TRANSFORMATIONS: dict[str, type[FCTTransformation]] = {
    "fct": FCTTransformation,
    "fastfill": FastFillTransformation,
    "MLP_BN_SIDE_PROJECTION": FCTTransformation,
    "MLP_BN_SIDE_PROJECTION_SIGMA": FastFillTransformation,
}


def build_transformation(arch: str, **options: int) -> FCTTransformation:
    """Build the transformation that the registry knows as `arch`, by its own name or ml-fct's.

    Raises:
        UserError: the name is not in the registry, or it has no uncertainty and `sigma_dim` is given.
    """
    if arch not in TRANSFORMATIONS:
        raise UserError(unknown_choice("arch_params.arch", arch, TRANSFORMATIONS))
    kind = TRANSFORMATIONS[arch]
    if "sigma_dim" in options and not issubclass(kind, FastFillTransformation):
        raise UserError(f"arch_params.sigma_dim: {arch} has no uncertainty; use fastfill or leave the key out")
    return kind(**options)


def transformation_arguments(arch: TransformationArch, dims: dict[str, int]) -> dict[str, Any]:
    """The arguments of `build_transformation`: what `arch_params` says, completed by the models' dimensions.

    Args:
        dims: embedding dimension of each frozen model: old, new and, if there is one, side_info.

    Raises:
        UserError: `arch_params` says another dimension than a model has.
    """
    has_side_info = "side_info" in dims
    actual = {
        "old_embedding_dim": dims["old"],
        "new_embedding_dim": dims["new"],
        "side_info_dim": dims["side_info"] if has_side_info else dims["old"],
    }
    sources = {
        "old_embedding_dim": "the old model",
        "new_embedding_dim": "the new model",
        "side_info_dim": "the side-information model" if has_side_info else "the old embedding that stands in for it",
    }
    for name, dim in actual.items():
        stated = getattr(arch, name)
        if stated is not None and stated != dim:
            raise UserError(f"arch_params.{name}: says {stated}, {sources[name]} has {dim}")
    sigma = {} if arch.sigma_dim is None else {"sigma_dim": arch.sigma_dim}
    return {"arch": arch.arch, **actual, "inner_dim": arch.inner_dim, **sigma}
