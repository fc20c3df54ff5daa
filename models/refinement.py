"""A head on any transformation, for retrieval from galleries that are partly transformed and partly new."""

from typing import Any

import torch
from torch.nn import functional as F

from models.transformed import Transformation, Transformed


class RefinedTransformation(Transformation):
    """h' = h + strength (sum_c p_c(h) m_c - h) + offset u, with p(h) = softmax(V h + b).

    The pull: V, b are the new model's classifier and m_c the mean new embedding of class c over the training set. Where
    there is no classifier m_c are k-means centroids and p(h) their soft assignment (`soft_assignment`).

    The offset: u is a unit vector along which new embeddings hardly extend, so that offset u adds about offset^2 to the
    squared distance of any query to a transformed item, and nothing to that to a new one. A regression makes h nearer
    to everything than new embeddings are, and the pull does so once more; the offset takes that back.

    The uncertainty is that of the transformation within.
    """

    classifier: torch.Tensor
    bias: torch.Tensor
    class_means: torch.Tensor
    direction: torch.Tensor

    def __init__(
        self,
        transformation: Transformation,
        *,
        num_classes: int,
        new_embedding_dim: int,
        strength: float,
        offset: float,
    ) -> None:
        super().__init__()
        self.transformation = transformation
        self.strength, self.offset = strength, offset
        for name in ("classifier", "class_means"):
            self.register_buffer(name, torch.zeros(num_classes, new_embedding_dim))
        self.register_buffer("bias", torch.zeros(num_classes))
        self.register_buffer("direction", torch.zeros(new_embedding_dim))

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that it was made with, but for the transformation within."""
        num_classes, new_embedding_dim = self.classifier.shape
        return {
            "num_classes": num_classes,
            "new_embedding_dim": new_embedding_dim,
            "strength": self.strength,
            "offset": self.offset,
        }

    @property
    def classifier_of_refined(self) -> torch.Tensor:
        """(C, d): V for h' and for new embeddings, blind to the direction of the offset."""
        return self.classifier - torch.outer(self.classifier @ self.direction, self.direction)

    def transform(self, old: torch.Tensor, side_info: torch.Tensor | None) -> Transformed:
        h, log_variance = self.transformation(old, side_info)
        return Transformed(self.refine(h), log_variance)

    def refine(self, h: torch.Tensor) -> torch.Tensor:
        """h (B, d) -> h' (B, d), float32."""
        h = h.float()
        probabilities = F.linear(h, self.classifier, self.bias).softmax(1)  # (B, d) -> (B, C)
        expected = probabilities @ self.class_means  # (B, C) -> (B, d)
        return h + self.strength * (expected - h) + self.offset * self.direction


def soft_assignment(centroids: torch.Tensor, variance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax of -|h - c|^2 / (2 variance) over centroids c (K, d) as a classifier: weight (K, d), bias (K,).

    |h|^2 is the same for all centroids, and what is left is linear in h. `variance` is that of a dimension within a
    cluster, so that these are the posteriors of equal spherical Gaussians.
    """
    return centroids / variance, -centroids.square().sum(1) / (2 * variance)
