"""A gallery in Postgres with pgvector: new vectors beside the old ones, and a switch of the two columns' names."""

import uuid
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, islice

import pyarrow as pa
from psycopg import IsolationLevel, sql
from psycopg.types.json import Jsonb
from tqdm import tqdm

from upgrade.ends.config import PgvectorParams
from upgrade.ends.gallery_table import VECTORS, GalleryTable, build_index, find_table, indexes_of, note
from upgrade.ends.postgres import INTEGERS, Connection, connection, one, records_of, rows_of, transaction
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
            old = table.columns[table.names[0]]
            dim = sql.Literal(old.dim) if old.dim > 0 else table.sql("{pgvector}.vector_dims({old})")
            query = table.sql("SELECT count({old}), count(*), min({dim}), max({dim}) FROM {place}", dim=dim)
            rows, total, low, high = one(connected, query)
            place = f"postgresql://{at.host}:{at.port}/{at.dbname}/{params.schema}.{params.table}"
        if not rows:
            raise UserError(f"store.embedding_column: {table.names[0]} holds no vector")
        if low != high:
            raise UserError(f"store.embedding_column: {table.names[0]} holds vectors of {low} to {high} dimensions")
        return StoreInfo(f"{place}.{params.embedding_column}", rows, total - rows, low, _arrow_id(table))

    def read_old(self, rows: int) -> Iterator[pa.RecordBatch]:
        """By one COPY: a statement sees one snapshot, and the server sends as fast as it is read."""
        with connection(self.params) as connected:
            connected.isolation_level, connected.read_only = IsolationLevel.REPEATABLE_READ, True
            with transaction(connected, self.params):
                table = find_table(connected, self.params)
                # Text comes by its code points, as everywhere else here.
                kind, text = ("text", '::text COLLATE "C"') if _arrow_id(table) == pa.string() else ("int8", "")
                label = ", {label}::int8" * (self.params.label_column is not None)
                query = (
                    f"COPY (SELECT {{id}}::{kind}, {{old}}::{{pgvector}}.vector{label} FROM {{place}}"
                    f" WHERE {{old}} IS NOT NULL ORDER BY {{id}}{text}) TO STDOUT (FORMAT BINARY)"
                )
                with connected.cursor().copy(table.sql(query)) as copy:
                    copy.set_types([kind, "bytea", "int8"][: 3 if label else 2])
                    records = copy.rows()
                    while some := list(islice(records, rows)):
                        yield rows_of(some, _arrow_id(table))

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
        params, writer, size = self.params, uuid.uuid4().hex, self.params.transaction_rows
        held = gone = own = written = 0
        example = ""
        first = next(batches, None)
        progress = tqdm(desc="pushing", unit="row", unit_scale=True, leave=False, delay=1)
        with connection(params) as connected, progress:
            with transaction(connected, params):
                table = self._begin(connected, first, writer)
            standing = [name for name, method, valid in indexes_of(connected, table) if method == "hnsw" and valid]
            every = chain([] if first is None else [first], batches)
            for rows in (batch.slice(start, size) for batch in every for start in range(0, len(batch), size)):
                with transaction(connected, params):
                    _claim(connected, table, writer)
                    changed, missing, kept, name = _write(connected, table, rows)
                held, gone, own, example = (
                    held + len(rows) - missing - kept,
                    gone + missing,
                    own + kept,
                    example or name,
                )
                if standing and written < MANY <= written + changed:
                    note(f"the HNSW index {standing[0]} slows this; before many rows DROP it, and push builds it anew")
                written += changed
                progress.update(len(rows))
            progress.close()
            if params.index != "none":
                build_index(connected, table)
            with transaction(connected, params):
                _claim(connected, table, writer)
                query = "UPDATE {state} SET complete = true, record = {record} WHERE {mine}"
                connected.execute(table.sql(query, record=sql.Literal(Jsonb(asdict(record)))))
        if gone:
            note(f"{gone:,} items are no longer in the table and were left out, as {example}")
        if own:
            note(f"{own:,} items keep the new vector that the application wrote")
        return held

    def _begin(self, connected: Connection, first: pa.RecordBatch | None, writer: str) -> GalleryTable:
        """The table, with a column for such vectors, and `writer` the one that may push."""
        params = self.params
        table = find_table(connected, params, lock=True)
        dim = None if first is None else first["embedding"].type.list_size
        if dim is not None and not {table.names[1], params.batch} <= set(table.columns):
            kind = table.sql(f"{{pgvector}}.{params.type}({dim})")
            query = "ALTER TABLE {place} ADD COLUMN IF NOT EXISTS {new} {kind}, ADD COLUMN IF NOT EXISTS {batch} int"
            connected.execute(table.sql(query, kind=kind))
            table = find_table(connected, params)
        new = table.column(table.names[1], "new_column", VECTORS)
        table.column(params.batch, "new_column", ("int4",))
        if dim is not None and (new.type, new.dim) != (params.type, dim):
            is_, pushed = f"{new.type}({new.dim})", f"{params.type}({dim})"
            raise UserError(
                f"store.new_column: {table.names[1]} is {is_}, what is pushed {pushed}; name another, or drop it"
            )
        filled = table.sql("SELECT EXISTS (SELECT FROM {place} WHERE {new} IS NOT NULL)")
        if table.state is None and one(connected, filled)[0]:
            raise UserError(f"store.new_column: {table.names[1]} holds vectors that no push has written; name another")
        if not table.has_state:
            query = (
                "CREATE TABLE {state} (table_name text, embedding_column text, new_column text, cut_over boolean,"
                " complete boolean, writer text, record jsonb, PRIMARY KEY (table_name, embedding_column))"
            )
            connected.execute(table.sql(query))
        query = (
            "INSERT INTO {state} VALUES ({values}, false, false, {writer}) ON CONFLICT (table_name, embedding_column)"
            " DO UPDATE SET (new_column, complete, writer) = (excluded.new_column, false, excluded.writer)"
        )
        values = sql.SQL(", ").join(map(sql.Literal, (params.table, params.embedding_column, params.new)))
        connected.execute(table.sql(query, values=values, writer=sql.Literal(writer)))
        return table

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
                if find_table(connected, params, lock=True) != table:
                    raise UserError("store: another step has changed the table meanwhile; run the step again")
                _rename(connected, table, (params.embedding_column, params.kept), (params.new, params.embedding_column))
                connected.execute(table.sql("UPDATE {state} SET cut_over = true WHERE {mine}"))
            with transaction(connected, params):
                late, names = _lacking(connected, find_table(connected, params))
        if late:
            note(f"{late:,} rows came without a new vector while names were switched, as {names}; push again")
        if followers:
            note(f"these still follow the old vectors, now {params.kept}; make them anew: {', '.join(followers)}")

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
            note(f"{without:,} rows have no old vector; queries by the old model do not find them")


def _arrow_id(table: GalleryTable) -> pa.DataType:
    return pa.int64() if table.columns[table.params.id_column].type in INTEGERS else pa.string()


def _claim(connected: Connection, table: GalleryTable, writer: str) -> None:
    """Lock the record, if no other step has begun since this push did."""
    if one(connected, table.sql("SELECT writer FROM {state} WHERE {mine} FOR UPDATE")) != (writer,):
        raise UserError("store: another push or cutover has begun since; this one ends, and nothing is mixed")


def _write(connected: Connection, table: GalleryTable, rows: pa.RecordBatch) -> tuple[int, int, int, str]:
    """Rows into the table -> how many it changed, lacks and keeps as the application wrote them; one that it lacks."""
    params = table.params
    side = "CREATE TEMPORARY TABLE refill_rows ON COMMIT DROP AS SELECT {id} AS id, {new} AS vector, {batch} AS batch"
    connected.execute(table.sql(f"{side} FROM {{place}} WITH NO DATA"))
    id_type = table.columns[params.id_column].type
    with connected.cursor().copy("COPY pg_temp.refill_rows FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types([id_type, "bytea", "int4"])
        for record in records_of(rows, id_type, params.type):
            copy.write_row(record)
    update = "UPDATE {place} t SET {new} = s.vector, {batch} = s.batch FROM pg_temp.refill_rows s WHERE t.{id} = s.id"
    query = table.sql(f"{update} AND {DIFFERS} AND NOT ({OWN})", send=table.sql(f"{{pgvector}}.{params.type}_send"))
    changed = connected.execute(query).rowcount
    if changed == len(rows):
        return changed, 0, 0, ""
    # The application's vectors are told after the update as before it, which leaves them alone.
    counts = (
        f"count(*) FILTER (WHERE t.{{id}} IS NULL), count(*) FILTER (WHERE {OWN}),"
        " coalesce(min(s.id::text) FILTER (WHERE t.{id} IS NULL), '')"
    )
    query = table.sql(f"SELECT {counts} FROM pg_temp.refill_rows s LEFT JOIN {{place}} t ON t.{{id}} = s.id")
    return changed, *one(connected, query)


def _lacking(connected: Connection, table: GalleryTable) -> tuple[int, str]:
    """How many rows with an old vector have no new one, and the ids of some."""
    where = "FROM {place} WHERE {new} IS NULL AND {old} IS NOT NULL"
    (count,) = one(connected, table.sql(f"SELECT count(*) {where}"))
    some = connected.execute(table.sql(f"SELECT {{id}}::text {where} LIMIT 3")).fetchall() if count else []
    return count, ", ".join(name for (name,) in some)


def _check_ready(connected: Connection, table: GalleryTable) -> None:
    if table.state is None or not table.state.complete:
        raise UserError("store: nothing was pushed, or not to its end; push first")
    table.column(table.names[1], "new_column", VECTORS)
    lacking, names = _lacking(connected, table)
    if lacking:
        raise UserError(f"store: {lacking:,} rows lack a new vector, as {names}; transform and push them first")
    if table.params.kept in table.columns:
        raise UserError(f"store: the table has a column {table.params.kept}, which name the old vectors are to get")
    if table.columns[table.names[0]].not_null:
        query = table.sql("ALTER TABLE {place} ALTER COLUMN {old} DROP NOT NULL").as_string()
        raise UserError(f"store: new items will have no {table.names[0]}, which is NOT NULL: {query}")


def _rename(connected: Connection, table: GalleryTable, *names: tuple[str, str]) -> None:
    for before, after in names:
        query = "ALTER TABLE {place} RENAME COLUMN {before} TO {after}"
        connected.execute(table.sql(query, before=sql.Identifier(before), after=sql.Identifier(after)))


def _followers(connected: Connection, table: GalleryTable) -> list[str]:
    """What is bound to the column of the old vectors whatever its name: views, generated columns, triggers."""
    query = (
        "SELECT DISTINCT pg_describe_object(classid, objid, objsubid) FROM pg_depend WHERE refobjid = %s AND"
        " refobjsubid = %s AND refclassid = 'pg_class'::regclass"
        " AND NOT (classid = 'pg_class'::regclass AND objsubid = 0)"  # its indexes, which go with it
    )
    rows = connected.execute(query, [table.oid, table.columns[table.names[0]].number])
    return [name for (name,) in rows]
