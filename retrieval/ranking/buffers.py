"""Memory that every chunk uses again: on a CPU, fresh pages cost more than the arithmetic on them."""

import math

import torch
from torch import Tensor

PART_ELEMENTS = 2**21  # of a pass over embeddings, or over pairs x dimensions, at a time


class Buffers:
    """Tensors by name, on one device, each as large as its largest use so far. Not for use by two threads."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised contiguous tensor on the memory `name`, until `name` is taken again."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or len(held) < size or held.dtype != dtype:
            held = self._held[name] = torch.empty(size, dtype=dtype, device=self.device)
        return held[:size].view(shape)


def row_parts(rows: Tensor) -> tuple[Tensor, ...]:
    """Views of at most PART_ELEMENTS of `rows` (n, d), for passes that should not copy all of it."""
    return rows.split(max(1, PART_ELEMENTS // max(1, rows.shape[1])))
