"""The ranking engine: a query's metrics at every point of a backfilling curve, without a sort or an n x n matrix.

CMC and AP need only how many items are as near as each relevant item. At cut-off c an item's distance is that of its
*new* embedding if it is among the first c of the backfilling order, else that of its *old* one: so whatever the
cut-off, every relevant distance is among the 2R of the R relevant items, the thresholds. Per chunk of queries:

1. both distances of every item, once                                                    (c, 2, n)
2. the bin of each: how many thresholds are below it                                     (c, 2, n)
3. per order: histograms of the bins, old and new, by block of items between cut-offs    (c, blocks, bins) each
4. new in the blocks before the cut-off, old in those after: prefix sums over blocks     (c, points, bins)

The same of the relevant items alone gives their share of each bin, and from the two follow AP and the first hit.
A plain evaluation is the curve with one embedding an item and one point.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from retrieval.metrics import average_precision, first_relevant_rank, hit_ranks, hits_within
from retrieval.ranking.binning import bins_of, cells_of
from retrieval.ranking.relevance import Relevance
from retrieval.ranking.threads import run_chunks, worker_count
from retrieval.results import PerQuery, Wanted
from utils.distributed import World
from utils.memory import free_on_gpu

# On a CPU a chunk's elements should stay in the last cache, but it has so many queries that the matrix product is
# efficient; on a GPU it is as large as may be.
CPU_CHUNK_ELEMENTS = 2**20
MIN_QUERIES = 64
MAX_BYTES = 2**31  # of all chunks at work
GPU_SHARE = 0.5  # of the free memory, where that is less
INDEXABLE = 2**31 - 1  # elements, by int32
BYTES_PER_ELEMENT = 28  # of a distance in float64 and float32, its cell, bin and histogram cell, and flags

Progress = Callable[[int], None]  # told how many queries are done


class Table(Protocol):
    """Distances from queries to the gallery: `DistanceTable`, or what is made of two of them."""

    @property
    def sources(self) -> int:
        """S, the embeddings that an item has."""

    def rows(self, index: Tensor, itself: Tensor) -> Tensor:
        """As `DistanceTable.rows`, (c, S, n_g) float32 of 0 or more."""


def rank_queries(
    table: Table,
    relevant: Relevance,
    blocks: Mapping[str, Tensor],
    points: int,
    wanted: Wanted,
    world: World,
    progress: Progress | None,
) -> dict[str, PerQuery]:
    """Rank the gallery in each order, for all queries that have a relevant item: each process its share, all get all.

    What is computed from the result is the same to the last bit for any number of processes.

    Args:
        blocks: order -> every item's block (n_g,): the first point at which its new embedding stands, `points` if none.
            It has no effect if the table has one embedding an item.
        progress: told how many of this process's share of the queries are done.
    """
    share = world.share(len(relevant.count))
    (mine,) = (relevant.count[share] > 0).nonzero(as_tuple=True)
    queries = mine + share.start
    num_relevant = relevant.count[queries]
    rankings = {name: _unfilled(queries, num_relevant, points, wanted) for name in blocks}
    first_hit = num_relevant.cumsum(0) - num_relevant  # where a query's begin in `hit_ranks`

    def rank(places: Tensor) -> int:
        bins, relevant_items, relevant_bins, last = _bin_chunk(table, relevant, queries[places])
        for name, block in blocks.items():
            retrieved = _count_within(bins, block, points, last)  # (points, c, last)
            found = _count_within(relevant_bins, block[relevant_items], points, last)
            ranking = rankings[name]
            ranking.first_ranks[places] = first_relevant_rank(found, retrieved).T
            if ranking.average_precisions is not None:
                ranking.average_precisions[places] = average_precision(found, retrieved).T
            for i, k in enumerate(wanted.depths):
                ranking.hits[places, :, i] = hits_within(found, retrieved, k).T
            if ranking.hit_ranks is not None:
                number = torch.arange(relevant_items.shape[1], device=places.device)
                query, number = (number < num_relevant[places, None]).nonzero(as_tuple=True)
                ranks = hit_ranks(found[0], retrieved[0], relevant_items.shape[1])  # (c, R)
                ranking.hit_ranks[first_hit[places][query] + number] = ranks[query, number]
        return len(places)

    done = share.stop - share.start - len(queries)  # those without a relevant item
    for count in run_chunks(rank, _chunks(table, relevant, queries, points), queries.device):
        done += count
        if progress is not None:
            progress(done)
    return {name: _gathered(ranking, world) for name, ranking in rankings.items()}


def _unfilled(queries: Tensor, num_relevant: Tensor, points: int, wanted: Wanted) -> PerQuery:
    """Room for the figures of the queries."""
    shape = (len(queries), points)
    return PerQuery(
        query_index=queries,
        num_relevant=num_relevant,
        first_ranks=queries.new_empty(shape, dtype=torch.int32),
        average_precisions=queries.new_empty(shape, dtype=torch.float64) if wanted.compute_map else None,
        hits=queries.new_empty((*shape, len(wanted.depths)), dtype=torch.int32),
        hit_ranks=queries.new_empty(int(num_relevant.sum()), dtype=torch.int32) if wanted.per_query else None,
    )


def _gathered(ranking: PerQuery, world: World) -> PerQuery:
    """The figures of the queries of all processes, in the order of the queries."""
    fields = ranking._asdict()
    gathered = {name: world.gather_rows(rows.to(world.device)) for name, rows in fields.items() if rows is not None}
    return ranking._replace(**gathered)


def _chunks(table: Table, relevant: Relevance, queries: Tensor, points: int) -> Iterator[Tensor]:
    """Places in `queries`, in chunks: queries of like class size together, so that little of a chunk is padding."""
    by_size = relevant.size[queries].argsort(descending=True, stable=True)
    sizes = relevant.size[queries[by_size]].tolist()
    memory = chunk_memory(queries.device)
    share = -(-len(queries) // worker_count(queries.device))  # so that no core is idle when there are few queries
    done = 0
    while done < len(queries):
        width = table.sources * sizes[done] + 1
        elements = table.sources * (len(relevant.by_class) + width * (points + 1)) + cells_of(width)
        length = min(share, chunk_length(elements, memory, queries.device))
        yield by_size[done : done + length]
        done += length


def chunk_memory(device: torch.device) -> int:
    """The bytes that a chunk may take."""
    if device.type == "cuda":
        return min(MAX_BYTES, int(GPU_SHARE * free_on_gpu(device)))
    return MAX_BYTES // worker_count(device)


def chunk_length(elements: int, memory: int, device: torch.device) -> int:
    """Queries a chunk, from the elements that a query takes: its distances, histograms and look-up table."""
    fitting = max(1, min(memory // BYTES_PER_ELEMENT, INDEXABLE) // elements)
    return fitting if device.type == "cuda" else min(fitting, max(MIN_QUERIES, CPU_CHUNK_ELEMENTS // elements))


def _bin_chunk(table: Table, relevant: Relevance, chunk: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Bin the distances of a chunk (c,) of queries, whose classes have up to R items.

    Returns the bins (c, S, n) of all items, numbered through the chunk, the relevant items (c, R), their bins
    (c, S, R), and the number of thresholds S * R: a query's bin of what lies beyond all of them, of itself, of what its
    camera has it ignore, and of padding.
    """
    itself = relevant.self_item[chunk]
    distances = table.rows(chunk, itself)
    place = torch.arange(int(relevant.size[chunk[0]]), device=chunk.device)
    padding = place >= relevant.size[chunk, None]  # (c, R)
    items = relevant.by_class[torch.where(padding, 0, relevant.start[chunk, None] + place)]
    excluded = padding | (items == itself[:, None])
    if relevant.cameras is not None:
        of_queries, of_gallery = relevant.cameras
        ignored = ~padding & (of_gallery[items] == of_queries[chunk, None])
        row, place = ignored.nonzero(as_tuple=True)
        distances[row, :, items[row, place]] = torch.inf
        excluded |= ignored
    excluded = excluded[:, None]  # (c, 1, R)
    columns = items[:, None].expand(-1, table.sources, -1)  # (c, S, R)
    thresholds = distances.gather(2, columns).masked_fill_(excluded, torch.inf).flatten(1).sort(1).values

    bins = bins_of(thresholds, distances.flatten(1)).view_as(distances)
    last = thresholds.shape[1]
    last_bins = torch.arange(last, len(chunk) * (last + 1), last + 1, dtype=bins.dtype, device=bins.device)
    relevant_bins = torch.where(excluded, last_bins[:, None, None], bins.gather(2, columns))
    return bins, items, relevant_bins, last


def _count_within(bins: Tensor, block: Tensor, points: int, last: int) -> Tensor:
    """How many items lie up to each bin at each point: bins (c, S, m), block (m,) or (c, m) -> (points, c, last) int32.

    The bin `last` of each query is left out.
    """
    rows, sources, items = bins.shape
    histogram = bins.new_zeros(sources, points + 1, rows, last + 1)
    first_cell = block.view(-1, 1, items) + torch.arange(sources, device=bins.device)[:, None] * (points + 1)
    cell = bins + (first_cell * (rows * (last + 1))).int()
    one = torch.ones((), dtype=torch.int32, device=bins.device).expand(cell.numel())
    histogram.view(-1).index_add_(0, cell.view(-1), one)
    counts = histogram[0].sum(0, dtype=torch.int32).expand(points, -1, -1)  # (points, c, last + 1)
    if sources == 2:
        old, new = histogram[:, :points]
        counts = counts + new.sub_(old).cumsum_(0)
    return counts[..., :last].cumsum(2, dtype=torch.int32)
