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
    added = relevant.diff(prepend=torch.zeros_like(relevant[..., :1]))
    precision = relevant.double() / retrieved.clamp(min=1)
    return (added * precision).sum(-1) / relevant[..., -1]


def first_relevant_rank(relevant: Tensor, retrieved: Tensor) -> Tensor:
    """The rank, from 1, of the nearest relevant item of a query that has one, (..., T), (..., T) -> (...) integers.

    Ties are broken against the query: rank = 1 + the irrelevant items that are as near as the nearest relevant one or
    nearer. So the rank does not depend on the order of the gallery, and a model that maps everything to one point
    gains nothing.

    >>> first_relevant_rank(torch.tensor([0, 1, 1]), torch.tensor([1, 2, 3]))
    tensor(2)
    >>> first_relevant_rank(torch.tensor([1, 2]), torch.tensor([3, 4]))  # two irrelevant items tie with it
    tensor(3)
    """
    first = torch.searchsorted(relevant, torch.ones_like(relevant[..., :1]))  # (..., 1): the first entry of 1 or more
    irrelevant = retrieved.gather(-1, first) - relevant.gather(-1, first)
    return irrelevant[..., 0] + 1


def cmc(first_ranks: Tensor, k: int) -> Tensor:
    """CMC top-k, (queries, ...) -> (...) float64: the share of queries with a relevant item among their k nearest.

    >>> cmc(torch.tensor([1, 3, 7, 2]), k=2)
    tensor(0.5000, dtype=torch.float64)
    """
    return (first_ranks <= k).double().mean(0)
