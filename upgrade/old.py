"""The old vectors of a gallery, in files or in a store: read a chunk after the other, checked."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data.items import Array
from data.sources.embeddings import Source
from data.sources.rows import Rows, check_finite, parts_of
from upgrade.columns import digest_of, id_keys, values
from upgrade.ends import Store
from upgrade.spaces import check_lengths, have_unit_length
from utils.errors import UserError

BEHIND = np.uint64(1)  # the last bit of the hash of a row that is behind, in galleries with such rows
SAMPLE_ROWS = 1024  # that tell whether all have length 1
KEYS_AT_ONCE = 2**25  # of ids that are compared with each other


class Behind(NamedTuple):
    """Rows of a chunk that are not of the old model, which has not re-embedded them: see `mixed.py`."""

    rows: Array  # (k,) of the chunk
    vectors: Array | None = None  # (k, d) of the model before, which have a transformation of their own, if so
    side_info: Array | None = None  # (k, d_side) for that
    sigma: Array | None = None  # (k,) of what the chunk has of them, and what their calibration is
    calibration: Array | None = None  # (k,)


class Chunk(NamedTuple):
    """Successive rows of a gallery."""

    first: int  # the number of the first of them, in messages
    ids: Array  # (m,) int64 or text
    vectors: Array  # (m, d_old)
    labels: Array | None  # (m,) int64
    side_info: Array | None  # (m, d_side)
    hashes: Array  # (m,) uint64: what tells whether an old vector has changed
    behind: Behind | None = None


def source_hashes(vectors: Array) -> Array:
    """The first 8 bytes of the SHA-256 of each vector (m, d) as float32 -> (m,) uint64."""
    rows = np.ascontiguousarray(vectors, np.float32)
    digests = b"".join([hashlib.sha256(row).digest()[:8] for row in rows])
    return np.frombuffer(digests, "<u8")


@dataclass(frozen=True)
class Old:
    """A gallery of old vectors."""

    name: str  # in messages
    identity: str
    rows: int
    without: int  # items that have no old vector
    dim: int
    id_type: pa.DataType
    has_labels: bool
    unit: bool  # whether all vectors that are not zero have length 1
    side_dim: int | None
    read: Callable[[int, int, int | None, Any], Iterator[Chunk]]
    digest: Callable[[], int] | None = None  # see `digest_of`; None where it would take another reading of everything
    earlier: "Old | None" = None  # of a gallery in a table of an upgrade: what this was made from, if it is named

    def chunks(self, rows: int, start: int = 0, stop: int | None = None, after: Any = None) -> Iterator[Chunk]:
        """Chunks of so many rows, from row `start` on, before which comes the id `after`, up to row `stop` or the end.

        Raises:
            UserError: a row is not finite, or not of length 1 where all should be.
        """
        return self.read(rows, start, stop, after)


def old_files(source: Source, side_info: Source | None, section: str = "") -> Old:
    """A gallery in files, and side-information in the same order; `section` stands before keys in messages."""
    name = f"{section}gallery: {source.path}"
    unit = have_unit_length(_sample(source.vectors))

    def ids(start: int, stop: int) -> Array:
        return np.arange(start, stop) if source.ids is None else source.ids.read(start, stop)

    def read(rows: int, first: int, end: int | None, after: Any) -> Iterator[Chunk]:
        for start, stop in parts_of((len(source) if end is None else end) - first, rows):
            start, stop = start + first, stop + first
            vectors = read_checked(source.vectors, name, start, stop, unit=unit)
            yield Chunk(
                start,
                ids(start, stop),
                vectors,
                None if source.labels is None else source.labels.read(start, stop),
                None if side_info is None else read_checked(side_info.vectors, f"{section}side_info", start, stop),
                source_hashes(vectors),
            )

    return Old(
        name=name,
        identity=str(source.path),
        rows=len(source),
        without=0,
        dim=source.dim,
        id_type=pa.string() if source.has_text_ids else pa.int64(),
        has_labels=source.labels is not None,
        unit=unit,
        side_dim=None if side_info is None else side_info.dim,
        read=read,
        digest=lambda: sum(digest_of(ids(*part)) for part in parts_of(len(source))) % 2**64,
    )


def old_store(store: Store) -> Old:
    """A gallery in a store. Its rows come by rising ids, so that the last one tells where a reading was broken off.

    Raises:
        UserError: it has no old vector.
    """
    info = store.info()
    name = f"store: {info.identity}"
    first = next(store.read_old(SAMPLE_ROWS), None)
    if first is None or not info.rows:
        raise UserError(f"{name}: has no row with an old vector")
    has_labels, unit = "label" in first.schema.names, have_unit_length(values(first["embedding"]))

    def read(rows: int, start: int, stop: int | None, after: Any) -> Iterator[Chunk]:
        number, last = 0, None
        for batch in store.read_old(rows):
            ids, vectors = values(batch["id"]), values(batch["embedding"]).astype(np.float32)
            if not ((ids[1:] > ids[:-1]).all() and (last is None or ids[0] > last)):
                raise UserError(f"{name}: its ids are not unique, or do not come in rising order")
            check_finite(vectors, name, number)
            if unit:
                check_lengths(vectors, name, number)
            left = slice(0 if after is None else int(np.searchsorted(ids, after, side="right")), None)
            if len(ids[left]):
                labels = values(batch["label"])[left] if has_labels else None
                yield Chunk(number, ids[left], vectors[left], labels, None, source_hashes(vectors[left]))
            number, last = number + len(ids), ids[-1]

    return Old(
        name, info.identity, info.rows, info.without, info.dim, info.id_type, has_labels, unit, side_dim=None, read=read
    )


def read_checked(rows: Rows, where: str, start: int, stop: int, *, unit: bool = False) -> Array:
    """The rows [start, stop).

    Raises:
        UserError: a row is not finite, or not of length 1 where `unit`.
    """
    found = rows.read(start, stop)
    check_finite(found, where, start)
    if unit:
        check_lengths(found, where, start)
    return found


def _sample(rows: Rows) -> Array:
    """Evenly spread rows."""
    count, blocks = rows.shape[0], 16
    size = SAMPLE_ROWS // blocks
    starts = sorted({max(0, i * (count - size) // (blocks - 1)) for i in range(blocks)})
    return np.concatenate([rows.read(start, min(start + size, count)) for start in starts])


def check_distinct(source: Source, where: str) -> None:
    """Check that no id occurs twice, in the memory of KEYS_AT_ONCE keys; each pass over the ids looks at some of them.

    Raises:
        UserError: naming an id that does.
    """
    if source.ids is None:
        return
    passes = np.uint64(-(-len(source) // KEYS_AT_ONCE))
    for number in range(int(passes)):
        found = []
        for part in parts_of(len(source)):
            ids = source.ids.read(*part)
            keys = id_keys(ids)
            found.append(keys[keys % passes == number])
        keys = np.sort(np.concatenate(found))
        again = np.unique(keys[1:][keys[1:] == keys[:-1]])
        if len(again):  # of texts, two that differ may have one key
            _check_alike(source, again, where)


def _check_alike(source: Source, keys: Array, where: str) -> None:
    """Raise a UserError if two ids of some of these keys are the same."""
    seen: set[Any] = set()
    assert source.ids is not None
    for part in parts_of(len(source)):
        ids = source.ids.read(*part)
        for item in ids[np.isin(id_keys(ids), keys)].tolist():
            if item in seen:
                raise UserError(f"{where}: {source.path}: the id {item} occurs more than once")
            seen.add(item)
