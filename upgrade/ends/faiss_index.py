"""FAISS indexes as a source of embeddings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upgrade.ends.rows import Array, HeldRows, Rows
from utils.errors import UserError
from utils.extras import load_extra

SUFFIXES = (".faiss", ".index")


@dataclass(frozen=True)
class IndexVectors:
    """The vectors of an index, (n, d) float32, reconstructed by the keys (n,) under which it has them."""

    index: Any
    keys: Array
    owner: Any  # of the index's memory

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.keys), self.index.d)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def read(self, start: int, stop: int) -> Array:
        """The rows [start, stop), as an array of their own."""
        return self.index.reconstruct_batch(self.keys[start:stop])

    def take(self, index: Array) -> Array:
        """The rows `index` (m,) -> (m, d)."""
        return self.index.reconstruct_batch(self.keys[index])


def open_index(path: Path, where: str) -> tuple[Rows, Rows]:
    """The vectors of an index and their ids. A compressed index gives what it has kept of them.

    Raises:
        UserError: FAISS is not installed, the file is no index, or its vectors cannot be reconstructed.
    """
    faiss = load_extra("faiss", where=where)
    try:
        index = faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", 0))  # faiss-cpu 1.9 has no such flag
    except RuntimeError as error:
        raise UserError(f"{where}: {path} cannot be read as a FAISS index; it may be cut short") from error
    outer_ids = None
    inner = index
    if isinstance(index, faiss.IndexIDMap):
        outer_ids = faiss.vector_to_array(index.id_map)
        inner = faiss.downcast_index(index.index)
    keys = np.arange(inner.ntotal)
    refusal = UserError(f"{where}: {path}: an index of type {type(inner).__name__} cannot give its vectors back")
    if isinstance(inner, faiss.IndexIVFFastScan):  # it would crash
        raise refusal
    if isinstance(inner, faiss.IndexIVF):
        lists = inner.invlists
        held = [faiss.rev_swig_ptr(lists.get_ids(i), lists.list_size(i)) for i in range(lists.nlist)]
        keys = np.sort(np.concatenate(held))
        inner.set_direct_map_type(faiss.DirectMap.Hashtable)
    try:
        inner.reconstruct_batch(keys[:1])
    except RuntimeError:
        raise refusal from None
    return IndexVectors(inner, keys, index), HeldRows(keys if outer_ids is None else outer_ids[keys])
