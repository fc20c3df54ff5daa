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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from retrieval.distances import DistanceTable
from retrieval.metrics import average_precision, first_relevant_rank

# Elements of a chunk's largest tensors. On a CPU, what stays in the caches and in memory that malloc reuses; but at
# least so many queries that the matrix product is efficient, up to a bound on memory.
CHUNK_ELEMENTS = {"cpu": 2**21}
GPU_CHUNK_ELEMENTS = 2**27
MIN_QUERIES = 64
MAX_ELEMENTS = 2**27
CELLS_PER_THRESHOLD = 32


class Ranking(NamedTuple):
    """What the metrics of each query need, at each of P points."""

    first_ranks: Tensor  # (n_q, P) int32: rank of the nearest relevant item
    average_precisions: Tensor | None  # (n_q, P) float64


@dataclass(frozen=True)
class Relevance:
    """Which gallery items count for which query: the items of its class but not itself."""

    by_class: Tensor  # (n_g,) gallery items, class by class
    start: Tensor  # (n_q,) the query's class begins here in `by_class` ...
    size: Tensor  # (n_q,) ... and has so many items
    self_item: Tensor  # (n_q,) the gallery item that is the query itself, -1 if none
    count: Tensor  # (n_q,) relevant items


def relevance(query_labels: Tensor, gallery_labels: Tensor, self_item: Tensor) -> Relevance:
    """Find each query's relevant items from the labels (n_q,), (n_g,) and the queries' own places in the gallery."""
    ordered, by_class = gallery_labels.sort(stable=True)
    start = torch.searchsorted(ordered, query_labels)
    size = torch.searchsorted(ordered, query_labels, right=True) - start
    own_label = gallery_labels[self_item.clamp(min=0)]
    count = size - ((self_item >= 0) & (own_label == query_labels)).long()
    return Relevance(by_class, start, size, self_item, count)


def rank_queries(
    table: DistanceTable,
    relevant: Relevance,
    queries: Tensor,
    blocks: Mapping[str, Tensor],
    points: int,
    compute_map: bool,
    progress: Callable[[int], None] | None,
) -> dict[str, Ranking]:
    """Rank the gallery for `queries` (q,), which all have relevant items, for each order -> Ranking of (q, points).

    `blocks` gives for each order every item's block (n_g,): the first point at which its new embedding stands,
    `points` if none. It has no effect if the table has one embedding an item. `progress` is told the queries done.
    """
    n, device = len(relevant.by_class), queries.device
    first_ranks = {name: torch.empty(len(queries), points, dtype=torch.int32, device=device) for name in blocks}
    precisions = {name: torch.empty(len(queries), points, dtype=torch.float64, device=device) for name in blocks}
    # Queries of like class size share a chunk, so that little of its (c, R) is padding.
    by_size = relevant.size[queries].argsort(descending=True, stable=True)
    sizes = relevant.size[queries[by_size]].tolist()
    done = 0
    while done < len(queries):
        largest = sizes[done]
        places = by_size[done : done + _chunk_length(n, table.sources, largest, points, device)]
        chunk = queries[places]
        bins, relevant_items, relevant_bins, last = _bin_chunk(table, relevant, chunk, largest)
        for name, block in blocks.items():
            retrieved = _count_within(bins, block, points, last)
            found = _count_within(relevant_bins, block[relevant_items], points, last)
            first_ranks[name][places] = first_relevant_rank(found, retrieved)
            if compute_map:
                precisions[name][places] = average_precision(found, retrieved)
        done += len(places)
        if progress is not None:
            progress(done)
    return {name: Ranking(first_ranks[name], precisions[name] if compute_map else None) for name in blocks}


def _chunk_length(n: int, sources: int, largest: int, points: int, device: torch.device) -> int:
    """Queries a chunk, from the elements that a query takes: its distances, histograms and look-up table."""
    width = sources * largest + 1
    per_query = sources * n + width * (sources * (points + 1) + CELLS_PER_THRESHOLD)
    wanted = CHUNK_ELEMENTS.get(device.type, GPU_CHUNK_ELEMENTS) // per_query
    return max(1, wanted, min(MIN_QUERIES, MAX_ELEMENTS // per_query))


def _bin_chunk(
    table: DistanceTable, relevant: Relevance, chunk: Tensor, largest: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Bin the distances of a chunk (c,) of queries, whose classes have up to R = `largest` items.

    Returns the bins (c, S, n) of all items, the relevant items (c, R), their bins (c, S, R), and the number of
    thresholds S * R: the bin of what lies beyond all of them, of the query itself and of padding.
    """
    itself = relevant.self_item[chunk]
    distances = table.rows(chunk, itself)
    place = torch.arange(largest, device=chunk.device)
    padding = place >= relevant.size[chunk, None]  # (c, R)
    items = relevant.by_class[torch.where(padding, 0, relevant.start[chunk, None] + place)]
    excluded = (padding | (items == itself[:, None]))[:, None]  # (c, 1, R)
    columns = items[:, None].expand(-1, table.sources, -1)  # (c, S, R)
    thresholds = distances.gather(2, columns).masked_fill_(excluded, torch.inf).flatten(1).sort(1).values

    bins = count_below(thresholds, distances.flatten(1)).view_as(distances)
    last = thresholds.shape[1]
    relevant_bins = bins.gather(2, columns).masked_fill_(excluded, last)
    return bins, items, relevant_bins, last


def _count_within(bins: Tensor, block: Tensor, points: int, last: int) -> Tensor:
    """How many items lie up to each bin at each point: bins (c, S, m), block (m,) or (c, m) -> (c, points, last) int32.

    The bin `last` is left out.
    """
    rows = (points + 1) * (last + 1)
    keys = (bins + (block * (last + 1)).int().view(-1, 1, block.shape[-1])).long()  # (c, S, m)
    one = torch.ones((), dtype=torch.int32, device=bins.device).expand_as(keys[:, 0])
    histograms = [
        torch.zeros(len(keys), rows, dtype=torch.int32, device=keys.device)
        .scatter_add_(1, source, one)
        .view(-1, points + 1, last + 1)[..., :last]
        for source in keys.unbind(1)
    ]
    counts = histograms[0].sum(1, keepdim=True, dtype=torch.int32)
    if len(histograms) == 2:
        old, new = histograms
        counts = counts + (new - old)[:, :points].cumsum_(1)
    return counts.expand(-1, points, -1).cumsum(2, dtype=torch.int32)


def count_below(thresholds: Tensor, values: Tensor) -> Tensor:
    """How many thresholds of its row are below each value: sorted (c, T), (c, m) -> (c, m) int32.

    Both non-negative float32; infinity is allowed. The same as `torch.searchsorted(thresholds, values)`, which takes
    several times longer on a CPU: here a row's range is cut into even cells, and most cells hold no threshold, so that
    a table tells the count of their values. Only the values in the other cells are searched.
    """
    rows, width = thresholds.shape
    cells = CELLS_PER_THRESHOLD * width + 3
    finite = torch.where(thresholds.isinf(), 0, thresholds)
    low, high = finite[:, :1], finite.amax(1, keepdim=True)
    scale = (cells - 3) / (high - low).clamp(min=1e-30)
    first_cell = torch.arange(0, rows * cells, cells, dtype=torch.int32, device=values.device)[:, None]

    def cell(numbers: Tensor) -> Tensor:
        """A cell that never falls as the number grows: a row's first below `low`, its last beyond `high`."""
        inner = (numbers - low).mul_(scale).clamp_(-1, cells - 2).int()  # -1 .. cells - 2
        return inner.add_(first_cell + 1).view(-1)

    held = torch.bincount(cell(thresholds), minlength=rows * cells).view(rows, cells)
    held[:, -1] = 0  # infinite thresholds: they are below no value
    below = held.cumsum(1) - held
    lookup = torch.where(held > 0, -1, below).int().view(-1)
    counts = lookup.index_select(0, cell(values))
    (unsure,) = (counts < 0).nonzero(as_tuple=True)
    row = unsure // values.shape[1]
    every_row = torch.arange(rows, device=values.device)
    found = torch.searchsorted(
        _sort_key(every_row[:, None], thresholds).view(-1), _sort_key(row, values.reshape(-1)[unsure])
    )
    counts[unsure] = (found - row * width).int()
    return counts.view_as(values)


def _sort_key(row: Tensor, value: Tensor) -> Tensor:
    """int64 that sort by row, then by value: the bits of non-negative floats sort as integers."""
    return (row << 32) | value.view(torch.int32)
