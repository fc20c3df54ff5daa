"""Where galleries are kept: stores that old vectors are read from, and that an upgrade is pushed to."""

import importlib
from typing import Any

from upgrade.ends.store import Pushed, Store, StoreInfo
from utils.config import build, unknown_choice
from utils.errors import UserError
from utils.extras import load_extra

__all__ = ["KINDS", "Pushed", "Store", "StoreInfo", "open_store"]

# kind -> the library that it needs, module, the class of the store, that of its keys; imported where it is asked for.
KINDS = {
    "lance": ("lance", "upgrade.ends.lance_column", "LanceColumn", "LanceColumnParams"),
    "pgvector": ("psycopg", "upgrade.ends.pgvector", "Pgvector", "PgvectorParams"),
    "qdrant": ("qdrant_client", "upgrade.ends.qdrant", "Qdrant", "QdrantParams"),
}


def open_store(section: dict[str, Any]) -> Store:
    """Open the store of a config's section `store`: its `kind`, and the keys of that kind.

    Raises:
        UserError: an unknown kind or key, or the store cannot be reached.
    """
    keys = dict(section)
    kind = keys.pop("kind", None)
    if kind not in KINDS:
        raise UserError(unknown_choice("store.kind", kind, KINDS))
    library, path, store, params = KINDS[kind]
    load_extra(library, where=f"store.kind: {kind}")
    module = importlib.import_module(path)
    opened: Store = getattr(module, store).open(build(getattr(module, params), keys, "store", prefix=""))
    return opened
