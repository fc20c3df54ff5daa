"""Ids of a gallery and how to find them; and sorting of more keys than should be in memory at once."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from upgrade.gallery import remove
from upgrade.ids import text_keys
from upgrade.rows import Array, RowFile, parts_of
from upgrade.sources import Source
from utils.errors import UserError

SORTED_ROWS = 2**20  # sorted in memory at a time
SAMPLED_KEYS = 2**16


def write_ids(folder: Path, source: Source, count: int) -> None:
    """Write ids.npy and, if the source has them, labels.npy; and the look-up files of text and of unordered numbers.

    Raises:
        UserError: an id occurs twice, or is too large a number.
    """
    ids = RowFile.create(folder / "ids.npy", (count,), np.int64 if source.ids is None else source.ids.dtype)
    rising, last = not source.has_text_ids, np.iinfo(np.int64).min
    for start, stop in parts_of(count):
        part = np.arange(start, stop) if source.ids is None else source.ids.read(start, stop)
        rising = rising and (start == 0 or part[0] > last) and bool((np.diff(part) > 0).all())
        last = part[-1]
        ids.write(start, part)
    if source.labels is not None:
        labels = RowFile.create(folder / "labels.npy", (count,), np.int64)
        for start, stop in parts_of(count):
            labels.write(start, source.labels.read(start, stop))
    for name in ("lookup_ids.npy", "lookup_keys.npy", "lookup_rows.npy"):
        remove(folder / name)
    if not rising:
        _write_lookup(folder, ids, source)


def _write_lookup(folder: Path, ids: RowFile, source: Source) -> None:
    count = ids.shape[0]
    name, dtype = ("lookup_keys.npy", np.uint64) if source.has_text_ids else ("lookup_ids.npy", np.int64)
    ordered = RowFile.create(folder / name, (count,), dtype)
    places = RowFile.create(folder / "lookup_rows.npy", (count,), np.int64)
    lowest = np.int64(np.iinfo(np.int64).min)

    def keys(start: int, stop: int) -> tuple[Array, Array]:
        part = ids.read(start, stop)
        return text_keys(part) if source.has_text_ids else (part ^ lowest).view(np.uint64), np.arange(start, stop)

    done = 0
    for part, rows in sorted_rows(keys, count):
        same = part[1:] == part[:-1]
        alike = rows[np.append(same, False) | np.append(False, same)]  # of texts, ids that may differ
        found, counts = np.unique(read_scattered(ids, alike), return_counts=True)
        if (counts > 1).any():
            raise UserError(f"gallery: {source.path}: the id {found[counts > 1][0]} occurs more than once")
        ordered.write(done, part if source.has_text_ids else part.view(np.int64) ^ lowest)
        places.write(done, rows)
        done += len(part)


def read_scattered(values: RowFile, rows: Array) -> Array:
    """The values of rows (m,) from all over the file, read from its start to its end: a map would hold all of it."""
    order = rows.argsort()
    ordered = rows[order]
    found = np.empty(len(rows), values.dtype)
    for start, stop in parts_of(values.shape[0], SORTED_ROWS):
        low, high = np.searchsorted(ordered, (start, stop))
        if low < high:
            found[order[low:high]] = values.read(start, stop)[ordered[low:high] - start]
    return found


def sorted_rows(
    keys: Callable[[int, int], tuple[Array, Array]], count: int, limit: int = SORTED_ROWS
) -> Iterator[tuple[Array, Array]]:
    """Sort rows by their keys in about as many passes as `limit` goes into `count`, holding about `limit` of them.

    Args:
        keys: (start, stop) -> keys (m,) uint64 and rows (m,) int64 of those of the rows in [start, stop) that count.
            Equal keys come out together, in the order of the passes.
        count: of rows, from 0 on.
        limit: keys to hold at a time.

    Yields:
        Successive parts of all keys in rising order, and their rows.
    """
    bounds: list[np.uint64] = []
    if count > limit:
        step = max(1, count // SAMPLED_KEYS)
        sample = np.sort(np.concatenate([keys(*part)[0][::step] for part in parts_of(count, SORTED_ROWS)]))
        places = np.arange(1, -(-count // limit)) * len(sample) // -(-count // limit)
        bounds = list(sample[places]) if len(sample) else []
    for low, high in pairwise([None, *bounds, None]):
        found_keys, found_rows = [], []
        for part in parts_of(count, SORTED_ROWS):
            part_keys, rows = keys(*part)
            chosen = np.ones(len(part_keys), bool) if low is None else part_keys >= low
            if high is not None:
                chosen &= part_keys < high
            found_keys.append(part_keys[chosen])
            found_rows.append(rows[chosen])
        all_keys, all_rows = np.concatenate(found_keys), np.concatenate(found_rows)
        order = all_keys.argsort(kind="stable")
        yield all_keys[order], all_rows[order]
