"""What every transformation takes and gives."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from models.standardisation import Standardisation


class Transformed(NamedTuple):
    """What a transformation gives for a batch."""

    embedding: torch.Tensor  # (B, d_new)
    log_variance: torch.Tensor | None  # (B, sigma_dim); None from a transformation without uncertainty


class Prefix(NamedTuple):
    """The first dimensions of wider embeddings, as Matryoshka models give them to be used."""

    dim: int
    wider: int  # the dimension of which they are the first
    unit: bool  # they are given the length 1 again

    def of(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The first dimensions of `wider` embeddings (n, wider); others as they are."""
        if embeddings.shape[1] != self.wider:
            return embeddings
        embeddings = embeddings[:, : self.dim]
        return F.normalize(embeddings.float(), dim=1) if self.unit else embeddings


class Transformation(nn.Module, ABC):
    """h(old embedding, side-information) -> new embedding.

    A subclass implements `transform` and declares what it makes of its inputs.

    With `normalised`, for spaces that are searched by cosine, h has length 1. With a `residual_head` that gives the log
    variance, linear in the inputs: the expected log of the squared error a dimension (`trainers.residuals`).

    With a `start`, an affine map of the inputs side by side, h is what that gives plus what the subclass adds to it.

    With a `centre`, by which new embeddings are standardised, the log variance is relative: less the log of h's mean
    squared distance from the mean, before h gets its length. What lies far out is found easily, whatever its error.

    With `standards`, one `Standardisation` by role, what lies within works on inputs and outputs of zero mean and unit
    scale, whatever those of the embeddings are.
    """

    inner_dim: ClassVar[int | None] = None  # default width of its hidden layers; None where it has none
    takes_side_info: ClassVar[bool] = True
    old_stands_in: ClassVar[bool] = False  # for side-information where there is none; else its dimension is then 0
    has_uncertainty: ClassVar[bool] = False  # of its own

    def __init__(self) -> None:
        super().__init__()
        self.normalised = False
        self.residual_head: nn.Linear | None = None
        self.centre: Standardisation | None = None
        self.standards: nn.ModuleDict | None = None  # old, side_info, new
        self.prefix: Prefix | None = None  # of the old embeddings

    def forward(self, old: torch.Tensor, side_info: torch.Tensor | None = None) -> Transformed:
        """Old embeddings (B, d_old), side-information (B, d_side) -> h (B, d_new), log variance (B, sigma_dim).

        (B, d, 1, 1) inputs are taken too, and with a `prefix` the wider old embeddings that it is of.
        """
        old, side_info = old.flatten(1), None if side_info is None else side_info.flatten(1)
        if self.prefix is not None:
            old = self.prefix.of(old)
        h, log_variance = self._in_its_scale(old, side_info)
        if self.residual_head is not None:
            log_variance = self.residual_head(joined(old, side_info))
        if self.centre is not None and log_variance is not None:
            log_variance = log_variance - log_square(self.centre(h))
        return Transformed(self.placed(h), log_variance)

    def placed(self, h: torch.Tensor) -> torch.Tensor:
        """h (B, d) as it is given: of length 1 where `normalised`."""
        return F.normalize(h, dim=1) if self.normalised else h

    def _in_its_scale(self, old: torch.Tensor, side_info: torch.Tensor | None) -> Transformed:
        if self.standards is None:
            return self.transform(old, side_info)
        side_info = None if side_info is None else self.standards["side_info"](side_info)
        h, log_variance = self.transform(self.standards["old"](old), side_info)
        return Transformed(cast(Standardisation, self.standards["new"]).inverse(h), log_variance)

    @abstractmethod
    def transform(self, old: torch.Tensor, side_info: torch.Tensor | None) -> Transformed:
        """As `forward`, of (B, d) inputs, with h as it is and a log variance of the transformation's own or none.

        Inputs and h are standardised where there are `standards`.
        """


class Network(Transformation):
    """A transformation that is trained, from random weights or from an affine one, its `start`."""

    def __init__(self) -> None:
        super().__init__()
        self.start: nn.Linear | None = None

    def begin_at(self, start: nn.Linear) -> None:
        """Let h be what `start` gives, and from now on learn what to add: the layer that gives h gives zero."""
        self.start = start.requires_grad_(False)
        self.return_to_start()

    def return_to_start(self) -> None:
        """Let h be what the start gives again."""
        last = self.last_layer()
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    @abstractmethod
    def last_layer(self) -> nn.Linear:
        """The layer that gives h."""

    def added_to_start(self, h: torch.Tensor, old: torch.Tensor, side_info: torch.Tensor | None) -> torch.Tensor:
        """What the last layer gives (B, d_new) -> h (B, d_new)."""
        return h if self.start is None else self.start(joined(old, side_info)) + h


def joined(old: torch.Tensor, side_info: torch.Tensor | None) -> torch.Tensor:
    """Old embedding and side-information, if there is any, side by side: (B, d_old), (B, d_side) -> (B, sum)."""
    return old if side_info is None else torch.cat([old, side_info], dim=1)


def log_square(h: torch.Tensor) -> torch.Tensor:
    """The log of the mean square of h (B, d) over dimensions, (B, 1)."""
    return h.square().mean(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny).log()
