"""The two public calls: the metrics of one gallery, and the curves of a gallery while it is backfilled."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from retrieval.means import mean_metrics
from retrieval.ranking.distances import check_distance, distance_table
from retrieval.ranking.engine import Progress, rank_queries
from retrieval.ranking.relevance import find_relevant
from retrieval.results import BackfillingCurve, Counts, PerQuery, RetrievalMetrics, Wanted
from retrieval.validation import (
    as_integers,
    check_cutoffs,
    check_embeddings,
    check_level,
    check_orders,
    check_same_items,
    check_wanted,
)
from utils.distributed import World
from utils.errors import UserError


@torch.no_grad()
def evaluate(
    query: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor | None = None,
    *,
    query_ids: Tensor | None = None,
    gallery_ids: Tensor | None = None,
    query_cameras: Tensor | None = None,
    gallery_cameras: Tensor | None = None,
    distance: str = "l2",
    top_k: Sequence[int] = (1, 5),
    recall_at: Sequence[int] = (),
    precision_at: Sequence[int] = (),
    compute_map: bool = True,
    interval_level: float | None = None,
    seed: int = 0,
    per_query: bool = False,
    per_class: bool = False,
    query_groups: Tensor | None = None,
    world: World = World(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
) -> RetrievalMetrics:
    """CMC top-k and mAP, recall@k and precision@k of `query` against `gallery`.

    An item never retrieves itself. Queries and gallery are the same items in the same order, unless ids say otherwise.
    A query without a relevant item (one of its label, other than itself) is skipped and counted. A negative label, as
    the -1 of unknown people in re-identification, is no class: such an item is relevant to no query and no query of its
    own, but stays in the gallery, where it stands in the way of others.

    With cameras, a query's matches by its own camera are ignored: items of its label and its camera are not in its
    gallery, and take no rank (Market-1501's protocol). A query that has no other match is skipped and counted.

    Ties do not depend on the gallery's order: ranks count an irrelevant item as near as a relevant one before it, and
    AP groups items at equal distances, as scikit-learn does. Distances are rounded to float32 once.

    Args:
        query: embeddings (n_q, d), float16 or float32, on any device.
        gallery: embeddings (n_g, d), on the same device.
        query_labels: (n_q,) integers; negative ones: of no class.
        gallery_labels: (n_g,) integers; those of the queries if left out.
        query_ids: (n_q,) distinct integers.
        gallery_ids: (n_g,) distinct integers; those of the queries if left out.
        query_cameras: (n_q,) integers.
        gallery_cameras: (n_g,) integers; given if and only if those of the queries are.
        distance: `l2` on the embeddings as they are, or `cosine`.
        top_k: the k of CMC top-k.
        recall_at: the k of recall@k, the mean share of a query's relevant items that are among its k nearest.
        precision_at: the k of precision@k, the mean share of a query's k nearest items that are relevant.
        compute_map: mAP is None if false.
        interval_level: of bootstrap intervals over the queries for every figure, as 0.95; None for none.
        seed: of the bootstrap.
        per_query: also return the figures of each query.
        per_class: also return the means over the queries of each class.
        query_groups: (n_q,) integers: also return the means over the queries of each group; a negative one: of none.
        world: the processes, each of which calls this with the same tensors; they share the queries, and all get the
            same figures, whatever their number.
        progress: called with the number of this process's queries that are done, up to its `world.share(n_q)`.

    Raises:
        UserError: embeddings that are not finite, shapes that do not fit together, ids that occur twice, cameras of one
            set alone, an empty set, an unknown distance, a k or a level out of range, or no query with a relevant item.
    """
    wanted = Wanted(top_k, recall_at, precision_at, compute_map, per_query, per_class)
    check_distance(distance)
    check_wanted(wanted)
    check_level(interval_level)
    check_embeddings(query=query, gallery=gallery)
    query_groups = None if query_groups is None else as_integers("query_groups", query_groups, query)
    relevant = find_relevant(
        query, gallery, query_labels, gallery_labels, query_ids, gallery_ids, query_cameras, gallery_cameras
    )
    table = distance_table(query, [gallery], distance)
    blocks = {"": query.new_zeros(len(gallery), dtype=torch.int64)}  # one embedding an item: no order, one point
    ranking = rank_queries(table, relevant, blocks, 1, wanted, world, progress)[""]
    counts = _counts(ranking, query, gallery, distance)
    (metrics,), _ = mean_metrics(ranking, counts, wanted, query_labels, query_groups, interval_level, seed)
    return replace(metrics, per_query=ranking if per_query else None)


@torch.no_grad()
def backfilling_curve(
    query: Tensor,
    transformed: Tensor,
    new: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor | None = None,
    *,
    orders: Mapping[str, Tensor],
    cutoffs: Sequence[int],
    query_ids: Tensor | None = None,
    gallery_ids: Tensor | None = None,
    query_cameras: Tensor | None = None,
    gallery_cameras: Tensor | None = None,
    distance: str = "l2",
    top_k: Sequence[int] = (1, 5),
    recall_at: Sequence[int] = (),
    precision_at: Sequence[int] = (),
    compute_map: bool = True,
    interval_level: float | None = None,
    seed: int = 0,
    per_query: bool = False,
    per_class: bool = False,
    query_groups: Tensor | None = None,
    world: World = World(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
) -> dict[str, BackfillingCurve]:
    """The metrics at each cut-off of each backfilling order, all from one computation of the distances.

    At cut-off c the first c items of the order hold their embedding in `new`, the others that in `transformed`. Each
    point is what `evaluate` gives on that mixed gallery; the arguments that both have mean the same.

    Args:
        query: the new model's embeddings of the queries, (n_q, d).
        transformed: h(old) of the gallery items, (n_g, d).
        new: the new model's embeddings of the gallery items, (n_g, d).
        orders: name -> permutation (n_g,) of the gallery items, the first to backfill first.
        cutoffs: rising numbers of items, from 0 to n_g, as `cutoffs` gives.

    Returns:
        A curve for each order, by its name.

    Raises:
        UserError: as `evaluate`; also an order that is no permutation, or cut-offs that do not rise within 0 .. n_g.
    """
    wanted = Wanted(top_k, recall_at, precision_at, compute_map, per_query, per_class)
    check_distance(distance)
    check_wanted(wanted)
    check_level(interval_level)
    check_embeddings(query=query, transformed=transformed, new=new)
    query_groups = None if query_groups is None else as_integers("query_groups", query_groups, query)
    check_same_items(new=new, transformed=transformed)
    check_orders(orders, len(new))
    check_cutoffs(cutoffs, len(new))
    relevant = find_relevant(
        query, new, query_labels, gallery_labels, query_ids, gallery_ids, query_cameras, gallery_cameras
    )
    table = distance_table(query, [transformed, new], distance)
    blocks = {name: _blocks(order.to(new.device), cutoffs) for name, order in orders.items()}
    rankings = rank_queries(table, relevant, blocks, len(cutoffs), wanted, world, progress)
    curves = {}
    for name, ranking in rankings.items():
        counts = _counts(ranking, query, new, distance)
        points, auc_intervals = mean_metrics(ranking, counts, wanted, query_labels, query_groups, interval_level, seed)
        curves[name] = BackfillingCurve(
            **asdict(counts),
            cutoffs=tuple(cutoffs),
            points=points,
            auc_intervals=auc_intervals,
            per_query=ranking if per_query else None,
        )
    return curves


def cutoffs(n: int, backfilling: int) -> list[int]:
    """The B + 2 cut-offs of a curve over n items: c_i = floor(i * n / (B + 1)), i = 0 .. B + 1.

    >>> cutoffs(10, backfilling=2)
    [0, 3, 6, 10]
    """
    if backfilling < 0:
        raise UserError(f"backfilling: should be 0 or more points between the ends, got {backfilling}")
    return [i * n // (backfilling + 1) for i in range(backfilling + 2)]


def _blocks(order: Tensor, cutoffs: Sequence[int]) -> Tensor:
    """For each item (n,) the first cut-off at which its new embedding stands; len(cutoffs) if at none."""
    position = torch.empty_like(order, dtype=torch.int64)
    position[order] = torch.arange(len(order), device=order.device)
    return torch.searchsorted(torch.tensor(cutoffs, device=order.device), position, right=True)


def _counts(ranking: PerQuery, query: Tensor, gallery: Tensor, distance: str) -> Counts:
    evaluated = len(ranking.query_index)
    return Counts(evaluated, len(query) - evaluated, len(gallery), distance)
