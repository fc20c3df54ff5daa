"""A gallery in Postgres with pgvector: new vectors beside the old ones, and a switch of the two columns' names."""

import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, islice
from typing import Any

import pyarrow as pa
from psycopg import IsolationLevel, sql
from psycopg.types.json import Jsonb

from upgrade.ends.config import PgvectorParams
from upgrade.ends.gallery_table import GalleryTable, ensure_state, find_table
from upgrade.ends.postgres import INTEGERS, Connection, connection, copy_of, one, rows_of, transaction
from upgrade.ends.store import Pushed, StoreInfo
from utils.errors import UserError

MANY = 10_000  # rows whose writing through a standing index is worth a word
# The application wrote this new vector: no transformed one takes its place.
OWN = "s.batch = 0 AND t.{new} IS NOT NULL AND t.{batch} IS NULL"
# As bytes, since the operators of pgvector need be in no search path.
DIFFERS = "({send}(t.{new}), t.{batch}) IS DISTINCT FROM ({send}(s.vector), s.batch)"


class Pgvector:
    """A table as `Store` describes it; each call has a connection of its own.

    Nothing outlives a transaction in a session, so that a transaction pooler may be between. Whatever writes locks its
    row of the record first; a push ends where another, or undo_cutover, has begun since.
    """

    def __init__(self, params: PgvectorParams) -> None:
        self.params = params

    @classmethod
    def open(cls, params: PgvectorParams) -> "Pgvector":
        """The store, if its table can be read.

        Raises:
            UserError: it cannot, or no column tells its rows apart.
        """
        with connection(params) as connected, transaction(connected, params):
            find_table(connected, params)
        return cls(params)

    def info(self) -> StoreInfo:
        """Counts and the dimension, by a look at every row.

        Raises:
            UserError: there is no vector, or there are some of several dimensions.
        """
        params = self.params
        with connection(params) as connected, transaction(connected, params):
            table, at = find_table(connected, params), connected.info
            declared = table.columns[table.old].dim
            dim = sql.Literal(declared) if declared > 0 else table.sql("{pgvector}.vector_dims({old})")
            query = table.sql("SELECT count({old}), count(*), min({dim}), max({dim}) FROM {place}", dim=dim)
            rows, total, low, high = one(connected, query)
            place = f"postgresql://{at.host}:{at.port}/{at.dbname}/{params.schema}.{params.table}"
        if not rows:
            raise UserError(f"store.embedding_column: {table.old} holds no vector")
        if low != high:
            raise UserError(
                f"store.embedding_column: {table.old} holds vectors of {low} to {high} dimensions, not of one model"
            )
        id_type = pa.int64() if table.id_type in INTEGERS else pa.string()
        return StoreInfo(f"{place}.{params.embedding_column}", rows, total - rows, low, id_type)

    def read_old(self, rows: int) -> Iterator[pa.RecordBatch]:
        """By one COPY: a statement sees one snapshot, and the server sends as fast as it is read."""
        with connection(self.params) as connected:
            connected.isolation_level, connected.read_only = IsolationLevel.REPEATABLE_READ, True
            with transaction(connected, self.params):
                table = find_table(connected, self.params)
                text = table.id_type not in INTEGERS
                columns = "{id}::text" if text else "{id}::int8"
                columns += ", {old}::{pgvector}.vector" + ", {label}::int8" * (self.params.label_column is not None)
                order = '{id}::text COLLATE "C"' if text else "{id}"  # text by code points, as elsewhere
                query = table.sql(
                    f"COPY (SELECT {columns} FROM {{place}} WHERE {{old}} IS NOT NULL ORDER BY {order})"
                    " TO STDOUT (FORMAT BINARY)",
                    label=sql.Identifier(self.params.label_column or ""),
                )
                with connected.cursor().copy(query) as copy:
                    records = copy.rows()
                    while raw := list(islice(records, rows)):
                        yield rows_of(raw, text=text)

    def pushed(self) -> Pushed | None:
        """The last push, as the record in the table's schema has it; None too where one was interrupted since."""
        with connection(self.params) as connected, transaction(connected, self.params):
            state = find_table(connected, self.params).state
        return state.record if state is not None and state.complete else None

    def push(self, batches: Iterator[pa.RecordBatch], record: Pushed) -> int:
        """By COPY into a temporary table and UPDATE; rows that hold what is sent already are not written again.

        Items that are no longer in the table are left out, and so are transformed vectors of those whose new vector
        the application wrote itself; both are counted.
        """
        params, writer = self.params, uuid.uuid4().hex
        held = gone = own = written = 0
        names: list[str] = []
        first = next(batches, None)
        with connection(params) as connected:
            with transaction(connected, params):
                dim = None if first is None else first["embedding"].type.list_size
                table = self._begin(connected, dim, writer)
            standing = [name for name, method, valid in _indexes(connected, table) if method == "hnsw" and valid]
            for batch in chain([] if first is None else [first], batches):
                for start in range(0, len(batch), params.transaction_rows):
                    rows = batch.slice(start, params.transaction_rows)
                    with transaction(connected, params):
                        _claim(connected, table, writer)
                        changed, missing, kept, name = _write(connected, table, rows)
                    held, gone, own = held + len(rows) - missing - kept, gone + missing, own + kept
                    names += [name] if name and not names else []
                    if standing and written < MANY <= written + changed:
                        _note(f"writing through the HNSW index {standing[0]} takes some 20 times as long; before many")
                        _note("rows, DROP INDEX CONCURRENTLY it: push builds it anew, by store.index")
                    written += changed
            if params.index != "none":
                self._build_index(connected, table)
            with transaction(connected, params):
                _claim(connected, table, writer)
                query = "UPDATE {state} SET complete = true, record = {record} WHERE {mine}"
                connected.execute(table.sql(query, record=sql.Literal(Jsonb(asdict(record)))))
        if gone:
            _note(f"{gone:,} items are no longer in the table and were left out, as {names[0]}")
        if own:
            _note(f"{own:,} items keep the new vector that the application wrote")
        return held

    def _begin(self, connected: Connection, dim: int | None, writer: str) -> GalleryTable:
        """The table, with a column for new vectors of `dim` numbers, and `writer` the one that may push."""
        params = self.params
        table = find_table(connected, params, lock=True)
        ensure_state(connected, table)
        if dim is not None and not {table.new, params.batch} <= set(table.columns):
            kind = table.sql(f"{{pgvector}}.{params.type}({dim})")
            query = "ALTER TABLE {place} ADD COLUMN IF NOT EXISTS {new} {kind}, ADD COLUMN IF NOT EXISTS {batch} int"
            connected.execute(table.sql(query, kind=kind))
            table = find_table(connected, params)
        column = table.column(table.new, "new_column", ("vector", "halfvec"))
        table.column(params.batch, "new_column", ("int4",))
        if dim is not None and (column.type, column.dim) != (params.type, dim):
            raise UserError(
                f"store.new_column: {table.new} is {column.type}({column.dim}), what is pushed {params.type}({dim}); "
                "name another, or drop it"
            )
        if (
            table.state is None
            and one(connected, table.sql("SELECT EXISTS (SELECT FROM {place} WHERE {new} IS NOT NULL)"))[0]
        ):
            raise UserError(f"store.new_column: {table.new} holds vectors that no push has written; name another")
        triggers = connected.execute(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = %s AND NOT tgisinternal AND tgenabled <> 'D'"
            " AND tgtype & 16 <> 0 AND tgattr::text = ''",
            [table.oid],
        ).fetchall()
        if triggers:
            _note(f"triggers of the table run for every row: {', '.join(name for (name,) in triggers)}")
        connected.execute(
            table.sql(
                "INSERT INTO {state} VALUES ({names}, {new_column}, false, false, {writer})"
                " ON CONFLICT (table_name, embedding_column) DO UPDATE SET new_column = excluded.new_column,"
                " complete = false, writer = excluded.writer",
                names=sql.SQL(", ").join([sql.Literal(params.table), sql.Literal(params.embedding_column)]),
                new_column=sql.Literal(params.new),
                writer=sql.Literal(writer),
            )
        )
        return table

    def _build_index(self, connected: Connection, table: GalleryTable) -> None:
        """The index, unless it stands; what an interrupted build has left goes first, and one at work is waited for."""
        params = self.params
        ours = f"{params.table}_{params.new}_{params.index}".encode()[:63].decode(errors="ignore")
        while one(
            connected, table.sql(f"SELECT EXISTS (SELECT FROM pg_stat_progress_create_index WHERE relid = {table.oid})")
        )[0]:
            time.sleep(1)
        for name, method, valid in _indexes(connected, table):
            if valid and method == params.index:
                return
            if not valid and name == ours:
                drop = sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(params.schema, ours))
                connected.execute(drop)
        if table.partitioned:
            raise UserError("store.index: Postgres builds none CONCURRENTLY on a partitioned table: make it by hand")
        options = [
            sql.SQL("{} = {}").format(sql.Identifier(k), sql.Literal(v)) for k, v in params.index_options.items()
        ]
        _note(f"building the index {ours}")
        query = table.sql(
            "CREATE INDEX CONCURRENTLY {index} ON {place} USING {method} ({new} {pgvector}.{operators}) {options}",
            index=sql.Identifier(ours),
            method=sql.Identifier(params.index),
            operators=sql.Identifier(params.operator_class or ""),
            options=sql.SQL("WITH ({})").format(sql.SQL(", ").join(options)) if options else sql.SQL(""),
        )
        connected.execute(query)

    def cutover(self) -> None:
        """Rename both columns in one transaction, over in milliseconds; a second time it does nothing.

        Raises:
            UserError: a push is missing or has not ended; rows lack a new vector; new items could not be inserted.
        """
        params = self.params
        with connection(params) as connected:
            with transaction(connected, params):
                table = find_table(connected, params)
                if table.state is not None and table.state.cut_over:
                    return
                _check_ready(connected, table)
                followers = _followers(connected, table)
            with transaction(connected, params):
                now = find_table(connected, params, lock=True)
                if now != table:
                    raise UserError("store: another step has changed the table meanwhile; run the step again")
                _rename(connected, table, (params.embedding_column, params.kept), (params.new, params.embedding_column))
                connected.execute(table.sql("UPDATE {state} SET cut_over = true WHERE {mine}"))
            with transaction(connected, params):
                late, names = _lacking(connected, find_table(connected, params))
        if late:
            _note(f"{late:,} rows came without a new vector while names were switched, as {names}; push again")
        if followers:
            _note(f"these still follow the old vectors, now {params.kept}; make them anew: {', '.join(followers)}")

    def undo_cutover(self) -> None:
        """The names as they were; where nothing was switched it does nothing."""
        params = self.params
        with connection(params) as connected:
            with transaction(connected, params):
                table = find_table(connected, params, lock=True)
                if table.state is None or not table.state.cut_over:
                    return
                _rename(connected, table, (params.embedding_column, params.new), (params.kept, params.embedding_column))
                connected.execute(table.sql("UPDATE {state} SET cut_over = false, writer = NULL WHERE {mine}"))
            with transaction(connected, params):
                table = find_table(connected, params)
                (without,) = one(connected, table.sql("SELECT count(*) - count({old}) FROM {place}"))
        if without:
            _note(f"{without:,} rows have no old vector; queries by the old model do not find them")


def _note(text: str) -> None:
    print(f"store: {text}", file=sys.stderr, flush=True)


def _claim(connected: Connection, table: GalleryTable, writer: str) -> None:
    """Lock the record, if no other step has begun since this push did."""
    if one(connected, table.sql("SELECT writer FROM {state} WHERE {mine} FOR UPDATE")) != (writer,):
        raise UserError("store: another push or cutover has begun since; this one ends, and nothing is mixed")


def _write(connected: Connection, table: GalleryTable, rows: pa.RecordBatch) -> tuple[int, int, int, str | None]:
    """Rows into the table -> how many it changed, lacks (the first), and keeps because they are the application's."""
    send = table.sql(f"{{pgvector}}.{table.params.type}_send")
    connected.execute(
        table.sql(
            "CREATE TEMPORARY TABLE refill_rows ON COMMIT DROP AS"
            " SELECT {id} AS id, {new} AS vector, {batch} AS batch FROM {place} WITH NO DATA"
        )
    )
    with connected.cursor().copy("COPY pg_temp.refill_rows FROM STDIN (FORMAT BINARY)") as copy:
        copy.write(copy_of(rows, table.id_type, table.params.type))
    update = "UPDATE {place} t SET {new} = s.vector, {batch} = s.batch FROM pg_temp.refill_rows s WHERE t.{id} = s.id"
    changed = connected.execute(table.sql(f"{update} AND {DIFFERS} AND NOT ({OWN})", send=send)).rowcount
    if changed == len(rows):
        return changed, 0, 0, None
    # Own vectors are told after the update as before it, which leaves them alone.
    query = (
        f"SELECT count(*) FILTER (WHERE t.{{id}} IS NULL), count(*) FILTER (WHERE {OWN}),"
        " min(s.id::text) FILTER (WHERE t.{id} IS NULL)"
        " FROM pg_temp.refill_rows s LEFT JOIN {place} t ON t.{id} = s.id"
    )
    missing, kept, name = one(connected, table.sql(query))
    return changed, missing, kept, name


def _indexes(connected: Connection, table: GalleryTable) -> list[tuple[Any, ...]]:
    """Name, method and validity of the indexes on the new column."""
    return connected.execute(
        "SELECT c.relname, amname, indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid"
        " JOIN pg_am a ON a.oid = relam WHERE indrelid = %s AND %s = ANY(indkey)",
        [table.oid, table.columns[table.new].number],
    ).fetchall()


def _lacking(connected: Connection, table: GalleryTable) -> tuple[int, str]:
    """How many rows with an old vector have no new one, and the ids of some."""
    where = "FROM {place} WHERE {new} IS NULL AND {old} IS NOT NULL"
    (count,) = one(connected, table.sql(f"SELECT count(*) {where}"))
    some = connected.execute(table.sql(f"SELECT {{id}}::text {where} LIMIT 3")).fetchall() if count else []
    return count, ", ".join(name for (name,) in some)


def _check_ready(connected: Connection, table: GalleryTable) -> None:
    if table.state is None or not table.state.complete:
        raise UserError("store: nothing was pushed, or not to its end; push first")
    table.column(table.new, "new_column", ("vector", "halfvec"))
    lacking, names = _lacking(connected, table)
    if lacking:
        raise UserError(f"store: {lacking:,} rows lack a new vector, as {names}; transform and push them first")
    if table.params.kept in table.columns:
        raise UserError(f"store: the table has a column {table.params.kept}, which name the old vectors are to get")
    if table.columns[table.old].not_null:
        query = table.sql("ALTER TABLE {place} ALTER COLUMN {old} DROP NOT NULL").as_string()
        raise UserError(f"store: new items will have no {table.old}, which is NOT NULL: {query}")


def _rename(connected: Connection, table: GalleryTable, *names: tuple[str, str]) -> None:
    for before, after in names:
        query = "ALTER TABLE {place} RENAME COLUMN {before} TO {after}"
        connected.execute(table.sql(query, before=sql.Identifier(before), after=sql.Identifier(after)))


def _followers(connected: Connection, table: GalleryTable) -> list[str]:
    """What is bound to the column of the old vectors whatever its name: views, generated columns, triggers."""
    rows = connected.execute(
        "SELECT DISTINCT pg_describe_object(classid, objid, objsubid) FROM pg_depend WHERE refobjid = %s"
        " AND refclassid = 'pg_class'::regclass AND refobjsubid = %s AND NOT (classid = 'pg_class'::regclass"
        " AND objsubid = 0)",
        [table.oid, table.columns[table.old].number],
    )
    return [name for (name,) in rows]
