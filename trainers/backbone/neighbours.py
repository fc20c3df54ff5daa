"""How well an embedding groups classes that it was never told: classification by nearest neighbours."""

import torch
from torch.nn import functional as F

# As for DINO (arXiv 2104.14294, appendix F.1), where 20 neighbours did best throughout.
NEIGHBOURS, TEMPERATURE = 20, 0.07
CHUNK_ELEMENTS = 1 << 24  # similarities in memory at a time, 64 MiB


def knn_predict(queries: torch.Tensor, bank: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The class that has the most weight among the nearest items by cosine (Wu et al., arXiv 1805.01978, section 3.4).

    A neighbour weighs exp(cosine / TEMPERATURE). A zero vector is at cosine 0 to everything.

    Args:
        queries: (n, d).
        bank: (m, d), the items to choose neighbours from; where they are fewer than NEIGHBOURS, all of them.
        labels: (m,) int64, their classes.

    Returns:
        (n,) int64.
    """
    queries, bank = F.normalize(queries.float(), dim=1), F.normalize(bank.float(), dim=1)
    classes = int(labels.max()) + 1
    predictions = []
    for chunk in queries.split(max(1, CHUNK_ELEMENTS // len(bank))):
        nearest = (chunk @ bank.T).topk(min(NEIGHBOURS, len(bank)), dim=1)  # (c, k)
        weights = ((nearest.values - 1) / TEMPERATURE).exp()  # of at most 1, whatever the temperature
        votes = weights.new_zeros(len(chunk), classes).scatter_add_(1, labels[nearest.indices], weights)
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)
