"""kill -9 of the client, of a session and of the whole server in the middle of a push: a rerun finishes it."""

import os
import random
import signal
import time
from collections.abc import Iterator

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from tqdm import tqdm

from tests.upgrade.ends.conftest import DSN, RECORD, Database, record_batches, stop, wait_until
from upgrade.ends.config import PgvectorParams
from upgrade.ends.pgvector import Pgvector
from utils.errors import UserError

ROWS, DIM = 2000, 8
OLD = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
# A push writes these numbers plus that of the round: what a row holds tells of which round it is.
NEW = np.random.default_rng(1).integers(0, 8, size=(ROWS, DIM)).astype(np.float16)
VICTIMS = ("client", "session", "backend", "server")


INDEX = "items_embedding_new_hnsw"
PART = 100  # rows of a transaction


def push(number: int, progress: int | None = None) -> None:
    """Round `number`; a byte to the pipe `progress` as each part is asked for. Every third ends with the index."""
    params = PgvectorParams(
        table="items",
        dsn_env=DSN,
        transaction_rows=PART,
        index="none" if number % 3 else "hnsw",
        operator_class="halfvec_l2_ops",
        index_options={"ef_construction": 200},
    )

    def parts() -> Iterator[pa.RecordBatch]:
        for part in record_batches(np.arange(ROWS), NEW + np.float16(number), batch=number, rows=PART):
            if progress is not None:
                os.write(progress, b".")
            yield part

    assert Pgvector.open(params).push(parts(), RECORD) == ROWS


def start_push(number: int) -> tuple[int, int]:
    """A push in a process of its own -> its id and the end of its pipe; exit code 0 done, 2 refused."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            push(number, writing)
            os._exit(0)
        except UserError:
            os._exit(2)
        finally:
            os._exit(1)
    os.close(writing)
    return process, reading


def kill(victim: str, process: int, database: Database) -> None:
    """End the client, end its session, or kill a process of the server, which takes all sessions with it."""
    if victim == "client":
        os.kill(process, signal.SIGKILL)
    elif victim == "server":
        stop(database.server)
        database.server.ensure_postgres_running()
    else:
        sessions = database.run(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'refill' AND datname = %s", database.name
        )
        for (session,) in sessions:
            if victim == "backend":
                os.kill(session, signal.SIGKILL)
            else:
                database.run("SELECT pg_terminate_backend(%s)", session)


def is_up(database: Database) -> bool:
    try:
        database.run("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def rounds_of(database: Database) -> np.ndarray:
    """The number of the round that each row is of, 0 without a vector; no row may be a mixture."""
    rows = database.run("SELECT id, embedding_new::text, embedding_new_batch, embedding::text FROM items ORDER BY id")
    assert [row[0] for row in rows] == list(range(ROWS))  # none lost, none twice
    found = np.zeros(ROWS, int)
    for key, vector, batch, old in rows:
        assert np.array_equal(np.fromstring(old[1:-1], sep=",", dtype=np.float32), OLD[key])
        assert (vector is None) == (batch is None)
        if vector is not None:
            shift = np.fromstring(vector[1:-1], sep=",", dtype=np.float32) - NEW[key].astype(np.float32)
            assert (shift == batch).all()
            found[key] = batch
    return found


def test_a_push_killed_at_any_moment_is_finished_by_a_rerun(
    database: Database, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # no thread, which a fork would leave behind
    rounds = request.config.getoption("--kills") or 3
    draw, outcomes = random.Random(0), []
    database.make_table(list(range(ROWS)), OLD)
    push(1)
    for number in range(2, 2 + rounds * len(VICTIMS)):
        victim = VICTIMS[number % len(VICTIMS)]
        database.run(f"DROP INDEX IF EXISTS {INDEX}")
        process, progress = start_push(number)
        for _ in range(ROWS // PART if number % 3 == 0 else draw.randint(1, ROWS // PART)):
            os.read(progress, 1)
        time.sleep(draw.uniform(0, 0.1 if number % 3 == 0 else 0.01))
        kill(victim, process, database)
        _, status = os.waitpid(process, 0)
        os.close(progress)
        wait_until(lambda: is_up(database))
        found = rounds_of(database)
        assert set(found) <= {number - 1, number}
        outcomes.append(f"{victim} at {np.mean(found == number):.0%} (status {status})")
        if status != 0:
            assert (
                Pgvector.open(PgvectorParams(table="items", dsn_env=DSN)).pushed() is None
                or (found == number - 1).all()
            )
        push(number)
        assert set(rounds_of(database)) == {number}
        valid = database.run("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", INDEX)
        assert valid == ([] if number % 3 else [(True,)])
    print(f"{len(outcomes)} kills: {'; '.join(outcomes)}")
    assert sum("status 0" not in outcome for outcome in outcomes) >= len(outcomes) / 2
