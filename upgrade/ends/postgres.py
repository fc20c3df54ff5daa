"""Postgres for a gallery: connections whose failures are said in a line, and vectors in its binary COPY."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
from psycopg import errors, sql

from upgrade.ends.config import PgvectorParams
from utils.errors import UserError

Connection = psycopg.Connection[tuple[Any, ...]]
INTEGERS = {"int2": pa.int16(), "int4": pa.int32(), "int8": pa.int64()}


@contextmanager
def connection(params: PgvectorParams) -> Iterator[Connection]:
    """A connection without prepared statements, since a pooler may give each transaction to another session.

    Raises:
        UserError: there is no DSN, or whatever Postgres refuses while it is open.
    """
    dsn = os.environ.get(params.dsn_env)
    if not dsn:
        raise UserError(f"store.dsn_env: the environment variable {params.dsn_env}, for the DSN, is not set")
    try:
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None, application_name="refill") as connected:
            yield connected
    except psycopg.Error as error:
        raise UserError(f"store: {params.schema}.{params.table}: {_reason(error, params)}") from error


def _reason(error: psycopg.Error, params: PgvectorParams) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    again = "what is committed stays; run the step again"
    match error:
        case errors.LockNotAvailable():
            return f"another transaction held its lock for store.lock_timeout, {params.lock_timeout:g} s; {again}"
        case errors.InsufficientPrivilege():
            return (
                f"{said}; cutover needs the table's owner, push too, or\nUPDATE, CREATE in the schema, and columns by "
                f"the owner: {params.new} {params.type}(DIMENSION), {params.batch} int"
            )
        case errors.DiskFull():
            return f"the server has no space left ({said}); {again}"
        case errors.DeadlockDetected() | errors.QueryCanceled():
            return f"{said}; {again}"
        case psycopg.OperationalError() | psycopg.InterfaceError():
            return f"no connection to Postgres, or no longer ({said}); {again}"
    return f"Postgres refused a statement: {said}"


@contextmanager
def transaction(connected: Connection, params: PgvectorParams) -> Iterator[None]:
    """A transaction whose settings end with it; that a policy would hide rows from it is an error."""
    with connected.transaction():
        connected.execute(
            "SELECT set_config('lock_timeout', %s, true), set_config('statement_timeout', '0', true),"
            " set_config('row_security', 'off', true)",
            [f"{max(1, round(1000 * params.lock_timeout))}ms"],
        )
        yield


def one(connected: Connection, query: sql.Composed) -> tuple[Any, ...]:
    """The one row that a query gives."""
    row = connected.execute(query).fetchone()
    assert row is not None
    return row


def rows_of(records: list[tuple[Any, ...]], id_type: pa.DataType) -> pa.RecordBatch:
    """(id, vector as its bytes, perhaps label) of a binary COPY, as ids, embeddings (n, d) and labels.

    Raises:
        UserError: the vectors have several dimensions.
    """
    ids, vectors, *labels = zip(*records, strict=True)
    if len(sizes := {len(vector) for vector in vectors}) > 1:
        raise UserError(f"store.embedding_column: holds vectors of {len(sizes)} dimensions, not of one model")
    dim = sizes.pop() // 4 - 1  # before the numbers there are 4 bytes, of which two hold the dimension
    packed = np.frombuffer(b"".join(vectors), np.dtype([("head", "V4"), ("values", ">f4", (dim,))]))
    flat = pa.array(packed["values"].astype(np.float32).reshape(-1))
    columns = {"id": pa.array(ids, id_type), "embedding": pa.FixedSizeListArray.from_arrays(flat, dim)}
    return pa.RecordBatch.from_pydict(columns | ({"label": pa.array(labels[0], pa.int64())} if labels else {}))


def records_of(rows: pa.RecordBatch, id_type: str, vector_type: str) -> Iterator[tuple[Any, ...]]:
    """(id, vector as its bytes, batch) for a binary COPY, by the types of the table's columns.

    Raises:
        UserError: NaN, numbers too large for halfvec, or ids that are null, twice, or none of the column's.
    """
    ids, vectors = rows["id"], rows["embedding"]
    if ids.null_count or vectors.null_count or len(ids.unique()) < len(ids):
        raise UserError("store: rows to push lack an id or a vector, or have one id twice")
    given = vectors.flatten().to_numpy().reshape(len(ids), -1)  # (n, d)
    packed = np.zeros(
        len(ids),
        [("dim", ">i2"), ("zero", ">i2"), ("x", ">f2" if vector_type == "halfvec" else ">f4", given.shape[1:])],
    )
    with np.errstate(over="ignore"):
        packed["dim"], packed["x"] = given.shape[1], given
    if (bad := ~np.isfinite(packed["x"]).all(axis=1)).any():
        row = int(bad.argmax())
        if np.isfinite(given[row]).all():
            raise UserError(f"store.type: halfvec holds numbers up to 65,504; item {ids[row]} has more: take vector")
        raise UserError(f"store: the new embedding of item {ids[row]} holds NaN or infinity")
    try:
        keys = ids.cast(INTEGERS.get(id_type, pa.string())).to_pylist()
    except pa.ArrowInvalid as error:
        raise UserError(f"store.id_column: is {id_type}, which cannot hold all ids that are to be pushed") from error
    names = map(uuid.UUID, keys) if id_type == "uuid" else keys
    return zip(names, (row.tobytes() for row in packed), rows["batch"].to_pylist(), strict=True)
