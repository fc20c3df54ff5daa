"""What a user can get wrong with Postgres, and what can go wrong there: a line or two, and nothing half-done."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest

from tests.upgrade.ends.conftest import DSN, NEW_DIM, RECORD, Database, Gallery, record_batches, same
from upgrade.ends import pgvector
from upgrade.ends.config import PgvectorParams
from upgrade.ends.pgvector import Pgvector
from utils.config import build
from utils.errors import UserError


def refusal(action: Callable[[], Any]) -> str:
    """The message of a UserError, which is of one or two lines."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert len(message.splitlines()) <= 2
    assert message.startswith("store")
    return message


def opening(**keys: Any) -> Callable[[], Any]:
    return lambda: Pgvector.open(PgvectorParams(**{"table": "items", "dsn_env": DSN, **keys})).info()


def test_no_connection(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DSN)
    assert f"store.dsn_env: the environment variable {DSN}, for the DSN, is not set" in refusal(opening())
    for dsn in ("postgresql://postgres:secret@127.0.0.1:1/none", f"{database.dsn}&dbname=none", "nonsense"):
        monkeypatch.setenv(DSN, dsn)
        assert "secret" not in refusal(opening())


@pytest.mark.parametrize(
    ("statement", "keys", "message"),
    [
        ("DROP TABLE items", {}, "store.table: the database {database} has no table items in schema public"),
        ("", {"schema": "other"}, "has no table items in schema other"),
        ("", {"id_column": "key"}, "store.id_column: the table has no column key (it has id, embedding)"),
        ("", {"embedding_column": "vector"}, "store.embedding_column: the table has no column vector"),
        ("", {"embedding_column": "id", "id_column": "embedding"}, "id is int8; it should be vector or halfvec"),
        ("ALTER TABLE items ADD label text", {"label_column": "label"}, "store.label_column: label is text"),
        ("ALTER TABLE items RENAME TO t; CREATE VIEW items AS SELECT * FROM t", {}, "is a view or the like"),
        ("DROP EXTENSION vector CASCADE", {}, "has no pgvector: run CREATE EXTENSION vector there"),
        (
            "ALTER TABLE items ALTER embedding TYPE vector; INSERT INTO items VALUES (9999, '[1,2]')",
            {},
            "embedding holds vectors of 2 to 6 dimensions",
        ),
        ("UPDATE items SET embedding = NULL", {}, "embedding holds no vector"),
        ("ALTER TABLE items DROP CONSTRAINT items_pkey", {}, 'no unique index, by which rows are found: CREATE'),
        (
            "ALTER TABLE items DROP CONSTRAINT items_pkey; INSERT INTO items VALUES (7777, NULL), (7777, NULL)",
            {},
            "id is 7777 in 2 rows",
        ),
        (
            "ALTER TABLE items DROP CONSTRAINT items_pkey, ALTER id DROP NOT NULL, ADD UNIQUE (id);"
            "INSERT INTO items VALUES (NULL, NULL), (NULL, NULL)",
            {},
            "id is NULL in 2 rows",
        ),
        (
            "ALTER TABLE items DROP CONSTRAINT items_pkey, ADD part int DEFAULT 0, ADD PRIMARY KEY (id, part)",
            {},
            "id is part of a compound key",
        ),
        (
            "ALTER TABLE items DROP CONSTRAINT items_pkey; CREATE UNIQUE INDEX ON items (id) WHERE id > 0",
            {},
            "id has no unique index",
        ),
        ("CREATE TABLE refill_upgrade (x int)", {}, "refill_upgrade is not of this tool"),
        (
            "SET allow_system_table_mods = on; UPDATE pg_extension SET extversion = '0.6.2' WHERE extname = 'vector'",
            {},
            "store.type: pgvector 0.6.2 has no halfvec, which came with 0.7: take vector",
        ),
    ],
)  # fmt: skip
def test_what_no_gallery_can_be_read_from(gallery: Gallery, statement: str, keys: dict[str, Any], message: str) -> None:
    if statement:
        gallery.database.run(statement)
    assert message.format(database=gallery.database.name) in refusal(opening(**keys))


def test_several_dimensions_are_seen_in_reading_too(gallery: Gallery) -> None:
    gallery.database.run("ALTER TABLE items ALTER embedding TYPE vector; INSERT INTO items VALUES (9999, '[1,2]')")
    assert "store.embedding_column: holds vectors of 2 dimensions" in refusal(
        lambda: list(gallery.store().read_old(600))
    )


BAD = np.ones((3, NEW_DIM), np.float32)


@pytest.mark.parametrize(
    ("row", "keys", "message"),
    [
        ({1: 70000.0}, {}, "store.type: halfvec holds numbers up to 65,504; item {id} has more: take vector"),
        ({1: np.nan}, {}, "the new embedding of item {id} holds NaN or infinity"),
        ({1: -np.inf}, {"type": "vector"}, "the new embedding of item {id} holds NaN or infinity"),
    ],
)
def test_vectors_that_the_column_cannot_hold(
    gallery: Gallery, row: dict[int, float], keys: dict[str, Any], message: str
) -> None:
    vectors = BAD.copy()
    for number, value in row.items():
        vectors[number, 2] = value
    store = gallery.store(**keys)
    found = refusal(lambda: store.push(record_batches(gallery.ids[:3], vectors), RECORD))
    assert message.format(id=gallery.ids[1]) in found
    assert not gallery.database.vectors("embedding_new")


def test_ids_that_do_not_fit(database: Database) -> None:
    database.make_table([1, 2, 3], BAD, "integer")
    store = Pgvector.open(PgvectorParams(table="items", dsn_env=DSN))
    batch = next(record_batches([1, 1, 2], BAD))
    assert "one id twice" in refusal(lambda: store.push(iter([batch]), RECORD))
    null = batch.set_column(0, "id", pa.array([1, None, 2]))
    assert "lack an id" in refusal(lambda: store.push(iter([null]), RECORD))
    wide = batch.set_column(0, "id", pa.array([1, 2, 2**32 + 3]))  # 3, if cut to 4 bytes
    assert "is int4, which cannot hold all ids" in refusal(lambda: store.push(iter([wide]), RECORD))
    assert not database.vectors("embedding_new")


def test_columns_that_are_not_ours(gallery: Gallery) -> None:
    store, database = gallery.store(), gallery.database
    database.run("ALTER TABLE items ADD embedding_new halfvec(5)")
    database.run("UPDATE items SET embedding_new = '[1,2,3,4,5]' WHERE id = %s", int(gallery.ids[0]))
    before = database.vectors("embedding_new")
    assert "holds vectors that no push has written" in refusal(lambda: store.push(gallery.rows(), RECORD))
    assert same(database.vectors("embedding_new"), before)
    database.run("UPDATE items SET embedding_new = NULL")
    assert store.push(gallery.rows(), RECORD) == 500
    wider = record_batches(gallery.ids, np.ones((500, 6), np.float16))
    message = refusal(lambda: store.push(wider, RECORD))
    assert "embedding_new is halfvec(5), what is pushed halfvec(6); name another, or drop it" in message
    assert store.pushed() == RECORD
    database.run("ALTER TABLE items ADD embedding_old int")
    assert "the table has a column embedding_old" in refusal(store.cutover)
    other = gallery.store(new_column="other")
    assert other.pushed() is None
    database.run("ALTER TABLE items DROP embedding_old")
    store.cutover()
    assert "switched from embedding_new, not from other" in refusal(lambda: gallery.store(new_column="other"))


def test_a_cutover_that_would_lose_rows(gallery: Gallery) -> None:
    store, database = gallery.store(), gallery.database
    assert "nothing was pushed" in refusal(store.cutover)
    store.undo_cutover()
    store.push(gallery.rows(slice(0, 498)), RECORD)
    database.run("INSERT INTO items VALUES (99999, NULL)")  # stays without a vector, as it was
    message = refusal(store.cutover)
    assert "2 rows lack a new vector, as " in message
    assert all(str(key) in message for key in gallery.ids[498:])
    store.push(gallery.rows(), RECORD)
    database.run("DELETE FROM items WHERE id = 99999; ALTER TABLE items ALTER embedding SET NOT NULL")
    message = refusal(store.cutover)
    assert 'NOT NULL: ALTER TABLE "public"."items" ALTER COLUMN "embedding" DROP NOT NULL' in message
    database.run(message.partition("NOT NULL: ")[2])
    store.cutover()


def test_going_back_says_what_it_costs(gallery: Gallery, capsys: pytest.CaptureFixture[str]) -> None:
    store = gallery.store()
    store.push(gallery.rows(), RECORD)
    store.cutover()
    gallery.database.run("INSERT INTO items (id, embedding) VALUES (99999, '[1,2,3,4,5]')")
    store.undo_cutover()
    assert "1 rows have no old vector" in capsys.readouterr().err


def test_a_lock_is_not_waited_for_at_length(gallery: Gallery) -> None:
    store = gallery.store(lock_timeout=0.1)
    with psycopg.connect(gallery.database.dsn) as other:
        other.execute("SELECT FROM items LIMIT 1")
        message = refusal(lambda: store.push(gallery.rows(), RECORD))
        assert "another transaction held its lock for store.lock_timeout, 0.1 s" in message
    store.push(gallery.rows(), RECORD)
    with psycopg.connect(gallery.database.dsn) as other:
        other.execute("SELECT FROM items LIMIT 1")
        assert "lock_timeout" in refusal(store.cutover)
        assert not gallery.database.run("SELECT 1 FROM refill_upgrade WHERE cut_over")
    store.cutover()


def test_rights_that_are_missing(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    database, role = gallery.database, f"role_{gallery.database.name}"
    database.run(f"CREATE ROLE {role} LOGIN")
    monkeypatch.setenv(DSN, database.dsn.replace("postgres:@", f"{role}:@"))
    try:
        store = gallery.store()
        message = refusal(store.info)
        assert "permission denied for table items" in message
        database.run(f"GRANT SELECT, UPDATE ON items TO {role}; GRANT CREATE ON SCHEMA public TO {role}")
        assert store.info().rows == 500
        message = refusal(lambda: store.push(gallery.rows(), RECORD))
        assert "must be owner of table items" in message
        assert "embedding_new halfvec(DIMENSION), embedding_new_batch int" in message
        database.run("ALTER TABLE items ADD embedding_new halfvec(5), ADD embedding_new_batch int")
        assert store.push(gallery.rows(), RECORD) == 500
        assert "must be owner of table items" in refusal(store.cutover)
        database.run("ALTER TABLE items ENABLE ROW LEVEL SECURITY")  # without a policy, this role sees no row
        assert "row-level security" in refusal(store.info)
    finally:
        database.run(f"DROP OWNED BY {role}; DROP ROLE {role}")


FAULT = """
CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF (SELECT count(embedding_new) FROM items) >= 200 THEN RAISE EXCEPTION 'no space' USING ERRCODE = '{code}';
END IF; RETURN NULL; END $$;
CREATE TRIGGER fault BEFORE UPDATE ON items FOR EACH STATEMENT EXECUTE FUNCTION fault();
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("53100", "the server has no space left (no space)"),
        ("57014", "what is committed stays"),
        ("40P01", "no space; what"),
    ],
)
def test_a_server_that_fails_in_the_middle(gallery: Gallery, code: str, message: str) -> None:
    store, database = gallery.store(transaction_rows=50), gallery.database
    database.run(FAULT.format(code=code))
    assert message in refusal(lambda: store.push(gallery.rows(), RECORD))
    assert len(database.vectors("embedding_new")) == 200
    database.run("DROP TRIGGER fault ON items")
    assert store.push(gallery.rows(), RECORD) == 500
    assert same(database.vectors("embedding_new"), gallery.expected())


@pytest.mark.parametrize("moment", ["copy", "update"])
def test_a_connection_that_drops(gallery: Gallery, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a COPY, and while the server is at work."""
    store, database = gallery.store(), gallery.database
    stop = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'refill' AND datname = %s"
    if moment == "copy":
        records = pgvector.records_of

        def dropping(*arguments: Any) -> Iterator[tuple[Any, ...]]:
            for number, record in enumerate(records(*arguments)):
                if number == 30:
                    database.run(stop, database.name)
                yield record

        monkeypatch.setattr(pgvector, "records_of", dropping)
    else:
        blocker = psycopg.connect(database.dsn)
        store.push(gallery.rows(slice(0, 1)), RECORD)
        blocker.execute("UPDATE items SET id = id")  # every row is locked
        threading.Timer(0.3, database.run, (stop, database.name)).start()
    assert "no connection to Postgres, or no longer" in refusal(lambda: store.push(gallery.rows(), RECORD))
    monkeypatch.undo()
    monkeypatch.setenv(DSN, database.dsn)
    if moment == "update":
        blocker.close()
    assert store.push(gallery.rows(), RECORD) == 500
    assert same(database.vectors("embedding_new"), gallery.expected())


def test_a_reader_may_stop_early(gallery: Gallery) -> None:
    rows: Iterator[pa.RecordBatch] = gallery.store().read_old(10)
    assert len(next(rows)) == 10
    rows.close()  # type: ignore[attr-defined]
    assert gallery.store().info().rows == 500


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "store.table: is missing"),
        ({"table": "t", "index": "hnsw"}, "store.operator_class: an index on halfvec needs one of halfvec_l2_ops"),
        (
            {"table": "t", "index": "hnsw", "operator_class": "vector_l2_ops"},
            "store.operator_class: an index on halfvec",
        ),
        ({"table": "t", "new_column": "embedding"}, "store.new_column: is the column of the old vectors"),
        ({"table": "t", "dsn": "postgresql://"}, "unknown key `store.dsn`; did you mean `store.dsn_env`?"),
        ({"table": "t", "transaction_rows": 0}, "store.transaction_rows: should be at least 1"),
    ],
)
def test_keys_that_say_nothing_sensible(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(PgvectorParams, keys, "upgrade.yaml", "store.")
    assert message in str(caught.value)


def test_an_index_that_pgvector_refuses(gallery: Gallery) -> None:
    store = gallery.store(index="ivfflat", operator_class="halfvec_l2_ops", index_options={"lists": 0})
    assert "Postgres refused a statement" in refusal(lambda: store.push(gallery.rows(), RECORD))
    assert store.pushed() is None
    assert gallery.store().push(gallery.rows(), RECORD) == 500
