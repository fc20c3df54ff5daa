"""Which gallery items are relevant to which query: those of its label, but not the query itself."""

from dataclasses import dataclass

import torch
from torch import Tensor

from retrieval.validation import as_integers, check_distinct
from utils.errors import UserError


@dataclass(frozen=True)
class Relevance:
    """The relevant gallery items of n_q queries."""

    by_class: Tensor  # (n_g,) gallery items, class by class
    start: Tensor  # (n_q,) the query's class begins here in `by_class` ...
    size: Tensor  # (n_q,) ... and has so many items
    self_item: Tensor  # (n_q,) the gallery item that is the query itself, -1 if none
    count: Tensor  # (n_q,) relevant items


def find_relevant(
    query: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor | None = None,
    query_ids: Tensor | None = None,
    gallery_ids: Tensor | None = None,
) -> Relevance:
    """Find the relevant items of each query, with defaults and checks as `evaluate` describes them.

    Raises:
        UserError: labels or ids that do not fit the embeddings, or no query with a relevant item.
    """
    query_labels = as_integers("query_labels", query_labels, query)
    if gallery_labels is None and len(query) != len(gallery):
        raise UserError(
            f"gallery_labels: should be given, since there are {len(query)} queries and {len(gallery)} gallery items"
        )
    gallery_labels = query_labels if gallery_labels is None else as_integers("gallery_labels", gallery_labels, gallery)
    self_item = find_self(query, gallery, query_ids, gallery_ids)
    ordered, by_class = gallery_labels.sort(stable=True)
    start = torch.searchsorted(ordered, query_labels)
    size = torch.searchsorted(ordered, query_labels, right=True) - start
    own_label = gallery_labels[self_item.clamp(min=0)]
    count = size - ((self_item >= 0) & (own_label == query_labels)).long()
    count = torch.where(query_labels < 0, 0, count)  # a negative label is no class
    if not count.any():
        negative = " (negative labels are no class)" if (query_labels < 0).any() else ""
        raise UserError(
            f"labels: none of the {len(query)} queries has an item of its label in the gallery but itself{negative}"
        )
    return Relevance(by_class, start, size, self_item, count)


def find_self(query: Tensor, gallery: Tensor, query_ids: Tensor | None, gallery_ids: Tensor | None) -> Tensor:
    """The gallery item that each query is, (n_q,), -1 where it is none.

    Raises:
        UserError: ids of only one of the two sets, or that occur twice; different numbers of items without ids.
    """
    if query_ids is not None:
        query_ids = as_integers("query_ids", query_ids, query)
        check_distinct("query_ids", query_ids)
    if gallery_ids is None:
        if len(query) != len(gallery):
            raise UserError(
                f"query_ids and gallery_ids: should be given, since there are {len(query)} queries "
                f"and {len(gallery)} gallery items"
            )
        return torch.arange(len(query), device=query.device)
    if query_ids is None:
        raise UserError("query_ids: should be given along with gallery_ids")
    gallery_ids = as_integers("gallery_ids", gallery_ids, gallery)
    check_distinct("gallery_ids", gallery_ids)
    ordered, item = gallery_ids.sort()
    place = torch.searchsorted(ordered, query_ids).clamp(max=len(ordered) - 1)
    return torch.where(ordered[place] == query_ids, item[place], -1)
