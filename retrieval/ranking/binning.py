"""Binning: how many of a row's thresholds lie below each of its values, without a search for most of them."""

import torch
from torch import Tensor

CELLS_PER_THRESHOLD = 16


def cells_of(thresholds: int) -> int:
    """The cells of a row's look-up table."""
    return CELLS_PER_THRESHOLD * thresholds + 3


def bins_of(thresholds: Tensor, values: Tensor) -> Tensor:
    """The bin of each value: how many thresholds of its row are below it, sorted (c, T), (c, m) -> (c, m) int32.

    Both non-negative float32; infinity is allowed. Bins are numbered through the rows, row * (T + 1) + count. The
    counts are those of `torch.searchsorted(thresholds, values)`, with which a curve takes 1.8 times as long on a CPU:
    here a row's range is cut into even cells, a table tells the thresholds below a value's cell, and the value is
    compared with the next of them. Only the values in cells that hold several thresholds are searched.
    """
    rows, width = thresholds.shape
    cells, device = cells_of(width), values.device
    finite = torch.where(thresholds.isinf(), 0, thresholds)
    low, high = finite[:, :1], finite.amax(1, keepdim=True)
    scale = (cells - 3) / (high - low).clamp(min=1e-30)
    first_cell = torch.arange(1, rows * cells, cells, dtype=torch.int32, device=device)[:, None]
    first_bin = torch.arange(0, rows * (width + 1), width + 1, dtype=torch.int32, device=device)[:, None]

    def cell(numbers: Tensor) -> Tensor:
        """A cell that never falls as the number grows: a row's first below `low`, its last beyond `high`."""
        scaled = (numbers - low).mul_(scale).clamp_(-1, cells - 2)
        return scaled.int().add_(first_cell).view(-1)

    held = torch.zeros(rows, cells, dtype=torch.int32, device=device)
    threshold_cells = cell(thresholds)
    held.view(-1).index_add_(0, threshold_cells, torch.ones_like(threshold_cells))
    held[:, -1] = 0  # infinite thresholds: they are below no value
    below = held.cumsum(1, dtype=torch.int32).sub_(held).add_(first_bin)
    # The next threshold of each bin, twice: bins of the second half mark the values to search.
    following = thresholds.new_full((2, rows, width + 1), torch.inf)
    following[..., :width] = thresholds
    to_search = rows * (width + 1)
    below.add_(held.gt_(1), alpha=to_search)

    bins = below.view(-1).index_select(0, cell(values)).view_as(values)
    unsure = _few_true((bins >= to_search).view(-1))
    following_values = following.view(-1).index_select(0, bins.view(-1)).view_as(values)
    # As integers, as which the bits of non-negative floats sort: in place the comparison's result is of their type.
    bins.add_(following_values.view(torch.int32).lt_(values.view(torch.int32)))
    row = unsure // values.shape[1]
    every_row = torch.arange(rows, device=device)
    found = torch.searchsorted(
        _sort_key(every_row[:, None], thresholds).view(-1), _sort_key(row, values.view(-1)[unsure])
    )
    bins.view(-1)[unsure] = (found + row).int()  # `found` counts width thresholds a row, bins width + 1
    return bins


def _few_true(flags: Tensor) -> Tensor:
    """The places of the true ones among (n,) bool, of which few are: first the words of eight that hold any.

    `nonzero` takes its time for each element on a CPU, true or not.
    """
    words = torch.nn.functional.pad(flags, (0, -len(flags) % 8)).view(-1, 8)
    (word,) = words.view(torch.int64).view(-1).nonzero(as_tuple=True)
    found, place = words[word].nonzero(as_tuple=True)
    return word[found] * 8 + place


def _sort_key(row: Tensor, value: Tensor) -> Tensor:
    """int64 that sort by row, then by value: the bits of non-negative floats sort as integers."""
    return (row << 32) | value.view(torch.int32)
