"""The order of the re-embedding: a file of ids that are not re-embedded yet, the most valuable first."""

from pathlib import Path

import numpy as np

from upgrade.gallery import RE_EMBEDDED, TRANSFORMED, Gallery
from upgrade.ids import scrambled
from upgrade.lookup import read_scattered, sorted_rows
from upgrade.rows import Array, RowFile, parts_of


def write_order(path: Path, gallery: Gallery, states: RowFile, *, seed: int, sigma: RowFile | None = None) -> None:
    """Write the ids of all rows that are only transformed, by falling sigma; ties go by row.

    Without sigma the order is random, a function of the seed.

    Args:
        path: `.npy` file to write.
        gallery: its ids are read.
        states: (n,) the state of each row.
        seed: of the random order.
        sigma: (n,); the gallery's, if it has any, where none is given.
    """
    count = gallery.manifest.rows
    ids = gallery.rows("ids")
    if sigma is None and gallery.manifest.has_sigma:
        sigma = gallery.rows("sigma")

    def keys(start: int, stop: int) -> tuple[Array, Array]:
        rows = np.arange(start, stop)
        first = random_bits(rows, seed) if sigma is None else _falling(sigma.read(start, stop))
        chosen = states.read(start, stop) == TRANSFORMED
        return (first << np.uint64(32) | rows.astype(np.uint64))[chosen], rows[chosen]

    order = RowFile.create(path, (count - count_of(states, RE_EMBEDDED),), ids.dtype)
    done = 0
    for _, rows in sorted_rows(keys, count):
        if len(rows):
            order.write(done, read_scattered(ids, rows))
        done += len(rows)


def write_shorter_order(path: Path, order: RowFile, gone: Array) -> None:
    """Write an order less some of its ids, (m,) rising; what is left keeps its order."""
    kept = sum(len(_without(order.read(*part), gone)) for part in parts_of(order.shape[0]))
    shorter = RowFile.create(path, (kept,), order.dtype)
    done = 0
    for part in parts_of(order.shape[0]):
        ids = _without(order.read(*part), gone)
        if len(ids):
            shorter.write(done, ids)
        done += len(ids)


def _without(ids: Array, gone: Array) -> Array:
    place = np.minimum(np.searchsorted(gone, ids), len(gone) - 1)
    return ids[gone[place] != ids]


def count_of(states: RowFile, state: int) -> int:
    """How many rows are in a state."""
    return sum(int((states.read(*part) == state).sum()) for part in parts_of(states.shape[0], 2**24))


def _falling(values: Array) -> Array:
    """(m,) float32 -> (m,) uint64 below 2^32 that rise as the values fall."""
    bits = (values + np.float32(0)).view(np.uint32)  # -0 becomes 0
    rising = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (~rising).astype(np.uint64)


def random_bits(rows: Array, seed: int) -> Array:
    """(m,) -> (m,) uint64 below 2^32, a function of the row and the seed."""
    with np.errstate(over="ignore"):
        first = rows.astype(np.uint64) + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
    return scrambled(first) >> np.uint64(32)
