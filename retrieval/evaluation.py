"""The two public calls: the metrics of one gallery, and the curves of a gallery while it is backfilled."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from retrieval.ranking.distances import DistanceTable, check_distance, distance_table
from retrieval.ranking.engine import Relevance, rank_queries, relevance
from retrieval.results import BackfillingCurve, Counts, PerQuery, RetrievalMetrics, Wanted
from retrieval.summary import summarise
from retrieval.validation import (
    as_integers,
    check_confidence,
    check_cutoffs,
    check_distinct,
    check_embeddings,
    check_orders,
    check_same_items,
    check_wanted,
)
from utils.distributed import World
from utils.errors import UserError

Progress = Callable[[int], None]


@torch.no_grad()
def evaluate(
    query: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor | None = None,
    *,
    query_ids: Tensor | None = None,
    gallery_ids: Tensor | None = None,
    distance: str = "l2",
    top_k: Sequence[int] = (1, 5),
    recall_at: Sequence[int] = (),
    precision_at: Sequence[int] = (),
    compute_map: bool = True,
    confidence: float | None = None,
    seed: int = 0,
    per_query: bool = False,
    per_class: bool = False,
    world: World = World(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
) -> RetrievalMetrics:
    """CMC top-k and mAP, recall@k and precision@k of `query` against `gallery`.

    An item never retrieves itself. Queries and gallery are the same items in the same order, unless ids say otherwise.
    A query without a relevant item (one of its label, other than itself) is skipped and counted. A negative label, as
    the -1 of unknown people in re-identification, is no class: such an item is relevant to no query and no query of its
    own, but stays in the gallery, where it stands in the way of others.

    Ties do not depend on the gallery's order: ranks count an irrelevant item as near as a relevant one before it, and
    AP groups items at equal distances, as scikit-learn does. Distances are rounded to float32 once.

    Args:
        query: embeddings (n_q, d), float16 or float32, on any device.
        gallery: embeddings (n_g, d), on the same device.
        query_labels: (n_q,) integers; negative ones: of no class.
        gallery_labels: (n_g,) integers; those of the queries if left out.
        query_ids: (n_q,) distinct integers.
        gallery_ids: (n_g,) distinct integers; those of the queries if left out.
        distance: `l2` on the embeddings as they are, or `cosine`.
        top_k: the k of CMC top-k.
        recall_at: the k of recall@k, the mean share of a query's relevant items that are among its k nearest.
        precision_at: the k of precision@k, the mean share of a query's k nearest items that are relevant.
        compute_map: mAP is None if false.
        confidence: the level, as 0.95, of bootstrap intervals over the queries for every figure; None for none.
        seed: of the bootstrap.
        per_query: also return the figures of each query.
        per_class: also return the means over the queries of each class.
        world: the processes, each of which calls this with the same tensors; they share the queries, and all get the
            same figures, whatever their number.
        progress: called with the number of this process's queries that are done, up to its `world.share(n_q)`.

    Raises:
        UserError: embeddings that are not finite, shapes that do not fit together, ids that occur twice, an empty set,
            an unknown distance, a k or a level out of range, or no query with a relevant item.
    """
    wanted = Wanted(top_k, recall_at, precision_at, compute_map, per_query, per_class)
    check_distance(distance)
    check_wanted(wanted)
    check_confidence(confidence)
    check_embeddings(query=query, gallery=gallery)
    relevant = _relevance(query, gallery, query_labels, gallery_labels, query_ids, gallery_ids)
    table = distance_table(query, [gallery], distance)
    unused = {"": query.new_zeros(len(gallery), dtype=torch.int64)}  # with one embedding an item there is no order
    ranking = _rank(table, relevant, unused, 1, wanted, world, progress)[""]
    counts = _counts(ranking, query, gallery, distance)
    (metrics,), _ = summarise(ranking, counts, wanted, query_labels, confidence, seed)
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
    distance: str = "l2",
    top_k: Sequence[int] = (1, 5),
    recall_at: Sequence[int] = (),
    precision_at: Sequence[int] = (),
    compute_map: bool = True,
    confidence: float | None = None,
    seed: int = 0,
    per_query: bool = False,
    per_class: bool = False,
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
    check_confidence(confidence)
    check_embeddings(query=query, transformed=transformed, new=new)
    check_same_items(new=new, transformed=transformed)
    check_orders(orders, len(new))
    check_cutoffs(cutoffs, len(new))
    relevant = _relevance(query, new, query_labels, gallery_labels, query_ids, gallery_ids)
    table = distance_table(query, [transformed, new], distance)
    blocks = {name: _blocks(order.to(new.device), cutoffs) for name, order in orders.items()}
    rankings = _rank(table, relevant, blocks, len(cutoffs), wanted, world, progress)
    curves = {}
    for name, ranking in rankings.items():
        counts = _counts(ranking, query, new, distance)
        points, auc_intervals = summarise(ranking, counts, wanted, query_labels, confidence, seed)
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


def _relevance(
    query: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor | None,
    query_ids: Tensor | None,
    gallery_ids: Tensor | None,
) -> Relevance:
    """Check labels and ids, apply their defaults, and find the relevant items of each query."""
    query_labels = as_integers("query_labels", query_labels, query)
    if gallery_labels is None and len(query) != len(gallery):
        raise UserError(
            f"gallery_labels: should be given, since there are {len(query)} queries and {len(gallery)} gallery items"
        )
    gallery_labels = query_labels if gallery_labels is None else as_integers("gallery_labels", gallery_labels, gallery)
    self_item = _self_items(query, gallery, query_ids, gallery_ids)
    relevant = relevance(query_labels, gallery_labels, self_item)
    if not relevant.count.any():
        negative = " (negative labels are no class)" if (query_labels < 0).any() else ""
        raise UserError(
            f"labels: none of the {len(query)} queries has an item of its label in the gallery but itself{negative}"
        )
    return relevant


def _self_items(query: Tensor, gallery: Tensor, query_ids: Tensor | None, gallery_ids: Tensor | None) -> Tensor:
    """The gallery item that each query is, (n_q,), -1 where it is none."""
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


def _blocks(order: Tensor, cutoffs: Sequence[int]) -> Tensor:
    """For each item (n,) the first cut-off at which its new embedding stands; len(cutoffs) if at none."""
    position = torch.empty_like(order, dtype=torch.int64)
    position[order] = torch.arange(len(order), device=order.device)
    return torch.searchsorted(torch.tensor(cutoffs, device=order.device), position, right=True)


def _rank(
    table: DistanceTable,
    relevant: Relevance,
    blocks: Mapping[str, Tensor],
    points: int,
    wanted: Wanted,
    world: World,
    progress: Progress | None,
) -> dict[str, PerQuery]:
    """Rank this process's share of the queries and gather those of all, in the order of the queries.

    Figures are computed from what is gathered, so they are the same to the last bit for any number of processes.
    """
    share = world.share(len(relevant.count))
    (mine,) = (relevant.count[share] > 0).nonzero(as_tuple=True)
    skipped = share.stop - share.start - len(mine)
    report = None if progress is None else lambda done: progress(skipped + done)
    local = rank_queries(table, relevant, mine + share.start, blocks, points, wanted, report)
    return {name: _gathered(ranking, world) for name, ranking in local.items()}


def _gathered(ranking: PerQuery, world: World) -> PerQuery:
    """The figures of the queries of all processes."""
    fields = ranking._asdict()
    gathered = {name: world.gather_rows(rows.to(world.device)) for name, rows in fields.items() if rows is not None}
    return ranking._replace(**gathered)


def _counts(ranking: PerQuery, query: Tensor, gallery: Tensor, distance: str) -> Counts:
    evaluated = len(ranking.query_index)
    return Counts(evaluated, len(query) - evaluated, len(gallery), distance)
