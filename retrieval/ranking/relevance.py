"""Which gallery items are relevant to which query: those of its label, but not the query itself.

Where cameras are known, a query's matches by its own camera are ignored: they are out of its gallery, neither right nor
wrong (the protocol of re-identification: Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015).
"""

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
    cameras: tuple[Tensor, Tensor] | None = None  # (n_q,), (n_g,): those of queries and gallery, where they are known


def find_relevant(
    query: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor | None = None,
    query_ids: Tensor | None = None,
    gallery_ids: Tensor | None = None,
    query_cameras: Tensor | None = None,
    gallery_cameras: Tensor | None = None,
) -> Relevance:
    """Find the relevant items of each query, with defaults and checks as `evaluate` describes them.

    Raises:
        UserError: labels, ids or cameras that do not fit the embeddings, or no query with a relevant item.
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
    leaves_itself_out = (self_item >= 0) & (own_label == query_labels)
    cameras = _checked_cameras(query, gallery, query_cameras, gallery_cameras)
    if cameras is None:
        count = size - leaves_itself_out.long()
    else:
        of_queries, of_gallery = cameras
        ignored = _same_label_and_camera(start, torch.searchsorted(ordered, gallery_labels), of_queries, of_gallery)
        leaves_itself_out &= of_gallery[self_item.clamp(min=0)] != of_queries  # else it is ignored anyway
        count = size - torch.where(size > 0, ignored, 0) - leaves_itself_out.long()
    count = torch.where(query_labels < 0, 0, count)  # a negative label is no class
    if not count.any():
        negative = " (negative labels are no class)" if (query_labels < 0).any() else ""
        other = "" if cameras is None else " by another camera"
        raise UserError(
            f"labels: none of the {len(query)} queries has an item of its label{other} in the gallery but itself"
            f"{negative}"
        )
    return Relevance(by_class, start, size, self_item, count, cameras)


def _checked_cameras(
    query: Tensor, gallery: Tensor, query_cameras: Tensor | None, gallery_cameras: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """The cameras of queries and gallery, (n_q,) and (n_g,) int64; None where there are none.

    Raises:
        UserError: only one of the sets has cameras, or they do not fit its embeddings.
    """
    if query_cameras is None and gallery_cameras is None:
        return None
    if query_cameras is None or gallery_cameras is None:
        with_cameras, without = ("queries", "gallery") if gallery_cameras is None else ("gallery", "queries")
        raise UserError(f"cameras: those of the {with_cameras} are given, and not those of the {without}; give both")
    return (
        as_integers("query_cameras", query_cameras, query),
        as_integers("gallery_cameras", gallery_cameras, gallery),
    )


def _same_label_and_camera(
    query_classes: Tensor, gallery_classes: Tensor, query_cameras: Tensor, gallery_cameras: Tensor
) -> Tensor:
    """How many gallery items have the class and the camera of each query, (n_q,)."""
    cameras, codes = torch.cat([query_cameras, gallery_cameras]).unique(return_inverse=True)
    of_queries, of_gallery = codes.split([len(query_cameras), len(gallery_cameras)])
    wanted = query_classes * len(cameras) + of_queries
    pairs = (gallery_classes * len(cameras) + of_gallery).sort().values
    return torch.searchsorted(pairs, wanted, right=True) - torch.searchsorted(pairs, wanted)


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
