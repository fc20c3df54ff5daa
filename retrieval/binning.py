"""Binning: how many of a row's thresholds lie below each of its values, without a search for most of them."""

import torch
from torch import Tensor

from retrieval.buffers import Buffers

CELLS_PER_THRESHOLD = 32


def cells_of(thresholds: int) -> int:
    """The cells of a row's look-up table."""
    return CELLS_PER_THRESHOLD * thresholds + 3


def count_below(thresholds: Tensor, values: Tensor, buffers: Buffers) -> Tensor:
    """How many thresholds of its row are below each value: sorted (c, T), (c, m) -> (c, m) int32, in `buffers`.

    Both non-negative float32; infinity is allowed. The same as `torch.searchsorted(thresholds, values)`, which takes
    ten times longer on a CPU: here a row's range is cut into even cells, and most cells hold no threshold, so that a
    table tells the count of their values. Only the values in the other cells are searched.
    """
    rows, width = thresholds.shape
    cells = cells_of(width)
    finite = torch.where(thresholds.isinf(), 0, thresholds)
    low, high = finite[:, :1], finite.amax(1, keepdim=True)
    scale = (cells - 3) / (high - low).clamp(min=1e-30)
    first_cell = torch.arange(1, rows * cells, cells, dtype=torch.int32, device=values.device)[:, None]

    def cell(numbers: Tensor, name: str) -> Tensor:
        """A cell that never falls as the number grows: a row's first below `low`, its last beyond `high`."""
        scaled = torch.sub(numbers, low, out=buffers.take("scaled", numbers.shape, torch.float32))
        scaled.mul_(scale).clamp_(-1, cells - 2)
        return buffers.take(name, numbers.shape, torch.int32).copy_(scaled).add_(first_cell).view(-1)

    held = buffers.take("held", (rows, cells), torch.int32).zero_()
    threshold_cells = cell(thresholds, "threshold cells")
    held.view(-1).index_add_(0, threshold_cells, torch.ones_like(threshold_cells))
    held[:, -1] = 0  # infinite thresholds: they are below no value
    below = torch.cumsum(held, 1, dtype=torch.int32, out=buffers.take("below", (rows, cells), torch.int32))
    below.masked_fill_(held > 0, -1)
    counts = buffers.take("bins", values.shape, torch.int32)
    torch.index_select(below.view(-1), 0, cell(values, "cells"), out=counts.view(-1))
    unknown = torch.lt(counts, 0, out=buffers.take("unknown", values.shape, torch.bool))
    (unsure,) = unknown.view(-1).nonzero(as_tuple=True)
    row = unsure // values.shape[1]
    every_row = torch.arange(rows, device=values.device)
    found = torch.searchsorted(
        _sort_key(every_row[:, None], thresholds).view(-1), _sort_key(row, values.view(-1)[unsure])
    )
    counts.view(-1)[unsure] = (found - row * width).int()
    return counts


def _sort_key(row: Tensor, value: Tensor) -> Tensor:
    """int64 that sort by row, then by value: the bits of non-negative floats sort as integers."""
    return (row << 32) | value.view(torch.int32)
