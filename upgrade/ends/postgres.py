"""Postgres for a gallery: connections whose failures are said in a line, and rows in its binary COPY."""

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
Array = np.ndarray[Any, Any]
INTEGERS = {"int2": ">i2", "int4": ">i4", "int8": ">i8"}
HEADER, TRAILER = b"PGCOPY\n\xff\r\n\x00" + bytes(8), b"\xff\xff"  # of a binary COPY


@contextmanager
def connection(params: PgvectorParams) -> Iterator[Connection]:
    """A connection without prepared statements, since a pooler may give each transaction to another session.

    Raises:
        UserError: there is no DSN, or whatever Postgres refuses while it is open.
    """
    dsn = os.environ.get(params.dsn_env)
    if not dsn:
        raise UserError(
            f"store.dsn_env: the environment variable {params.dsn_env} is not set; it should hold the DSN, as "
            "postgresql://USER:PASSWORD@HOST/DATABASE"
        )
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
                f"{said}; push needs its owner, or\n"
                f"columns added by the owner ({params.new} {params.type}(DIMENSION), {params.batch} int), UPDATE, and "
                "CREATE in the schema; cutover needs the owner"
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


def rows_of(raw: list[tuple[Any, ...]], *, text: bool) -> pa.RecordBatch:
    """Rows of a binary COPY, (id int8 or text, vector, perhaps label int8), as ids, embeddings (n, d) and labels.

    Raises:
        UserError: the vectors have several dimensions.
    """
    ids, vectors, *labels = zip(*raw, strict=True)
    if len(sizes := {len(vector) for vector in vectors}) > 1:
        raise UserError(f"store.embedding_column: holds vectors of {len(sizes)} dimensions, not of one model")
    dim = sizes.pop() // 4 - 1
    # A vector is its dimension, two bytes of nothing, and its numbers.
    packed = np.frombuffer(b"".join(vectors), np.dtype([("head", ">i4"), ("values", ">f4", (dim,))]))
    columns = {
        "id": pa.array([x.decode() for x in ids], pa.string()) if text else pa.array(_integers(ids)),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(packed["values"].astype(np.float32).reshape(-1)), dim),
    }
    if labels:
        absent = np.array([label is None for label in labels[0]])
        columns["label"] = pa.array(_integers([label or bytes(8) for label in labels[0]]), mask=absent)
    return pa.RecordBatch.from_pydict(columns)


def _integers(raw: Any) -> Array:
    return np.frombuffer(b"".join(raw), ">i8").astype(np.int64)


def copy_of(rows: pa.RecordBatch, id_type: str, vector_type: str) -> bytes:
    """The binary COPY of id, embedding and batch, by the types of the table's columns.

    Raises:
        UserError: NaN, numbers too large for halfvec, or ids that are null, twice, or none of the column's.
    """
    ids, vectors = rows["id"], rows["embedding"]
    if ids.null_count or vectors.null_count or len(ids.unique()) < len(ids):
        raise UserError("store: rows to push lack an id or a vector, or have one id twice")
    given = vectors.flatten().to_numpy().reshape(len(ids), -1)  # (n, d)
    kind = ">f2" if vector_type == "halfvec" else ">f4"
    with np.errstate(over="ignore"):
        values = given.astype(kind)
    if (bad := ~np.isfinite(values).all(axis=1)).any():
        row = int(bad.argmax())
        if np.isfinite(given[row]).all():
            raise UserError(f"store.type: halfvec holds numbers up to 65,504; item {ids[row]} has more: take vector")
        raise UserError(f"store: the new embedding of item {ids[row]} holds NaN or infinity")
    width = np.dtype(INTEGERS.get(id_type, "V0")).itemsize
    head: list[Any] = [("fields", ">i2"), ("width", ">i4"), ("id", INTEGERS[id_type])] if width else []
    rest: list[Any] = [("size", ">i4"), ("dim", ">i2"), ("nothing", ">i2"), ("values", kind, given.shape[1:])]
    packed = np.zeros(len(ids), np.dtype([*head, *rest, ("four", ">i4"), ("batch", ">i4")]))
    packed["size"], packed["dim"], packed["values"] = values[0].nbytes + 4, given.shape[1], values
    packed["four"], packed["batch"] = 4, rows["batch"].to_numpy()
    if width:
        packed["fields"], packed["width"], packed["id"] = 3, width, ids.to_numpy()
        if (packed["id"] != ids.to_numpy()).any():
            raise UserError(f"store.id_column: is {id_type}, which cannot hold all ids that are to be pushed")
        return HEADER + packed.tobytes() + TRAILER
    parts = [HEADER]
    size, content = packed.itemsize, packed.tobytes()
    for place, item in enumerate(ids.to_pylist()):
        name = uuid.UUID(item).bytes if id_type == "uuid" else item.encode()
        parts += [b"\0\3", len(name).to_bytes(4, "big"), name, content[place * size : (place + 1) * size]]
    return b"".join([*parts, TRAILER])
