"""What a transformation makes of old embeddings, as the table keeps it."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional as F

from data.items import Array
from data.sources.rows import check_finite, parts_of
from models.folding import folded
from upgrade.columns import values, vectors_column
from upgrade.drift import changes
from upgrade.inputs import Inputs, memory_named
from upgrade.old import Chunk
from upgrade.spaces import are_zero
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
            vectors = F.normalize(vectors, dim=1)
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


class Transformer:
    """What makes the rows of a table.

    Args:
        inputs: whose transformations are copied to the device.
        device: to compute on.
    """

    def __init__(self, inputs: Inputs, device: torch.device) -> None:
        self.state, self.device, self.name = inputs.state, device, inputs.old.name.partition(": ")[2]
        precision: Resolved = "bf16" if inputs.state.precision == "bf16" else "fp32"
        self.module = folded(inputs.transformation, precision).to(device)
        self.earlier = None if inputs.earlier is None else folded(inputs.earlier, precision).to(device)

    def __call__(self, chunk: Chunk) -> tuple[Array, Array | None, Array | None]:
        """A chunk of m old embeddings -> embeddings (m, d), sigma (m,) and calibration (m,), as the table keeps them.

        Raises:
            UserError: as `transform_rows`.
        """
        state, behind, side_info = self.state, chunk.behind, chunk.side_info
        where = f"transformation_path: {state.transformation} of {self.name}"
        if behind is None or self.earlier is None:
            vectors, sigma = self._rows(self.module, chunk.vectors, side_info, where, chunk.first)
        else:
            vectors = np.empty((len(chunk.ids), state.dim), state.dtype)
            sigma = np.empty(len(chunk.ids), np.float32) if state.has_sigma else None
            exact = np.setdiff1d(np.arange(len(chunk.ids)), behind.rows)
            own = f"earlier.transformation_path: {(state.earlier or {})['transformation']}"
            for rows, module, old, side, name in (
                (exact, self.module, chunk.vectors[exact], side_info if side_info is None else side_info[exact], where),
                (behind.rows, self.earlier, behind.vectors, behind.side_info, own),
            ):
                assert old is not None
                vectors[rows], found = self._rows(module, old, side, name, chunk.first)
                if sigma is not None:
                    sigma[rows] = found
        if behind is not None and sigma is not None and behind.sigma is not None:
            assert state.earlier is not None
            ratio = state.earlier["gain"] * state.old_dim / state.dim  # errors add, see `Calibration.chained`
            sigma[behind.rows] = np.log(np.exp(sigma[behind.rows]) + ratio * np.exp(behind.sigma))
        return vectors, sigma, self._calibrations(chunk)

    def _rows(
        self, module: nn.Module, old: Array, side_info: Array | None, where: str, first: int
    ) -> tuple[Array, Array | None]:
        arrays = [old] if side_info is None else [old, side_info]
        return transform_rows(module, arrays, self.state, self.device, where, first)

    def _calibrations(self, chunk: Chunk) -> Array | None:
        """Of each row, (m,): that of what it goes through; of two transformations that of both."""
        state, behind = self.state, chunk.behind
        calibration = state.calibrated()
        if calibration is None or state.earlier is None or behind is None:
            return None
        values = np.full(len(chunk.ids), calibration.value, np.float32)
        before = state.earlier["calibration"]
        if self.earlier is not None:
            values[behind.rows] = before["value"]
        else:
            assert behind.calibration is not None
            own = torch.from_numpy(behind.calibration)
            values[behind.rows] = calibration.chained(own, before["distance"], state.earlier["gain"]).numpy()
        return values


def transformed_batches(
    inputs: Inputs, chunks: Iterator[Chunk], before: Table, device: torch.device
) -> Iterator[pa.RecordBatch]:
    """The rows of a table, chunk by chunk.

    Args:
        inputs: what makes them.
        chunks: of old embeddings.
        before: the table as it is, whose rows are kept where they are still right.
        device: to compute on.

    Raises:
        UserError: outputs that are not finite, or too little memory.
    """
    with memory_named():
        transformer = Transformer(inputs, device)
        for chunk in chunks:
            vectors, sigma, calibration = transformer(chunk)
            columns = {
                "id": pa.array(chunk.ids),
                "embedding": vectors_column(vectors),
                "sigma": pa.nulls(len(vectors), pa.float32()) if sigma is None else pa.array(sigma),
                "priority": pa.nulls(len(vectors), pa.float32()),
                "batch": pa.array(np.zeros(len(vectors), np.int32)),
                "label": None if chunk.labels is None else pa.array(chunk.labels),
                "source_hash": pa.array(chunk.hashes),
                "calibration": None if calibration is None else pa.array(calibration),
            }
            schema = inputs.schema
            batch = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
            yield _kept(batch, before, inputs.state) if before.state.stage == "ready" else batch


def _kept(batch: pa.RecordBatch, before: Table, state: State) -> pa.RecordBatch:
    """Rows as they were, where they are re-embedded or of the same transformation, and their item has not changed."""
    ids, names = values(batch["id"]), ["embedding", "sigma", "priority", "batch"]
    place, found = before.lookup(ids, [*names, "source_hash"], dense=bool((ids[1:] > ids[:-1]).all()))
    if not found.num_rows:
        return batch
    known = np.flatnonzero(place >= 0)
    changed, moved = changes(before, found, place[known], values(batch["source_hash"])[known])
    re_embedded = values(found["batch"])[place[known]] > 0
    same = ~changed & (re_embedded | ~moved)
    if before.state.made_by != state.made_by:
        same &= re_embedded
    kept = known[same]
    if not len(kept):
        return batch
    both = pa.concat_tables([pa.Table.from_batches([batch]).select(names), found.select(names)])
    rows = np.arange(batch.num_rows)
    rows[kept] = batch.num_rows + place[kept]
    taken = both.take(rows)
    columns = [taken[name].combine_chunks() if name in names else batch[name] for name in batch.schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)
