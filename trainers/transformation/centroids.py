"""What stands for classes in the new space: their mean new embeddings, or k-means centroids."""

from typing import NamedTuple

import torch

from utils.errors import UserError
from utils.seeds import Stream, generator

ITERATIONS = 50
CHUNK = 8192  # embeddings compared with all centroids at once


class Centroids(NamedTuple):
    """K points of the new space, and how far embeddings lie about theirs."""

    points: torch.Tensor  # (K, d) float32
    variance: float  # mean squared distance of an embedding to its own point, a dimension


def class_means(new: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """The mean of the new embeddings (n, d) of each class, (C, d); of a class without items that of all.

    Labels (n,); an item with a negative one is of no class.
    """
    known = labels >= 0
    sums = new.new_zeros(num_classes, new.shape[1]).index_add_(0, labels[known], new[known])
    counts = torch.bincount(labels[known], minlength=num_classes).unsqueeze(1)
    return torch.where(counts > 0, sums / counts.clamp(min=1), new.mean(0))


def k_means(new: torch.Tensor, clusters: int, seed: int) -> Centroids:
    """Lloyd's algorithm on new embeddings (n, d), from `clusters` of them chosen as k-means++ does.

    A cluster that loses all its items keeps its place. A function of its arguments alone.

    Raises:
        UserError: there are fewer embeddings than clusters.
    """
    if len(new) < clusters:
        raise UserError(f"refinement_params.clusters: {clusters} are more than the {len(new)} training embeddings")
    new = new.float()
    points = _spread(new, clusters, generator(seed, Stream.CLUSTERS))
    nearest, squares = _assign(new, points)
    for _ in range(ITERATIONS):
        sums = torch.zeros_like(points).index_add_(0, nearest, new)
        counts = torch.bincount(nearest, minlength=clusters).unsqueeze(1)
        points = torch.where(counts > 0, sums / counts.clamp(min=1), points)
        before, (nearest, squares) = nearest, _assign(new, points)
        if torch.equal(before, nearest):
            break
    return Centroids(points, float(squares.mean()) / new.shape[1])


def _spread(new: torch.Tensor, clusters: int, random: torch.Generator) -> torch.Tensor:
    """(K, d): each drawn with a chance that grows with its squared distance to those drawn before."""
    drawn = [int(torch.randint(len(new), (), generator=random))]
    squares = (new - new[drawn[0]]).square().sum(1)
    while len(drawn) < clusters:
        cumulated = squares.double().cumsum(0)
        place = float(torch.rand((), generator=random, dtype=torch.float64)) * float(cumulated[-1])
        drawn.append(min(int(torch.searchsorted(cumulated, place, right=True)), len(new) - 1))
        squares = torch.minimum(squares, (new - new[drawn[-1]]).square().sum(1))
    return new[drawn].clone()


def _assign(new: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest point (n,) of each embedding, and the squared distance to it (n,)."""
    found = [torch.cdist(part, points).min(1) for part in new.split(CHUNK)]
    return torch.cat([part.indices for part in found]), torch.cat([part.values for part in found]).square()
