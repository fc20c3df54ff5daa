"""A gallery with two fields, as it is upgraded without a transformation: the old and the new model's, each item in one.

The old model's query ranks the items that are not re-embedded, the new model's query the others, and the two lists are
merged. So both models have to run for every query until the last item is re-embedded.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from retrieval.means import mean_metrics
from retrieval.ranking.distances import DistanceTable, distance_table
from retrieval.ranking.engine import Progress, rank_queries
from retrieval.ranking.relevance import find_relevant
from retrieval.results import BackfillingCurve, Counts, RetrievalMetrics, Wanted
from retrieval.validation import check_cutoffs, check_embeddings, check_orders, check_same_items
from utils.config import unknown_choice
from utils.distributed import World
from utils.errors import UserError


def reciprocal_ranks(distances: Tensor) -> Tensor:
    """Distances (c, m) of a field -> ranks (c, m) in it, from 0; items at equal distances share one.

    Reciprocal rank fusion (Cormack et al., SIGIR 2009) adds 1 / (60 + rank) over the lists that an item is in. Each
    item is in one list here, so that the sum falls with the rank, whatever stands in place of 60.
    """
    return torch.searchsorted(distances.sort(1).values, distances.contiguous()).double()


def standardised(distances: Tensor) -> Tensor:
    """Squared distances (c, m) of a field -> distances less their mean, by their standard deviation, of each query."""
    known = distances.isfinite()
    roots = distances.double().sqrt()
    count = known.sum(1, keepdim=True).clamp(min=1)
    mean = roots.masked_fill(~known, 0).sum(1, keepdim=True) / count
    variance = (roots - mean).square().masked_fill(~known, 0).sum(1, keepdim=True) / count
    return (roots - mean) / variance.sqrt().clamp(min=torch.finfo(torch.float32).tiny)  # all the same: 0


# What makes the distances of two fields comparable.
MERGES: dict[str, Callable[[Tensor], Tensor]] = {"reciprocal_ranks": reciprocal_ranks, "standardised": standardised}


@dataclass(frozen=True)
class MergedTable:
    """The distances of a gallery with two fields, which the ranking engine takes for those of one."""

    old: DistanceTable
    new: DistanceTable
    re_embedded: Tensor  # (n,) bool
    merge: Callable[[Tensor], Tensor]
    sources: int = 1

    def rows(self, index: Tensor, itself: Tensor) -> Tensor:
        """As `DistanceTable.rows`, (c, 1, n)."""
        merged = torch.empty(len(index), len(self.re_embedded), dtype=torch.float64, device=index.device)
        for table, field in ((self.old, ~self.re_embedded), (self.new, self.re_embedded)):
            if field.any():
                merged[:, field] = self.merge(table.rows(index, itself)[:, 0, field])
        if self.merge is reciprocal_ranks:
            merged[:, ~self.re_embedded] += 0.5  # of two equal ranks, that by the better model comes first
        merged = (merged - merged.amin(1, keepdim=True)).float()  # the engine takes them for distances: 0 or more
        (row,) = (itself >= 0).nonzero(as_tuple=True)
        merged[row, itself[row]] = torch.inf
        return merged[:, None]


@torch.no_grad()
def two_field_curve(
    new: Tensor,
    old: Tensor,
    labels: Tensor,
    *,
    order: Tensor,
    cutoffs: Sequence[int],
    merge: str,
    distance: str = "l2",
    groups: Tensor | None = None,
    wanted: Wanted = Wanted(),  # noqa: B008 (frozen)
    world: World = World(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
) -> BackfillingCurve:
    """The metrics at each cut-off of a backfilling that keeps both models and both fields, without a transformation.

    Every item is a query too, by both models, and never retrieves itself.

    Args:
        new: the new model's embeddings, (n, d_new).
        old: the old model's of the same items, (n, d_old).
        labels: (n,) integers; negative ones: of no class.
        order: permutation (n,) of the items, the first to be re-embedded first.
        cutoffs: rising numbers of items, from 0 to n.
        merge: of MERGES.
        distance: `l2` or `cosine`, of both fields.
        groups: (n,) integers, as `query_groups` of `evaluate`.
        wanted: what to compute; neither the figures of each query nor those of each class.
        progress: told how many cut-offs are done.

    Raises:
        UserError: an unknown merge, embeddings that are not finite, or arguments that do not fit together.
    """
    if merge not in MERGES:
        raise UserError(unknown_choice("merge", merge, MERGES))
    check_embeddings(new=new)
    check_embeddings(old=old)
    check_same_items(new=new, old=old)
    check_orders({"order": order}, len(new))
    check_cutoffs(cutoffs, len(new))
    relevant = find_relevant(new, new, labels, None, None, None)
    tables = distance_table(old, [old], distance), distance_table(new, [new], distance)
    block = torch.zeros(len(new), dtype=torch.int64, device=new.device)  # one embedding an item: no order, one point
    place = order.to(new.device).argsort()
    points: list[RetrievalMetrics] = []
    for cutoff in cutoffs:
        table = MergedTable(*tables, place < cutoff, MERGES[merge])
        ranking = rank_queries(table, relevant, {"": block}, 1, wanted, world, None)[""]
        if progress is not None:
            progress(len(points) + 1)
        evaluated = len(ranking.query_index)
        counts = Counts(evaluated, len(new) - evaluated, len(new), distance)
        points += mean_metrics(ranking, counts, wanted, labels, groups, None, 0)[0]
    return BackfillingCurve(**asdict(counts), cutoffs=tuple(cutoffs), points=tuple(points))
