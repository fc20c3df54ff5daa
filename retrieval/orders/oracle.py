"""A backfilling order that no system can have, since it knows every label: an upper bound for those that one can."""

import torch
from torch import Tensor

from retrieval.orders.evidence import Evidence
from retrieval.ranking.distances import PART_ELEMENTS, unit
from utils.errors import UserError


def retrieval_error(evidence: Evidence) -> Tensor:
    """Largest true error first: the average precision that an item loses by h(old) in place of new.

    Each of the item's two embeddings ranks the new embeddings of all other items; relevant are those of its label. The
    score is the average precision by its new embedding less that by h(old); 0 where there is none, as of an item with a
    negative label, which is of no class. Quadratic in n, as an evaluation is.
    """
    labels = evidence.labels
    if labels is None:
        raise UserError("order `oracle` needs the labels of the gallery items")
    new, transformed = (rows.float() for rows in (evidence.new, evidence.transformed))
    if evidence.distance == "cosine":
        new, transformed = unit(new), unit(transformed)
    rank = torch.arange(1, len(new) + 1, device=new.device)
    losses = []
    for part in torch.arange(len(new), device=new.device).split(max(1, PART_ELEMENTS // len(new))):
        row = torch.arange(len(part), device=new.device)
        precisions = []
        for embedding in (new[part], transformed[part]):
            distances = new.square().sum(1) - 2 * embedding @ new.T  # (c, n), less what is the same for a row
            distances[row, part] = torch.inf
            nearest = distances.argsort(dim=1, stable=True)[:, :-1]  # (c, n - 1)
            relevant = (labels[nearest] == labels[part, None]) & (labels[part, None] >= 0)
            precision = relevant.cumsum(1) / rank[:-1]
            precisions.append((precision * relevant).sum(1) / relevant.sum(1).clamp(min=1))
        losses.append(precisions[0] - precisions[1])
    return torch.cat(losses)
