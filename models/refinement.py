"""A head on any transformation that pulls h towards what the new model expects of its class."""

from typing import Any

import torch
from torch.nn import functional as F

from models.transformed import Transformation, Transformed


class RefinedTransformation(Transformation):
    """h' = h + strength max_c p_c(h) (sum_c p_c(h) m_c - h), with p(h) = softmax(V h + b).

    V, b are the new model's classifier and m_c the mean new embedding of class c over the training set. Where there is
    no classifier m_c are k-means centroids and p(h) their soft assignment (`soft_assignment`). An item is pulled as far
    as its class is clear: between classes it would come near to the queries of all of them. The uncertainty is that of
    the transformation within, and so is the length: where that gives h the length 1, h' has it too.
    """

    classifier: torch.Tensor
    bias: torch.Tensor
    class_means: torch.Tensor

    def __init__(
        self, transformation: Transformation, *, num_classes: int, new_embedding_dim: int, strength: float
    ) -> None:
        super().__init__()
        self.transformation, self.strength = transformation, strength
        self.normalised = transformation.normalised
        for name in ("classifier", "class_means"):
            self.register_buffer(name, torch.zeros(num_classes, new_embedding_dim))
        self.register_buffer("bias", torch.zeros(num_classes))

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that it was made with, but for the transformation within."""
        num_classes, new_embedding_dim = self.classifier.shape
        return {"num_classes": num_classes, "new_embedding_dim": new_embedding_dim, "strength": self.strength}

    def transform(self, old: torch.Tensor, side_info: torch.Tensor | None) -> Transformed:
        h, log_variance = self.transformation(old, side_info)
        return Transformed(self._pulled(h), log_variance)

    def refine(self, h: torch.Tensor) -> torch.Tensor:
        """h (B, d) of the transformation within -> h' (B, d) of this one, float32."""
        return self.placed(self._pulled(h))

    def _pulled(self, h: torch.Tensor) -> torch.Tensor:
        h = h.float()
        probabilities = F.linear(h, self.classifier, self.bias).softmax(1)  # (B, d) -> (B, C)
        confidence = probabilities.amax(1, keepdim=True)  # (B, 1)
        return h + self.strength * confidence * (probabilities @ self.class_means - h)


def soft_assignment(centroids: torch.Tensor, variance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax of -|h - c|^2 / (2 variance) over centroids c (K, d) as a classifier: weight (K, d), bias (K,).

    |h|^2 is the same for all centroids, and what is left is linear in h. `variance` is that of a dimension within a
    cluster, so that these are the posteriors of equal spherical Gaussians.
    """
    return centroids / variance, -centroids.square().sum(1) / (2 * variance)
