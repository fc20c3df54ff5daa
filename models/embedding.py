"""One way to get an embedding out of any model: a backbone, a transformed old model, a TorchScript archive."""

import torch
from torch import nn

from models.transformed import Transformation, Transformed


def embed(model: nn.Module, images: torch.Tensor) -> Transformed:
    """Images (B, 3, H, W) -> float32 embedding (B, d) and, from an uncertain model, log variance (B, sigma_dim).

    A backbone gives (logits, embedding), a TorchScript archive that or the embedding alone.
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
