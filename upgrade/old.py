"""The old vectors of a gallery, in files or in a store: read a chunk after the other, checked."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from data.items import Array
from upgrade.ends import Store
from upgrade.ends.files import Source
from upgrade.ends.ids import scrambled, text_keys
from upgrade.ends.rows import Rows, check_finite, parts_of
from upgrade.spaces import check_lengths, have_unit_length
from upgrade.table import values
from utils.errors import UserError

SAMPLE_ROWS = 1024  # that tell whether all have length 1
KEYS_AT_ONCE = 2**25  # of ids that are compared with each other


class Chunk(NamedTuple):
    """Successive rows of a gallery."""

    first: int  # the number of the first of them, in messages
    ids: Array  # (m,) int64 or text
    vectors: Array  # (m, d_old)
    labels: Array | None  # (m,) int64
    side_info: Array | None  # (m, d_side)

    def hashes(self) -> Array:
        """What tells whether an old vector has changed, (m,) uint64."""
        return source_hashes(self.vectors)


def source_hashes(vectors: Array) -> Array:
    """The first 8 bytes of the SHA-256 of each vector (m, d) as float32 -> (m,) uint64."""
    rows = np.ascontiguousarray(vectors, np.float32)
    digests = b"".join([hashlib.sha256(row).digest()[:8] for row in rows])
    return np.frombuffer(digests, "<u8")


class Old(Protocol):
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

    def chunks(self, rows: int, *, skip: int = 0, after: Any = None) -> Iterator[Chunk]:
        """All chunks of so many rows, but for the first `skip` rows, the last of which has the id `after`.

        Raises:
            UserError: a row is not finite, or not of length 1 where all should be.
        """


@dataclass(frozen=True)
class OldFiles:
    """A gallery in files."""

    source: Source
    side_info: Source | None  # in the same order
    unit: bool

    @property
    def name(self) -> str:
        return f"gallery: {self.source.path}"

    @property
    def identity(self) -> str:
        return str(self.source.path)

    @property
    def rows(self) -> int:
        return len(self.source)

    @property
    def without(self) -> int:
        return 0

    @property
    def dim(self) -> int:
        return self.source.dim

    @property
    def id_type(self) -> pa.DataType:
        return pa.string() if self.source.has_text_ids else pa.int64()

    @property
    def has_labels(self) -> bool:
        return self.source.labels is not None

    @property
    def side_dim(self) -> int | None:
        return None if self.side_info is None else self.side_info.dim

    def chunks(self, rows: int, *, skip: int = 0, after: Any = None) -> Iterator[Chunk]:
        """As `Old.chunks`."""
        for start, stop in parts_of(self.rows, rows):
            if stop <= skip:
                continue
            start = max(start, skip)
            ids, labels = self.source.ids, self.source.labels
            yield Chunk(
                start,
                np.arange(start, stop) if ids is None else ids.read(start, stop),
                read_checked(self.source.vectors, self.name, start, stop, unit=self.unit),
                None if labels is None else labels.read(start, stop),
                None if self.side_info is None else read_checked(self.side_info.vectors, "side_info", start, stop),
            )


class OldStore:
    """A gallery in a store."""

    side_dim = None

    def __init__(self, store: Store) -> None:
        self.store, info = store, store.info()
        self.name, self.identity = f"store: {info.identity}", info.identity
        self.rows, self.without, self.dim, self.id_type = info.rows, info.without, info.dim, info.id_type
        first = next(store.read_old(SAMPLE_ROWS), None)
        if first is None or not info.rows:
            raise UserError(f"{self.name}: has no row with an old vector")
        self.has_labels = "label" in first.schema.names
        self.unit = have_unit_length(values(first["embedding"]))

    def chunks(self, rows: int, *, skip: int = 0, after: Any = None) -> Iterator[Chunk]:
        """As `Old.chunks`; what comes by rising ids is found again by the last one."""
        first, last = 0, None
        for batch in self.store.read_old(rows):
            ids, vectors = values(batch["id"]), values(batch["embedding"]).astype(np.float32)
            rising = np.all(ids[1:] > ids[:-1]) and (last is None or ids[0] > last)
            if not rising:
                raise UserError(f"{self.name}: its ids are not unique, or do not come in rising order")
            last = ids[-1]
            check_finite(vectors, self.name, first)
            if self.unit:
                check_lengths(vectors, self.name, first)
            left = slice(0 if after is None else int(np.searchsorted(ids, after, side="right")), None)
            if len(ids[left]):
                labels = values(batch["label"])[left] if self.has_labels else None
                yield Chunk(first, ids[left], vectors[left], labels, None)
            first += len(ids)


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


def sample_of(rows: Rows) -> Array:
    """Evenly spread rows."""
    count, blocks = rows.shape[0], 16
    size = SAMPLE_ROWS // blocks
    starts = sorted({max(0, i * (count - size) // (blocks - 1)) for i in range(blocks)})
    return np.concatenate([rows.read(start, min(start + size, count)) for start in starts])


def check_distinct(source: Source) -> None:
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
            keys = text_keys(ids) if source.has_text_ids else scrambled(ids.view(np.uint64))
            found.append(keys[keys % passes == number])
        keys = np.sort(np.concatenate(found))
        again = np.unique(keys[1:][keys[1:] == keys[:-1]])
        if len(again):  # of texts, two that differ may have one key
            _check_alike(source, again)


def _check_alike(source: Source, keys: Array) -> None:
    """Raise a UserError if two ids of some of these keys are the same."""
    seen: set[Any] = set()
    assert source.ids is not None
    for part in parts_of(len(source)):
        ids = source.ids.read(*part)
        own = text_keys(ids) if source.has_text_ids else scrambled(ids.view(np.uint64))
        for item in ids[np.isin(own, keys)].tolist():
            if item in seen:
                raise UserError(f"gallery: {source.path}: the id {item} occurs more than once")
            seen.add(item)
