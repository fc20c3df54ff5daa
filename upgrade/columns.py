"""The columns of an upgrade's table, and what is in them as arrays."""

import numpy as np
import pyarrow as pa

from data.items import Array
from data.sources.ids import scrambled, text_keys
from data.sources.parquet_files import values_of
from upgrade.state import State


def schema_of(state: State, id_type: pa.DataType, has_labels: bool) -> pa.Schema:
    """The columns of a table."""
    number = pa.float16() if state.dtype == "float16" else pa.float32()
    fields = [
        pa.field("id", id_type, nullable=False),
        pa.field("embedding", pa.list_(number, state.dim)),
        pa.field("sigma", pa.float32()),
        pa.field("priority", pa.float32()),
        pa.field("batch", pa.int32()),
        *([pa.field("label", pa.int64())] if has_labels else []),
        pa.field("source_hash", pa.uint64()),
        *([pa.field("calibration", pa.float32())] if state.has_calibrations else []),
    ]
    return pa.schema(fields, metadata=state.to_metadata())


def vectors_column(vectors: Array) -> pa.Array:
    """(n, d) -> a column of lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).reshape(-1)), vectors.shape[1])


def values(column: pa.ChunkedArray | pa.Array) -> Array:
    """A column -> (n,) or (n, d)."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [values_of(chunk) for chunk in chunks if len(chunk)]
    return np.concatenate(parts) if parts else np.empty(0)


def id_keys(ids: Array) -> Array:
    """Ids (m,), whole numbers or texts -> (m,) uint64 without visible order; two texts may have one key."""
    return text_keys(ids) if ids.dtype.kind == "U" else scrambled(np.ascontiguousarray(ids).view(np.uint64))


def digest_of(ids: Array) -> int:
    """What tells which ids (m,) there are, and how often, in whatever order: those of parts add up, modulo 2^64."""
    return int(scrambled(id_keys(ids)).sum(dtype=np.uint64))
