"""An item's surroundings: the nearest items of a random sample of the gallery, in h."""

from collections.abc import Iterator

import torch
from torch import Tensor

from retrieval.orders.evidence import Evidence
from retrieval.ranking.distances import PART_ELEMENTS, unit

NEIGHBOURS = 10
SAMPLE = 4096  # items among which neighbours are looked for, so that the cost grows with n and not with its square


def sampled(evidence: Evidence) -> Tensor:
    """The items of the sample, (S,) int64 on the gallery's device."""
    n = len(evidence.transformed)
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(evidence.seed))[:SAMPLE]
    return chosen.to(evidence.new.device)


def nearest(evidence: Evidence, sample: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A chunk of the items h (c, d) float32 at a time; to the nearest others of the sample their squared distances
    (c, k), of vectors of length 1 for cosine, and their places in it (c, k).
    """
    near = placed(evidence.transformed[sample].float(), evidence)
    place = sample.new_full((len(evidence.transformed),), -1)  # of an item in the sample
    place[sample] = torch.arange(len(sample), device=sample.device)
    count, start = min(NEIGHBOURS, len(sample) - 1), 0
    for h in parts(evidence.transformed, SAMPLE):
        vectors = placed(h, evidence)
        distances = near.square().sum(1) - 2 * vectors @ near.T + vectors.square().sum(1, keepdim=True)  # (c, S)
        itself = place[start : start + len(h)]
        (row,) = (itself >= 0).nonzero(as_tuple=True)
        distances[row, itself[row]] = torch.inf
        found = distances.topk(count, largest=False)
        yield h, found.values.clamp(min=0), found.indices
        start += len(h)


def parts(rows: Tensor, columns: int) -> Iterator[Tensor]:
    """Chunks (c, d) float32 of `rows`, so that a table (c, columns) stays small."""
    for part in rows.split(max(1, PART_ELEMENTS // max(columns, rows.shape[1]))):
        yield part.float()


def placed(vectors: Tensor, evidence: Evidence) -> Tensor:
    """Vectors (c, d) as float32, for cosine of length 1."""
    vectors = vectors.float()
    return unit(vectors) if evidence.distance == "cosine" else vectors


def density(evidence: Evidence) -> Tensor:
    """Smallest mean distance of h to its 10 nearest others of the sample first: where most queries look."""
    if len(evidence.transformed) < 2:
        return torch.zeros(len(evidence.transformed))
    return torch.cat([-distances.sqrt().mean(1) for _, distances, _ in nearest(evidence, sampled(evidence))])
