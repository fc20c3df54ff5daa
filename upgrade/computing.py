"""What a transformation makes of old embeddings, as the table keeps it."""

import numpy as np
import torch
from torch import nn

from data.items import Array
from data.sources.rows import check_finite, parts_of
from upgrade.spaces import are_zero, unit_rows
from upgrade.state import State
from utils.errors import UserError

CPU_BATCH, GPU_BATCH = 1024, 2**18  # rows through the transformation at a time: hidden layers that fit the cache


@torch.inference_mode()
def transform_rows(
    module: nn.Module, inputs: list[Array], state: State, device: torch.device, where: str, first_row: int
) -> tuple[Array, Array | None]:
    """Old embeddings and perhaps side-information -> embeddings (m, d) as the gallery keeps them, and sigma (m,).

    A zero old embedding becomes a zero one: it stands for nothing in either space.

    Args:
        module: a transformation on the device, `folded` or not.
        inputs: old embeddings (m, d_old) and, if there is such, side-information (m, d_side).
        state: tells the type and whether the embeddings have length 1.
        device: of the module.
        where: names the transformation and what it is applied to, in error messages.
        first_row: the number of the first row, there.

    Raises:
        UserError: an embedding is not finite, or beyond what the gallery's type can hold.
    """
    embeddings = np.empty((len(inputs[0]), state.dim), state.dtype)
    sigma = np.empty(len(inputs[0]), np.float32) if state.has_sigma else None
    for start, stop in parts_of(len(embeddings), CPU_BATCH if device.type == "cpu" else GPU_BATCH):
        batch = [torch.from_numpy(given[start:stop]).to(device).float() for given in inputs]
        output = module(*batch)
        vectors = output.embedding.float()
        if state.normalised:
            vectors = unit_rows(vectors)
        embeddings[start:stop] = vectors.to(torch.float16 if state.dtype == "float16" else torch.float32).cpu()
        if not np.isfinite(embeddings[start:stop]).all():
            exact = vectors.cpu().numpy()
            check_finite(exact, where, first_row + start)
            row = first_row + start + np.flatnonzero(~np.isfinite(embeddings[start:stop]).all(1))[0]
            raise UserError(f"{where}: row {row} holds values beyond 65504, the largest of float16; set dtype=float32")
        if sigma is not None:
            sigma[start:stop] = output.log_variance.float().mean(1).cpu()
    embeddings[are_zero(inputs[0])] = 0
    return embeddings, sigma
