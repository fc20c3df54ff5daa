"""One way to get an embedding out of any model: a backbone, a transformed old model, a model of others."""

from typing import Any

import torch
from torch import nn

from models.transformed import Transformation, Transformed


def embed(model: nn.Module, images: torch.Tensor) -> Transformed:
    """Images (B, 3, H, W) -> float32 embedding (B, d) and, from an uncertain model, log variance (B, sigma_dim).

    A backbone gives (logits, embedding).
    """
    output = model(images)
    if isinstance(output, Transformed):
        sigma = output.log_variance
        return Transformed(output.embedding.float(), None if sigma is None else sigma.float())
    if isinstance(output, tuple):
        output = output[1]
    return Transformed(output.flatten(1).float(), None)  # (B, d[, 1, 1]) -> (B, d)


class TransformedModel(nn.Module):
    """Images -> h(old embedding, side-information): what stands in for the old model after an upgrade."""

    def __init__(self, old: nn.Module, side_info: nn.Module | None, transformation: Transformation) -> None:
        super().__init__()
        self.old, self.side_info, self.transformation = old, side_info, transformation

    def forward(self, images: torch.Tensor) -> Transformed:
        """Images (B, 3, H, W) -> transformed embedding (B, d_new), log variance (B, sigma_dim) or None."""
        side = None if self.side_info is None else embed(self.side_info, images).embedding
        return self.transformation(embed(self.old, images).embedding, side)


class Renormalised(nn.Module):
    """A model of images of one normalisation, given those of another.

    (p - m) / s of a level p is mapped to (p - m') / s', which is affine: s / s' x + (m - m') / s'.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: nn.Module, given: dict[str, Any], expected: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        mean, std, expected_mean, expected_std = (
            torch.tensor(values[name], dtype=torch.float64)[:, None, None]  # (3, 1, 1)
            for values in (given, expected)
            for name in ("mean", "std")
        )
        self.register_buffer("scale", (std / expected_std).float(), persistent=False)
        self.register_buffer("shift", ((mean - expected_mean) / expected_std).float(), persistent=False)

    def forward(self, images: torch.Tensor) -> Any:
        """As the model's."""
        return self.model(images * self.scale + self.shift)


def renormalised(model: nn.Module, given: dict[str, Any] | None, expected: dict[str, Any] | None) -> nn.Module:
    """`model`, with images mapped to the normalisation that it expects where those given have another.

    Args:
        given: `mean` and `std` of each channel that were taken out of the images, as fractions; None: not known.
        expected: those by which the model was trained; likewise.
    """
    known = [(values or {}).get(name) for values in (given, expected) for name in ("mean", "std")]
    if None in known or known[:2] == known[2:]:
        return model
    assert given is not None
    assert expected is not None
    return Renormalised(model, given, expected)
