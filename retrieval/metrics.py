"""The retrieval metrics of one query, as pure functions on counts of items within successive distances.

A query's ranking is given by two tensors (..., T), nearest distance first: how many *relevant* items, and how many
items in all were *retrieved*, at each of T distances or nearer. Items at equal distances share an entry, so ties have
no order to depend on. In a plain ranked list, `retrieved` is 1, 2, 3, ... and `relevant` the running sum of the 0/1
relevance. Entries at which no relevant item is added carry nothing and may be left out.
"""

import torch
from torch import Tensor


def average_precision(relevant: Tensor, retrieved: Tensor) -> Tensor:
    """Average precision, (..., T), (..., T) -> (...) float64; ties grouped as in scikit-learn.

    AP = sum over t of (relevant_t - relevant_{t-1}) / R * precision_t, where precision_t = relevant_t / retrieved_t
    and R = relevant_T (`average_precision_score` with score = -distance). NaN where a query has no relevant item.

    >>> average_precision(torch.tensor([1, 1, 2]), torch.tensor([1, 2, 3]))  # (1/1 + 2/3) / 2
    tensor(0.8333, dtype=torch.float64)
    >>> average_precision(torch.tensor([1, 2]), torch.tensor([1, 3]))  # the second ties with an irrelevant item
    tensor(0.8333, dtype=torch.float64)
    """
    added = relevant.clone()
    added[..., 1:] -= relevant[..., :-1]
    precision = relevant.double() / retrieved.clamp(min=1)
    return precision.mul_(added).sum(-1) / relevant[..., -1]


def hit_ranks(relevant: Tensor, retrieved: Tensor, hits: int) -> Tensor:
    """The ranks, from 1, of a query's nearest `hits` relevant items, (..., T), (..., T) -> (..., hits) integers.

    Ties are broken against the query: rank = j + the irrelevant items that are as near as the j-th relevant one or
    nearer. So ranks do not depend on the order of the gallery, and a model that maps everything to one point gains
    nothing. Where a query has fewer relevant items, what follows theirs has no meaning.

    >>> hit_ranks(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3]), hits=2)
    tensor([2, 3])
    >>> hit_ranks(torch.tensor([1, 2]), torch.tensor([3, 4]), hits=2)  # two irrelevant items tie with the first
    tensor([3, 4])
    """
    number = torch.arange(1, hits + 1, dtype=relevant.dtype, device=relevant.device).expand(*relevant.shape[:-1], hits)
    entry = torch.searchsorted(relevant.contiguous(), number.contiguous()).clamp_(max=relevant.shape[-1] - 1)
    return retrieved.gather(-1, entry) - relevant.gather(-1, entry) + number


def first_relevant_rank(relevant: Tensor, retrieved: Tensor) -> Tensor:
    """The rank of the nearest relevant item of a query that has one, (..., T), (..., T) -> (...): see `hit_ranks`.

    >>> first_relevant_rank(torch.tensor([0, 1, 1]), torch.tensor([1, 2, 3]))
    tensor(2)
    """
    return hit_ranks(relevant, retrieved, 1)[..., 0]


def hits_within(relevant: Tensor, retrieved: Tensor, k: int) -> Tensor:
    """How many of the k nearest items are relevant, (..., T), (..., T) -> (...) integers; ties as in `hit_ranks`.

    All relevant items up to entry t are among the k nearest if k - irrelevant_t is at least their number; of the tie
    at the boundary there are as many as the irrelevant items before them leave room for.

    >>> hits_within(torch.tensor([1, 1, 2, 3]), torch.tensor([1, 2, 3, 4]), k=3)
    tensor(2)
    >>> hits_within(torch.tensor([1, 3]), torch.tensor([1, 5]), k=4)  # two relevant and two irrelevant items tie
    tensor(2)
    """
    return torch.minimum(relevant, k - (retrieved - relevant)).amax(-1).clamp(min=0)


def recall(hits: Tensor, num_relevant: Tensor) -> Tensor:
    """Recall@k: the share of a query's relevant items that are among its k nearest, from `hits_within`.

    Not the "recall@k" of metric learning, which asks for one item at least: that is CMC top-k.

    >>> recall(torch.tensor([2, 0]), torch.tensor([4, 3]))
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    return hits.double() / num_relevant


def precision(hits: Tensor, k: int) -> Tensor:
    """Precision@k: the share of a query's k nearest items that are relevant, from `hits_within`.

    >>> precision(torch.tensor([2, 0]), k=4)
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    return hits.double() / k


def cmc(first_ranks: Tensor, k: int) -> Tensor:
    """CMC top-k of each query, (...) -> (...) float64: 1 if a relevant item is among the k nearest, else 0.

    >>> cmc(torch.tensor([1, 3, 7, 2]), k=2).mean()
    tensor(0.5000, dtype=torch.float64)
    """
    return (first_ranks <= k).double()
