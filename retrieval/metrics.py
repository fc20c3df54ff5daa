"""The retrieval metrics of one query, as pure functions on counts of items at successive distances.

A query's ranking is given by two tensors (..., T), nearest distance first: how many *relevant* items and how many items
in all were *retrieved* at each of T distances. Items at equal distances share an entry, so ties have no order to
depend on. A plain ranked list is the case of one item an entry: `retrieved` all ones, `relevant` its 0/1 relevance.
Entries without a relevant item matter only through their `retrieved`, and may be merged into the next entry.
"""

import torch
from torch import Tensor


def average_precision(relevant: Tensor, retrieved: Tensor) -> Tensor:
    """Average precision, (..., T), (..., T) -> (...) float64; ties grouped as in scikit-learn.

    AP = sum over t of (relevant_t / R) * precision_t, where precision_t is the share of relevant items among all items
    retrieved up to and including distance t, and R the number of relevant items (`average_precision_score` with
    score = -distance). NaN where a query has no relevant item.

    >>> average_precision(torch.tensor([1, 0, 1]), torch.tensor([1, 1, 1]))  # (1/1 + 2/3) / 2
    tensor(0.8333, dtype=torch.float64)
    >>> average_precision(torch.tensor([1, 1]), torch.tensor([1, 2]))  # the second ties with an irrelevant item
    tensor(0.8333, dtype=torch.float64)
    """
    relevant_within = relevant.cumsum(-1).double()
    precision = relevant_within / retrieved.cumsum(-1).clamp(min=1)
    return (relevant * precision).sum(-1) / relevant_within[..., -1]


def first_relevant_rank(relevant: Tensor, retrieved: Tensor) -> Tensor:
    """The rank, from 1, of the nearest relevant item, (..., T), (..., T) -> (...) int64.

    Ties are broken against the query: rank = 1 + the irrelevant items that are as near as the nearest relevant one or
    nearer. So the rank does not depend on the order of the gallery, and a model that maps everything to one point
    gains nothing. One more than the number of irrelevant items where a query has no relevant item.

    >>> first_relevant_rank(torch.tensor([0, 1, 0]), torch.tensor([1, 1, 1]))
    tensor(2)
    >>> first_relevant_rank(torch.tensor([1, 1]), torch.tensor([3, 1]))  # two irrelevant items tie with it
    tensor(3)
    """
    irrelevant_within = (retrieved - relevant).cumsum(-1)
    # Never falling along T, so the least of them at a relevant entry is the one at the first such entry.
    at_relevant = torch.where(relevant > 0, irrelevant_within, irrelevant_within[..., -1:])
    return at_relevant.amin(-1) + 1


def cmc(first_ranks: Tensor, k: int) -> Tensor:
    """CMC top-k, (queries, ...) -> (...) float64: the share of queries with a relevant item among their k nearest.

    >>> cmc(torch.tensor([1, 3, 7, 2]), k=2)
    tensor(0.5000, dtype=torch.float64)
    """
    return (first_ranks <= k).double().mean(0)
