"""Bootstrap confidence intervals over queries."""

import torch
from torch import Tensor

SAMPLES = 1000
DRAWN_ELEMENTS = 2**23  # (samples x queries) drawn at a time


def bootstrap_means(values: Tensor, seed: int) -> Tensor:
    """Means of SAMPLES resamples of the queries, values (q, ...) -> (SAMPLES, ...) float64.

    A resample draws q queries with replacement, the same for all columns, so that figures derived from several of them
    can be computed on each resample. The draws depend on q and the seed alone, not on the device.
    """
    queries = len(values)
    generator = torch.Generator().manual_seed(seed)
    flat = values.reshape(queries, -1).double()
    means = []
    for part in torch.arange(SAMPLES).split(max(1, DRAWN_ELEMENTS // queries)):
        drawn = torch.randint(queries, (len(part), queries), generator=generator)
        times = torch.zeros(len(part), queries, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones((), dtype=torch.float64).expand_as(drawn))
        means.append(times.to(flat.device) @ flat / queries)
    return torch.cat(means).view(SAMPLES, *values.shape[1:])


def percentile_interval(means: Tensor, level: float) -> Tensor:
    """The central interval that holds the share `level` of the resamples, (samples, ...) -> (2, ...).

    >>> percentile_interval(torch.arange(101.0), 0.9)
    tensor([ 5., 95.])
    """
    tail = (1 - level) / 2
    return means.quantile(torch.tensor([tail, 1 - tail], dtype=means.dtype, device=means.device), dim=0)
