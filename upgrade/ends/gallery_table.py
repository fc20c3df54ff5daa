"""A gallery's table in Postgres: what the catalogue says of it, the record of what was pushed, and the new index."""

import sys
import time
from dataclasses import dataclass
from typing import Any

from psycopg import errors, sql

from upgrade.ends.config import PgvectorParams
from upgrade.ends.postgres import INTEGERS, Connection, one
from upgrade.ends.store import Pushed
from utils.errors import UserError

STATE = "refill_upgrade"  # a table of ours, with a row for each gallery in its schema
VECTORS = ("vector", "halfvec")


@dataclass(frozen=True)
class State:
    """The gallery's row of STATE."""

    new_column: str
    cut_over: bool
    complete: bool  # the push that began last has ended
    writer: str | None  # that push; any other ends at its next transaction
    record: Pushed | None  # of the last one that has ended


@dataclass(frozen=True)
class Column:
    """A column, by the catalogue."""

    number: int
    type: str
    dim: int  # of a vector; -1 where it is not declared
    not_null: bool


@dataclass(frozen=True)
class GalleryTable:
    """The table, with the names that its columns have now."""

    params: PgvectorParams
    oid: int
    partitioned: bool
    has_state: bool  # STATE is there
    state: State | None
    columns: dict[str, Column]
    pgvector: str  # schema of the extension, which need be in no search path

    @property
    def names(self) -> tuple[str, str]:
        """The columns of the old and of the new vectors; the second may be missing."""
        params, switched = self.params, self.state is not None and self.state.cut_over
        return (params.kept, params.embedding_column) if switched else (params.embedding_column, params.new)

    def sql(self, query: str, **more: sql.Composable) -> sql.Composed:
        """A statement with its names quoted."""
        params, (old, new) = self.params, self.names
        names = {
            "id": params.id_column,
            "label": params.label_column or "",
            "old": old,
            "new": new,
            "batch": params.batch,
        }
        return sql.SQL(query).format(
            place=sql.Identifier(params.schema, params.table),
            pgvector=sql.Identifier(self.pgvector),
            state=sql.Identifier(params.schema, STATE),
            mine=_mine(params),
            **{field: sql.Identifier(name) for field, name in names.items()},
            **more,
        )

    def column(self, name: str, key: str, types: tuple[str, ...]) -> Column:
        """A column that must be there, of one of these types."""
        if name not in self.columns:
            raise UserError(f"store.{key}: the table has no column {name} (it has {', '.join(self.columns)})")
        if self.columns[name].type not in types:
            raise UserError(f"store.{key}: {name} is {self.columns[name].type}; it should be {' or '.join(types)}")
        return self.columns[name]


def _mine(params: PgvectorParams) -> sql.Composed:
    condition = sql.SQL("(table_name, embedding_column) = ({}, {})")
    return condition.format(sql.Literal(params.table), sql.Literal(params.embedding_column))


def find_table(connected: Connection, params: PgvectorParams, *, lock: bool = False) -> GalleryTable:
    """The gallery's table; with `lock`, no other step changes the record until the transaction ends.

    Raises:
        UserError: no pgvector, or one too old; no such table or column; ids that do not tell rows apart.
    """
    database = connected.info.dbname
    extension = connected.execute(
        "SELECT extversion, nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace"
        " WHERE extname = 'vector'"
    ).fetchone()
    if extension is None:
        raise UserError(f"store: the database {database} has no pgvector: run CREATE EXTENSION vector there")
    if params.type == "halfvec" and [int(x) for x in extension[0].split(".")[:2]] < [0, 7]:
        raise UserError(f"store.type: pgvector {extension[0]} has no halfvec, which came with 0.7: take vector")
    relations = connected.execute(
        "SELECT relname, c.oid, relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
        " WHERE nspname = %s AND relname IN (%s, %s)",
        [params.schema, params.table, STATE],
    )
    found = {name: facts for name, *facts in relations}
    if params.table not in found:
        raise UserError(f"store.table: the database {database} has no table {params.table} in schema {params.schema}")
    oid, kind = found[params.table]
    if kind not in ("r", "p"):
        raise UserError(f"store.table: {params.schema}.{params.table} is a view or the like: name the table itself")
    state = _state(connected, params, lock=lock) if STATE in found else None
    rows = connected.execute(  # after the lock: a switch may have been going on
        "SELECT attname, attnum, typname, atttypmod, attnotnull FROM pg_attribute JOIN pg_type t ON t.oid = atttypid"
        " WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [oid],
    )
    columns = {name: Column(*facts) for name, *facts in rows}
    table = GalleryTable(params, oid, kind == "p", STATE in found, state, columns, extension[1])
    table.column(table.names[0], "embedding_column", VECTORS)
    if params.label_column is not None:
        table.column(params.label_column, "label_column", tuple(INTEGERS))
    _check_ids(connected, table)
    return table


def _check_ids(connected: Connection, table: GalleryTable) -> None:
    name = table.params.id_column
    column = table.column(name, "id_column", (*INTEGERS, "text", "varchar", "uuid"))
    query = (
        "SELECT bool_or(indnkeyatts = 1 AND indkey[0] = %(id)s), bool_or(indisprimary AND %(id)s = ANY(indkey))"
        " FROM pg_index WHERE indrelid = %(table)s AND indisunique AND indisvalid AND indpred IS NULL"
    )
    alone, part = connected.execute(query, {"id": column.number, "table": table.oid}).fetchone() or (False, False)
    if part and not alone:
        raise UserError(f"store.id_column: {name} is part of a compound key; one column should tell the rows apart")
    if not alone:
        twins = table.sql("SELECT {id}::text, count(*) FROM {place} GROUP BY {id} HAVING count(*) > 1 LIMIT 1")
        if twice := connected.execute(twins).fetchone():
            raise UserError(f"store.id_column: {name} is {twice[0]} in {twice[1]:,} rows; each needs an id of its own")
        index = table.sql("CREATE UNIQUE INDEX CONCURRENTLY ON {place} ({id})").as_string()
        raise UserError(f"store.id_column: {name} has no unique index, by which rows are found: {index}")
    if not column.not_null:
        (nulls,) = one(connected, table.sql("SELECT count(*) FROM {place} WHERE {id} IS NULL"))
        if nulls:
            raise UserError(f"store.id_column: {name} is NULL in {nulls:,} rows; each needs an id of its own")


def _state(connected: Connection, params: PgvectorParams, *, lock: bool) -> State | None:
    """The gallery's row of STATE; None where there is none, or one of another new column."""
    query = sql.SQL("SELECT new_column, cut_over, complete, writer, record FROM {} WHERE {}" + " FOR UPDATE" * lock)
    try:
        row = connected.execute(query.format(sql.Identifier(params.schema, STATE), _mine(params))).fetchone()
    except errors.UndefinedColumn:
        raise UserError(
            f"store: {params.schema}.{STATE} is not of this tool, which needs the name: rename it"
        ) from None
    if row is None:
        return None
    new_column, cut_over, complete, writer, record = row
    if new_column != params.new and cut_over:
        raise UserError(f"store.new_column: the gallery was switched from {new_column}, not from {params.new}")
    pushed = None if record is None else Pushed(**{**record, "cut_over": cut_over})
    return State(new_column, cut_over, complete, writer, pushed) if new_column == params.new else None


def note(text: str) -> None:
    """Tell the user something that stops nothing."""
    print(f"store: {text}", file=sys.stderr, flush=True)


def indexes_of(connected: Connection, table: GalleryTable) -> list[tuple[Any, ...]]:
    """Name, method and validity of the indexes on the new column."""
    query = (
        "SELECT c.relname, amname, indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid"
        " JOIN pg_am a ON a.oid = relam WHERE indrelid = %s AND %s = ANY(indkey)"
    )
    return connected.execute(query, [table.oid, table.columns[table.names[1]].number]).fetchall()


def build_index(connected: Connection, table: GalleryTable) -> None:
    """The index, unless it stands; what an interrupted build has left goes first, and one at work is waited for."""
    params = table.params
    ours = f"{params.table}_{params.new}_{params.index}".encode()[:63].decode(errors="ignore")
    working = table.sql(f"SELECT EXISTS (SELECT FROM pg_stat_progress_create_index WHERE relid = {table.oid})")
    while one(connected, working)[0]:
        time.sleep(1)
    for name, method, valid in indexes_of(connected, table):
        if valid and method == params.index:
            return
        if not valid and name == ours:
            drop = sql.SQL("DROP INDEX CONCURRENTLY {}")
            connected.execute(drop.format(sql.Identifier(params.schema, ours)))
    if table.partitioned:
        raise UserError("store.index: Postgres builds none CONCURRENTLY on a partitioned table: make it by hand")
    options = [sql.SQL("{} = {}").format(sql.Identifier(k), sql.Literal(v)) for k, v in params.index_options.items()]
    note(f"building the index {ours}")
    query = "CREATE INDEX CONCURRENTLY {index} ON {place} USING {method} ({new} {pgvector}.{operators}) {options}"
    parts = {"index": ours, "method": params.index, "operators": params.operator_class or ""}
    quoted = {field: sql.Identifier(name) for field, name in parts.items()}
    given = sql.SQL("WITH ({})").format(sql.SQL(", ").join(options)) if options else sql.SQL("")
    connected.execute(table.sql(query, **quoted, options=given))
