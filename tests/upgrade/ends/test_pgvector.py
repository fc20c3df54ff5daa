"""A gallery in a real Postgres: what is read, pushed, switched and switched back."""

import threading
import tracemalloc
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest

from tests.upgrade.ends.conftest import (
    DSN,
    NEW_DIM,
    OLD_DIM,
    RECORD,
    Database,
    Gallery,
    record_batches,
    same,
    wait_until,
)
from upgrade.ends import pgvector
from upgrade.ends.config import PgvectorParams
from upgrade.ends.pgvector import Pgvector
from utils.errors import UserError


def matrix(table: pa.Table) -> np.ndarray:
    column = table["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), -1)


def test_what_is_read_is_what_is_stored(gallery: Gallery) -> None:
    gallery.database.run("INSERT INTO items VALUES (99999, NULL)")
    store = gallery.store()
    info = store.info()
    assert (info.rows, info.without, info.dim, info.id_type) == (500, 1, OLD_DIM, pa.int64())
    assert "items.embedding" in info.identity
    read = pa.Table.from_batches(store.read_old(64))
    order = np.argsort(gallery.ids)
    assert read["id"].to_numpy().tolist() == gallery.ids[order].tolist()
    assert np.array_equal(matrix(read), gallery.old[order])


def test_push_cutover_and_back(gallery: Gallery) -> None:
    store, database = gallery.store(), gallery.database
    assert store.pushed() is None
    assert store.push(gallery.rows(), RECORD) == 500
    assert store.pushed() == RECORD
    assert same(database.vectors("embedding_new"), gallery.expected())
    old = database.vectors("embedding")
    for _ in range(2):
        store.cutover()
        assert same(database.vectors("embedding"), gallery.expected())
        assert same(database.vectors("embedding_old"), old)
    assert (store.info().dim, store.pushed()) == (OLD_DIM, replace(RECORD, cut_over=True))
    assert np.array_equal(matrix(pa.Table.from_batches(store.read_old(500))), gallery.old[np.argsort(gallery.ids)])
    store.push(gallery.rows(shift=1), replace(RECORD, table_version=8))  # later batches, while the new ones serve
    assert same(database.vectors("embedding"), gallery.expected(shift=1))
    for _ in range(2):
        store.undo_cutover()
        assert same(database.vectors("embedding"), old)
    assert same(database.vectors("embedding_new"), gallery.expected(shift=1))
    assert store.pushed() == replace(RECORD, table_version=8)


@pytest.mark.parametrize("id_type", ["integer", "smallint", "uuid", "text", "varchar(40)"])
def test_ids_of_every_type(database: Database, id_type: str) -> None:
    rng = np.random.default_rng(0)
    names = ["Z", "a", "é", "_", "b\\", 'q"uote', "Ω", "😀", "aa", "B"]
    ids: Any = {"integer": np.arange(-5, 5), "smallint": np.arange(-5, 5)}.get(id_type)
    if ids is None:
        ids = names if id_type != "uuid" else [str(uuid.UUID(bytes=rng.bytes(16))) for _ in names]
    old, new = rng.normal(size=(10, 4)).astype(np.float32), rng.normal(size=(10, 3)).astype(np.float16)
    database.make_table(list(ids), old, id_type)
    store = Pgvector.open(PgvectorParams(table="items", dsn_env=DSN))
    read = pa.Table.from_batches(store.read_old(3))
    assert read["id"].to_pylist() == sorted(ids)
    assert store.info().id_type == read["id"].type
    assert store.push(record_batches(list(ids), new), RECORD) == 10
    expected = dict(zip(list(ids), new.astype(np.float32), strict=True))
    assert same(
        {str(key): vector for key, vector in database.vectors("embedding_new").items()},
        {str(k): v for k, v in expected.items()},
    )


def test_any_name_is_quoted_and_pgvector_may_be_out_of_the_search_path(database: Database) -> None:
    database.run('CREATE SCHEMA "sch\'ema"; CREATE SCHEMA extensions; ALTER EXTENSION vector SET SCHEMA extensions')
    database.run('CREATE TABLE "sch\'ema"."My ""Items""" ("Key %s" bigint PRIMARY KEY, "{e}" extensions.vector)')
    database.run('INSERT INTO "sch\'ema"."My ""Items""" VALUES (1, \'[1,2]\'), (2, \'[3,4]\')')
    keys: dict[str, Any] = {"schema": "sch'ema", "id_column": "Key %s", "embedding_column": "{e}"}
    index: Any = {"index": "hnsw", "operator_class": "halfvec_l2_ops", "index_options": {"m": 8}}
    store = Pgvector.open(PgvectorParams(table='My "Items"', dsn_env=DSN, **keys, **index))
    assert store.info().dim == 2
    for shift in (0, 1, 1):
        assert store.push(record_batches([1, 2], np.eye(2, dtype=np.float16) + np.float16(shift)), RECORD) == 2
    store.cutover()
    rows = database.run('SELECT "Key %s", "{e}"::text, "{e}_old"::text FROM "sch\'ema"."My ""Items""" ORDER BY 1')
    assert rows == [(1, "[2,1]", "[1,2]"), (2, "[1,2]", "[3,4]")]
    assert database.run(VALID) == [('My "Items"_{e}_new_hnsw', True)]


def test_labels_where_there_are_some(database: Database) -> None:
    database.make_table([3, 1, 2], np.eye(3, dtype=np.float32), extra=", label smallint")
    database.run("UPDATE items SET label = 10 * id WHERE id <> 2")
    store = Pgvector.open(PgvectorParams(table="items", dsn_env=DSN, label_column="label"))
    assert pa.Table.from_batches(store.read_old(2))["label"].to_pylist() == [10, None, 30]


def test_old_vectors_may_be_halves_and_new_ones_single(database: Database) -> None:
    old, new = np.array([[1.5, -2]], np.float32), np.array([[0.1, 1e30]], np.float32)
    database.make_table([1], old)
    database.run("ALTER TABLE items ALTER embedding TYPE halfvec(2)")
    store = Pgvector.open(PgvectorParams(table="items", dsn_env=DSN, type="vector"))
    assert np.array_equal(matrix(pa.Table.from_batches(store.read_old(1))), old)
    store.push(record_batches([1], new), RECORD)
    assert np.array_equal(database.vectors("embedding_new")[1], new[0])


def test_a_row_that_holds_what_is_pushed_is_not_written_again(gallery: Gallery) -> None:
    store, versions = gallery.store(), "SELECT id, xmin::text FROM items ORDER BY id"
    store.push(gallery.rows(), RECORD)
    before = dict(gallery.database.run(versions))
    assert store.push(gallery.rows(), RECORD) == 500
    assert dict(gallery.database.run(versions)) == before
    some = np.arange(0, 500, 5)
    assert store.push(gallery.rows(some, shift=2, batch=1), RECORD) == 100
    changed = {key for key, version in gallery.database.run(versions) if version != before[key]}
    assert changed == set(gallery.ids[some].tolist())
    batches = dict(gallery.database.run("SELECT id, embedding_new_batch FROM items"))
    assert {key for key, batch in batches.items() if batch == 1} == changed
    store.push(gallery.rows(), RECORD)  # a rollback
    assert same(gallery.database.vectors("embedding_new"), gallery.expected())
    assert gallery.database.run("SELECT DISTINCT embedding_new_batch FROM items") == [(0,)]


def test_what_the_application_wrote_and_deleted_stays_so(gallery: Gallery, capsys: pytest.CaptureFixture[str]) -> None:
    store, database = gallery.store(), gallery.database
    store.push(gallery.rows(slice(0, 100)), RECORD)
    mine, lost = int(gallery.ids[5]), int(gallery.ids[200])
    database.run("UPDATE items SET embedding_new = '[9,9,9,9,9]', embedding_new_batch = NULL WHERE id = %s", mine)
    database.run("DELETE FROM items WHERE id = %s", lost)
    assert store.push(gallery.rows(), RECORD) == 498
    errors = capsys.readouterr().err
    assert f"1 items are no longer in the table and were left out, as {lost}" in errors
    assert "1 items keep the new vector that the application wrote" in errors
    expected = {**gallery.expected(), mine: np.full(NEW_DIM, 9, np.float32)}
    del expected[lost]
    assert same(database.vectors("embedding_new"), expected)
    assert store.push(gallery.rows([5], batch=3), RECORD) == 1  # but an exact one takes its place
    assert np.array_equal(database.vectors("embedding_new")[mine], gallery.expected()[mine])


def test_a_push_that_breaks_off_is_no_push(gallery: Gallery) -> None:
    def breaking(shift: float) -> Iterator[pa.RecordBatch]:
        for number, batch in enumerate(gallery.rows(shift=shift)):
            if number == 3:
                raise UserError("the disk of the gallery is gone")
            yield batch

    store = gallery.store()
    for shift in (0, 1):
        with pytest.raises(UserError, match="is gone"):
            store.push(breaking(shift), RECORD)
        assert len(gallery.database.vectors("embedding_new")) == (300, 500)[shift]
        assert store.pushed() is None
        with pytest.raises(UserError, match="not to its end; push first"):
            store.cutover()
        store.push(gallery.rows(shift=shift), RECORD)
        assert same(gallery.database.vectors("embedding_new"), gallery.expected(shift=shift))
    assert store.pushed() == RECORD


@pytest.mark.parametrize("other", ["push", "undo"])
def test_a_push_ends_where_another_step_has_begun(gallery: Gallery, other: str) -> None:
    """Above all it must not go on writing to a column that has become the old one."""
    store = gallery.store()
    store.push(gallery.rows(), RECORD)
    old = gallery.database.vectors("embedding")
    store.cutover()

    def meanwhile() -> Iterator[pa.RecordBatch]:
        for number, batch in enumerate(gallery.rows(shift=1)):
            if number == 2 and other == "push":
                gallery.store().push(gallery.rows(shift=2), replace(RECORD, table_version=9))
            elif number == 2:
                gallery.store().undo_cutover()
            yield batch

    with pytest.raises(UserError, match="has begun since"):
        store.push(meanwhile(), RECORD)
    if other == "push":
        assert store.pushed() == replace(RECORD, table_version=9, cut_over=True)
        assert same(gallery.database.vectors("embedding"), gallery.expected(shift=2))
    else:
        assert same(gallery.database.vectors("embedding"), old)
        assert store.pushed() is None


def test_a_cutover_is_of_what_it_has_looked_at(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    store, database = gallery.store(), gallery.database
    store.push(gallery.rows(), RECORD)
    old, look = database.vectors("embedding"), pgvector._followers

    def meanwhile(*arguments: Any) -> Any:
        database.run("UPDATE refill_upgrade SET complete = false, writer = 'another push'")
        return look(*arguments)

    monkeypatch.setattr(pgvector, "_followers", meanwhile)
    with pytest.raises(UserError, match="another step has changed the table meanwhile"):
        store.cutover()
    assert same(database.vectors("embedding"), old)


INDEX: dict[str, Any] = {"index": "hnsw", "operator_class": "halfvec_l2_ops"}
VALID = "SELECT relname, indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE relname LIKE '%hnsw'"


def test_the_index_comes_after_the_rows_and_one_left_by_an_interruption_goes(gallery: Gallery) -> None:
    store, database = gallery.store(**INDEX), gallery.database
    database.run("ALTER TABLE items ADD embedding_new halfvec(5), ADD embedding_new_batch int")
    blocker = psycopg.connect(database.dsn)
    blocker.execute("UPDATE items SET id = id WHERE false")  # a writer, for which a build waits
    with psycopg.connect(database.dsn, autocommit=True) as connected:
        connected.execute("SET statement_timeout = '300ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            connected.execute(
                "CREATE INDEX CONCURRENTLY items_embedding_new_hnsw ON items USING hnsw (embedding_new halfvec_l2_ops)"
            )
    blocker.close()
    assert database.run(VALID) == [("items_embedding_new_hnsw", False)]
    store.push(gallery.rows(), RECORD)
    assert database.run(VALID) == [("items_embedding_new_hnsw", True)]
    store.cutover()
    with psycopg.connect(database.dsn) as connected:
        connected.execute("SET enable_seqscan = off")
        query = f"SELECT id FROM items ORDER BY embedding <-> '{gallery.new[7].tolist()}' LIMIT 1"
        assert "items_embedding_new_hnsw" in str(connected.execute(f"EXPLAIN {query}").fetchall())
        assert connected.execute(query).fetchone() == (int(gallery.ids[7]),)


def test_a_build_that_is_at_work_is_waited_for(gallery: Gallery, capsys: pytest.CaptureFixture[str]) -> None:
    """A killed client's build goes on in the server."""
    store, database = gallery.store(**INDEX), gallery.database
    gallery.store().push(gallery.rows(), RECORD)
    blocker = psycopg.connect(database.dsn)
    blocker.execute("UPDATE items SET id = id WHERE false")
    build = "CREATE INDEX CONCURRENTLY items_embedding_new_hnsw ON items USING hnsw (embedding_new halfvec_l2_ops)"
    threads = [threading.Thread(target=database.run, args=(build,))]
    threads[0].start()
    wait_until(lambda: bool(database.run("SELECT 1 FROM pg_stat_progress_create_index")))
    threads.append(threading.Thread(target=store.push, args=(gallery.rows(), RECORD)))
    threads[1].start()
    wait_until(lambda: not database.run("SELECT 1 FROM refill_upgrade WHERE complete"))
    blocker.close()
    for thread in threads:
        thread.join(timeout=30)
    assert database.run(VALID) == [("items_embedding_new_hnsw", True)]
    assert store.pushed() == RECORD
    assert "building the index" not in capsys.readouterr().err  # by the push, a second time


def test_many_rows_through_a_standing_index_get_a_word(
    gallery: Gallery, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upgrade.ends.pgvector.MANY", 300)
    store = gallery.store(**INDEX)
    store.push(gallery.rows(), RECORD)
    store.push(gallery.rows(slice(0, 200), shift=1, batch=1), RECORD)
    assert "HNSW" not in capsys.readouterr().err
    store.push(gallery.rows(shift=2), RECORD)
    assert capsys.readouterr().err.count("the HNSW index items_embedding_new_hnsw slows this") == 1


def test_a_partitioned_table(database: Database) -> None:
    database.run(
        "CREATE TABLE items (id bigint PRIMARY KEY, embedding vector(2)) PARTITION BY RANGE (id);"
        "CREATE TABLE low PARTITION OF items FOR VALUES FROM (0) TO (50);"
        "CREATE TABLE high PARTITION OF items FOR VALUES FROM (50) TO (100);"
        "INSERT INTO items SELECT i, ARRAY[i, 1]::vector FROM generate_series(0, 99) i"
    )
    store = Pgvector.open(PgvectorParams(table="items", dsn_env=DSN))
    new = np.arange(200, dtype=np.float16).reshape(100, 2)
    assert [batch["id"].to_pylist() for batch in store.read_old(50)] == [list(range(50)), list(range(50, 100))]
    assert store.push(record_batches(np.arange(100), new), RECORD) == 100
    store.cutover()
    assert np.array_equal(list(database.vectors("embedding", "high").values()), new[50:])
    with pytest.raises(UserError, match="Postgres builds none CONCURRENTLY on a partitioned table"):
        Pgvector.open(PgvectorParams(table="items", dsn_env=DSN, **INDEX)).push(iter([]), RECORD)


def test_what_follows_the_old_column_is_named(gallery: Gallery, capsys: pytest.CaptureFixture[str]) -> None:
    database = gallery.database
    database.run(
        "CREATE VIEW searched AS SELECT id, embedding FROM items;"
        "ALTER TABLE items ADD dims int GENERATED ALWAYS AS (vector_dims(embedding)) STORED;"
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER stamp BEFORE UPDATE OF embedding ON items FOR EACH ROW EXECUTE FUNCTION f()"
    )
    store = gallery.store()
    store.push(gallery.rows(), RECORD)
    store.cutover()
    errors = capsys.readouterr().err
    assert "view searched" in errors
    assert "trigger stamp on table items" in errors
    assert "column dims of table items" in errors


def test_queries_by_the_new_model_never_meet_the_old_vectors(database: Database) -> None:
    """As docs/stores.md says: they try the new column and then the other, while names are switched to and fro."""
    old, new = np.arange(200, dtype=np.float32).reshape(100, 2), np.arange(200, 0, -1, dtype=np.float16).reshape(100, 2)
    database.make_table(list(range(100)), old)  # item i lies where item 99 - i will
    store = Pgvector.open(PgvectorParams(table="items", dsn_env=DSN, lock_timeout=30))
    store.push(record_batches(np.arange(100), new), RECORD)
    answers: list[Any] = []
    ended = threading.Event()

    def serve() -> None:
        nearest = "SELECT id FROM items {} ORDER BY {} <-> '[200,199]' LIMIT 1"
        guard = "WHERE (SELECT cut_over FROM refill_upgrade WHERE table_name = 'items')"
        with psycopg.connect(database.dsn, autocommit=True) as connected:
            while not ended.is_set():
                for column, where in (("embedding_new", ""), ("embedding", guard)):
                    try:
                        answer = connected.execute(nearest.format(where, column)).fetchone()
                    except psycopg.errors.UndefinedColumn:
                        continue
                    answers.append((column, answer))
                    break

    thread = threading.Thread(target=serve)
    thread.start()
    for _ in range(10):
        count = len(answers)
        wait_until(lambda count=count: len(answers) > count + 5)  # type: ignore[misc]
        store.cutover()
        count = len(answers)
        wait_until(lambda count=count: len(answers) > count + 5)  # type: ignore[misc]
        store.undo_cutover()
    ended.set()
    thread.join()
    assert {column for column, answer in answers if answer} == {"embedding_new", "embedding"}
    assert {answer for _, answer in answers} <= {(0,), None}  # None: switched back in between, asked again


def test_nothing_outlives_a_transaction(gallery: Gallery) -> None:
    """As a transaction pooler asks for: each transaction may be of another session."""
    gallery.database.run(f"ALTER DATABASE \"{gallery.database.name}\" SET log_statement = 'all'")
    log = gallery.database.server.log
    start = log.stat().st_size
    store = gallery.store(**INDEX)
    list(store.read_old(100))
    store.push(gallery.rows(), RECORD)
    store.cutover()
    store.undo_cutover()
    said = log.read_text()[start:]
    statements = [line.split("LOG:", 1)[1].strip() for line in said.splitlines() if "LOG:" in line]
    assert any("refill_rows" in line for line in statements)
    for line in statements:
        kind, _, text = line.partition(": ")
        assert kind in ("statement", "execute <unnamed>"), line
        assert not text.upper().startswith(("SET ", "PREPARE", "LISTEN", "DECLARE"))
        assert "set_config" not in text or "false)" not in text


def test_reading_and_pushing_take_memory_for_a_part_alone(database: Database) -> None:
    rows, dim = 40_000, 64
    database.run(
        f"CREATE TABLE items (id bigint PRIMARY KEY, embedding vector({dim}));"
        f"INSERT INTO items SELECT i, (SELECT array_agg(i + j) FROM generate_series(1, {dim}) j)::vector"
        f" FROM generate_series(1, {rows}) i"
    )
    store = Pgvector.open(PgvectorParams(table="items", dsn_env=DSN, transaction_rows=1000))

    def halves() -> Iterator[pa.RecordBatch]:
        for start in range(0, rows, 1000):
            yield from record_batches(start + np.arange(1, 1001), np.full((1000, dim), 0.5, np.float16), rows=1000)

    tracemalloc.start()
    assert sum(len(batch) for batch in store.read_old(1000)) == rows
    assert store.push(halves(), RECORD) == rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * rows * dim * 4
