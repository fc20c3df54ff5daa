"""Plain transformations to measure FCT and FastFill against: affine maps and a small residual network."""

from typing import ClassVar, cast

import torch
from torch import nn

from models.transformed import Network, Transformation, Transformed, joined


class AffineTransformation(Transformation):
    """h = W x + b of the old embedding and the side-information side by side; W and b have a closed form."""

    def __init__(self, *, old_embedding_dim: int, new_embedding_dim: int, side_info_dim: int) -> None:
        super().__init__()
        self.affine = nn.Linear(old_embedding_dim + side_info_dim, new_embedding_dim)

    def transform(self, old: torch.Tensor, side_info: torch.Tensor | None) -> Transformed:
        return Transformed(self.affine(joined(old, side_info)), None)


class ProcrustesTransformation(AffineTransformation):
    """A rotation or reflection between centred spaces; `trainers.transformation.closed_forms.procrustes` finds it."""

    takes_side_info = False


class RidgeTransformation(AffineTransformation):
    """Ridge regression with an intercept; `trainers.transformation.closed_forms.ridge` finds it."""


class ResidualMLP(Network):
    """The residual MLP of Drift-Adapter (arXiv 2509.23471): h = skip(old) + W_2 gelu(W_1 x + b_1) + b_2.

    There it maps new queries into the old space; here, as every transformation, the old gallery into the new one. The
    skip is the identity, and a linear layer without bias where the dimensions differ. x is the old embedding and the
    side-information side by side. A start takes the place of the skip.
    """

    inner_dim: ClassVar[int | None] = 256

    def __init__(
        self, *, old_embedding_dim: int, new_embedding_dim: int, side_info_dim: int, inner_dim: int = 256
    ) -> None:
        super().__init__()
        self.skip = (
            nn.Identity()
            if old_embedding_dim == new_embedding_dim
            else nn.Linear(old_embedding_dim, new_embedding_dim, bias=False)
        )
        self.residual = nn.Sequential(
            nn.Linear(old_embedding_dim + side_info_dim, inner_dim), nn.GELU(), nn.Linear(inner_dim, new_embedding_dim)
        )

    def begin_at(self, start: nn.Linear) -> None:
        super().begin_at(start)
        del self.skip

    def last_layer(self) -> nn.Linear:
        return cast(nn.Linear, self.residual[-1])

    def transform(self, old: torch.Tensor, side_info: torch.Tensor | None) -> Transformed:
        residual = self.residual(joined(old, side_info))
        if self.start is None:
            return Transformed(self.skip(old) + residual, None)
        return Transformed(self.added_to_start(residual, old, side_info), None)
