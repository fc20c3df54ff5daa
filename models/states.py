"""Parameters and buffers by name, out of a model and into one."""

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A model's parameters and buffers by name: on the CPU, each in memory of its own."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load what `plain_state` gave, or a state dict.

    A plain one no longer says by which versions of the model's layers it was written, which some networks ask for; it
    is taken to be by those that are here.

    Raises:
        RuntimeError: it does not fit.
    """
    versioned = OrderedDict(state)
    versions = getattr(state, "_metadata", None) or getattr(model.state_dict(), "_metadata", None)
    versioned._metadata = versions  # type: ignore[attr-defined]
    model.load_state_dict(versioned)
