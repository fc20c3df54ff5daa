"""What a transformation makes of old embeddings, as the table keeps it."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from data.items import Array
from models.folding import folded
from upgrade.columns import values, vectors_column
from upgrade.ends.rows import check_finite, parts_of
from upgrade.inputs import Inputs, memory_named
from upgrade.old import Chunk
from upgrade.spaces import are_zero, unit_rows
from upgrade.state import State
from upgrade.table import Table
from utils.errors import UserError
from utils.precision import Resolved

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


def transformed_batches(
    inputs: Inputs, chunks: Iterator[Chunk], before: Table, device: torch.device
) -> Iterator[pa.RecordBatch]:
    """The rows of a table, chunk by chunk.

    Args:
        inputs: the transformation is moved to the device.
        chunks: of old embeddings.
        before: the table as it is, whose rows are kept where they are still right.
        device: to compute on.

    Raises:
        UserError: outputs that are not finite, or too little memory.
    """
    state, schema = inputs.state, inputs.schema
    precision: Resolved = "bf16" if state.precision == "bf16" else "fp32"
    with memory_named():
        module = folded(inputs.transformation, precision).to(device)
        for chunk in chunks:
            where = f"transformation_path: {state.transformation} of {inputs.old.name.partition(': ')[2]}"
            arrays = [chunk.vectors] if chunk.side_info is None else [chunk.vectors, chunk.side_info]
            vectors, sigma = transform_rows(module, arrays, state, device, where, chunk.first)
            columns = {
                "id": pa.array(chunk.ids),
                "embedding": vectors_column(vectors),
                "sigma": pa.nulls(len(vectors), pa.float32()) if sigma is None else pa.array(sigma),
                "priority": pa.nulls(len(vectors), pa.float32()),
                "batch": pa.array(np.zeros(len(vectors), np.int32)),
                "label": None if chunk.labels is None else pa.array(chunk.labels),
                "source_hash": pa.array(chunk.hashes),
            }
            batch = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
            yield _kept(batch, before, state) if before.state.stage == "ready" else batch


def _kept(batch: pa.RecordBatch, before: Table, state: State) -> pa.RecordBatch:
    """Rows as they were, where they are re-embedded or of the same transformation, and their item has not changed."""
    ids, names = values(batch["id"]), ["embedding", "sigma", "priority", "batch", "source_hash"]
    place, found = before.lookup(ids, names, dense=bool((ids[1:] > ids[:-1]).all()))
    if not found.num_rows:
        return batch
    known = np.flatnonzero(place >= 0)
    same = values(found["source_hash"])[place[known]] == values(batch["source_hash"])[known]
    if before.state.transformation_sha256 != state.transformation_sha256:
        same &= values(found["batch"])[place[known]] > 0
    kept = known[same]
    if not len(kept):
        return batch
    both = pa.concat_tables([pa.Table.from_batches([batch]).select(["id", *names]), found.select(["id", *names])])
    rows = np.arange(batch.num_rows)
    rows[kept] = batch.num_rows + place[kept]
    taken = both.take(rows)
    columns = [taken[name].combine_chunks() if name in names else batch[name] for name in batch.schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)
