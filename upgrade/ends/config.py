"""The keys of the stores that a gallery may live in."""

import re
from dataclasses import dataclass
from typing import Literal

from utils.config import key


@dataclass
class PgvectorParams:
    """A table of Postgres with pgvector."""

    table: str = key(doc="the gallery's table")
    dsn_env: str = key(
        "DATABASE_URL", doc="environment variable with the DSN, as postgresql://USER:PASSWORD@HOST/DATABASE"
    )
    schema: str = key("public", doc="the table's schema")
    id_column: str = key("id", doc="column that tells the rows: whole numbers, text or uuid, with a unique index")
    embedding_column: str = key("embedding", doc="column of the old vectors, vector or halfvec, which stays as it is")
    new_column: str | None = key(
        None, doc="column that push fills, made by it where it is missing; null: EMBEDDING_COLUMN_new"
    )
    type: Literal["halfvec", "vector"] = key("halfvec", doc="of the new column; halfvec is float16")
    label_column: str | None = key(None, doc="column of class labels, whole numbers")
    index: Literal["none", "hnsw", "ivfflat"] = key(
        "none", doc="index on the new column, which push builds when all rows are in, while the table is in use"
    )
    operator_class: str | None = key(None, doc="of the index, as halfvec_l2_ops or vector_cosine_ops")
    index_options: dict[str, int] = key({}, doc="of the index, as {m: 16, ef_construction: 64} or {lists: 1000}")
    transaction_rows: int = key(10_000, doc="rows that a transaction of push writes at most", minimum=1)
    lock_timeout: float = key(
        5.0, doc="seconds to wait for other transactions' locks; others' queries may queue behind", minimum=0.001
    )

    def __post_init__(self) -> None:
        if self.index != "none" and not re.match(f"{self.type}_\\w+_ops$", self.operator_class or ""):
            raise ValueError(f"operator_class: an index on {self.type} needs one of {self.type}_l2_ops and its like")
        if self.new_column == self.embedding_column:
            raise ValueError("new_column: is the column of the old vectors; name another")

    @property
    def new(self) -> str:
        """The new column before the switch."""
        return self.new_column or f"{self.embedding_column}_new"

    @property
    def kept(self) -> str:
        """The old column after the switch."""
        return f"{self.embedding_column}_old"

    @property
    def batch(self) -> str:
        """The column that says which batch re-embedded a row."""
        return f"{self.new}_batch"


@dataclass
class QdrantParams:
    """A collection of Qdrant."""

    collection: str = key(doc="the gallery's collection, which must be no alias")
    url: str | None = key(None, doc="of the server, as http://HOST:6333; this or `path`")
    path: str | None = key(None, doc="folder of the client's local mode", path="any")
    api_key_env: str | None = key(None, doc="environment variable with the server's API key")
    vector: str | None = key(None, doc="name of the old vectors; null: the unnamed ones")
    new_vector: str = key("embedding_new", doc="name of the new vectors, which push makes")
    distance: Literal["l2", "cosine", "dot"] | None = key(
        None, doc="by which new vectors are searched; null: as the old ones"
    )
    label_key: str | None = key(None, doc="key of the payload with class labels, whole numbers")
    beside: Literal["auto", "vector", "collection"] = key(
        "auto",
        doc="new vectors as second ones of the same points (a server of 1.18 or later), or in a second collection "
        "with the payload copied; auto: the first, where the server can",
    )
    alias: str | None = key(None, doc="alias by which queries reach the collection; cutover switches it")
    request_points: int = key(500, doc="points that a request writes at most", minimum=1)

    def __post_init__(self) -> None:
        if (self.url is None) == (self.path is None):
            raise ValueError("url, path: name one of them")
