"""The index on the new vectors in Postgres, which is built when all of them are in."""

import sys
import time
from typing import Any

from psycopg import sql

from upgrade.ends.gallery_table import GalleryTable
from upgrade.ends.postgres import Connection, one
from utils.errors import UserError


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
