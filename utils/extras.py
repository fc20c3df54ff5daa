"""Packages that only some inputs need, and that are asked for by name where they are missing."""

import importlib
from typing import Any

from utils.errors import UserError

PACKAGES = {
    "lance": "pylance",
    "faiss": "faiss-cpu",
    "psycopg": "psycopg[binary]",
    "qdrant_client": "qdrant-client",
    "sentence_transformers": "sentence-transformers",
}  # module -> package, where the names differ


def load_extra(module: str, *, where: str) -> Any:
    """The module, of a package that is no requirement.

    Args:
        module: as `pyarrow.parquet`.
        where: the config key, and perhaps the file, that needs it, for the error message.

    Raises:
        UserError: it is not installed.
    """
    name = module.partition(".")[0]
    package = PACKAGES.get(name, name)
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{where}: needs {package}, which is not here: pip install {package}") from None
