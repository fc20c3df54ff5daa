"""The state of an upgrade: one Lance table. A state of the gallery is a version of it, a step that changes it a commit.

id            int64 or text
embedding     fixed_size_list<float16 or float32>[d]: transformed, or re-embedded by the new model
sigma         mean log variance of the transformed embedding, where the transformation gives one
priority      the higher, the sooner to be re-embedded; from `plan` on, null once that is done
batch         0: transformed; k: re-embedded by batch k
label         where the old gallery has labels
source_hash   the first 8 bytes of the SHA-256 of the old embedding as float32: tells a row that has changed
calibration   where the old gallery is itself in the middle of an upgrade: the value of the row's own

Nothing is locked: a commit is refused where another has come since the table was opened. Readers keep their version.
Tags name the versions after `transform` and after each batch.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.dataset import Transaction
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata, write_fragments

from data.items import Array
from upgrade.columns import digest_of, values
from upgrade.durable import Unsynced, at_once, lance_errors
from upgrade.state import State, read_state
from utils.provenance import timestamp

Operation = lance.LanceOperation
STEP, COUNTS = "refill.step", "refill.counts"  # properties of a commit: which step made it, and what its rows are
LOOKED_UP = 4096  # ids in a query
SCANNED = 2**16  # rows of a scan at a time
SMALL_FRAGMENTS = 100  # so many more than a table needs slow it down
LOOKED_BACK = 20  # versions, for the last step
KEPT = timedelta(days=14)  # versions without a tag


@dataclass(frozen=True)
class Counts:
    """What the rows of a version are."""

    rows: int
    re_embedded: int
    batches: int  # that were applied


class Table:
    """A version of an upgrade's table."""

    def __init__(self, uri: str, dataset: Any, unsynced: Unsynced) -> None:
        self.uri, self.dataset, self.unsynced = uri, dataset, unsynced
        self.state: State = read_state(dataset.schema.metadata, f"output: {uri}")

    @property
    def version(self) -> int:
        return int(self.dataset.version)

    @property
    def schema(self) -> pa.Schema:
        return self.dataset.schema

    @property
    def has_text_ids(self) -> bool:
        return bool(self.schema.field("id").type == pa.string())

    @property
    def has_labels(self) -> bool:
        return "label" in self.schema.names

    def scan(self, columns: Sequence[str], filter: str | None = None, **options: Any) -> Iterator[pa.RecordBatch]:
        """Batches of rows, in the order of the table, in little memory."""
        scanner = self.dataset.scanner(
            columns=list(columns),
            filter=filter,
            batch_size=SCANNED,
            io_buffer_size=2**26,
            batch_readahead=2,
            fragment_readahead=1,
            **options,
        )
        yield from scanner.to_batches()

    def counts(self) -> Counts:
        """How many rows are in which state: as the newest commit says, or else by a look at all of them."""
        properties = self._properties(self.version)
        if COUNTS in properties:
            return Counts(**json.loads(properties[COUNTS]))
        rows, re_embedded, batches = 0, 0, self.state.batches_before
        for batch in self.scan(["batch"]):
            found = batch["batch"].to_numpy()
            rows, re_embedded = rows + len(found), re_embedded + int((found > 0).sum())
            batches = max(batches, int(found.max(initial=0)))
        return Counts(rows, re_embedded, batches)

    def lookup(
        self, ids: Array, columns: Sequence[str], *, dense: bool = False, addresses: bool = False
    ) -> tuple[Array, pa.Table]:
        """Rows by their ids (m,) -> where each of them stands in the table that is returned, (m,), -1 for unknown ones.

        Args:
            ids: whole numbers or texts, as the table's are.
            columns: `id` is added.
            dense: the ids are in rising order, and few others lie between them.
            addresses: whether `_rowaddr` is added, too.
        """
        columns, more = ["id", *columns], {"with_row_address": addresses}
        if dense and len(ids):
            within = f"id >= {_literal(ids[0])} AND id <= {_literal(ids[-1])}"
            found = self.dataset.to_table(columns=columns, filter=within, limit=2 * len(ids) + 64, **more)
            if found.num_rows < 2 * len(ids) + 64:
                return _places(ids, self._ids(found)), found
        parts = []
        for start in range(0, len(ids), LOOKED_UP):
            listed = ",".join(map(_literal, ids[start : start + LOOKED_UP]))
            parts.append(self.dataset.to_table(columns=columns, filter=f"id IN ({listed})", **more))
        found = pa.concat_tables(parts) if parts else self.dataset.to_table(columns=columns, limit=0, **more)
        if len(parts) > 1:  # an id that stands in two parts of a batch
            found = found.take(np.unique(self._ids(found), return_index=True)[1])
        return _places(ids, self._ids(found)), found

    def _ids(self, found: pa.Table) -> Array:
        return values(found["id"]) if found.num_rows else np.empty(0, "U1" if self.has_text_ids else np.int64)

    def all_ids(self) -> Array:
        """All ids in rising order, (n,): they are in memory, 8 bytes each or their letters."""
        parts = [values(batch["id"]) for batch in self.scan(["id"])]
        return np.sort(np.concatenate(parts))

    def in_order(self, columns: Sequence[str], rows: int = SCANNED, *, ids: Array | None = None) -> Iterator[pa.Table]:
        """All rows by rising ids, which are in memory, or those of some; the rest is read `rows` rows at a time."""
        ids = self.all_ids() if ids is None else ids
        for start in range(0, len(ids), rows):
            part = ids[start : start + rows]
            place, found = self.lookup(part, columns, dense=True)
            yield found.take(place)

    # Changing

    def commit(self, operation: Any, step: str | None = None, counts: Counts | None = None, **numbers: Any) -> "Table":
        """Make an operation, or a transaction that Lance has prepared, the next version, durably.

        Args:
            operation: of `LanceOperation`, or a `Transaction`.
            step: which one it finishes, if any; kept with the commit, beside the time and the numbers.
            counts: of the next version, where they are known.

        Raises:
            UserError: another commit has come since this version was read, or the disk is full.
        """
        if not isinstance(operation, Transaction):
            operation = Transaction(self.version, operation)
        properties = {} if step is None else {STEP: json.dumps({"step": step, "at": timestamp(), **numbers})}
        properties |= {} if counts is None else {COUNTS: json.dumps(asdict(counts))}
        operation.transaction_properties = properties
        self.unsynced.sync_data()
        with lance_errors(self.uri):
            if self.dataset.latest_version != self.version:
                raise at_once(self.uri)
            dataset = lance.LanceDataset.commit(self.dataset, operation, max_retries=0)
            if dataset.version != self.version + 1:  # Lance could combine both, but each was meant for what it had seen
                lance.LanceDataset.commit(dataset, Operation.Restore(dataset.version - 1))
                raise at_once(self.uri)
        self.unsynced.sync_versions()
        return Table(self.uri, dataset, self.unsynced)

    def replaced(
        self, addresses: Array, fragment: FragmentMetadata, step: str, counts: Counts, **numbers: Any
    ) -> "Table":
        """Put the rows of a new fragment in the place of the rows at some addresses (m,), by one commit.

        What is written grows with the rows and not with the table: theirs are marked as gone, whole ones come.
        """
        fragments, offsets = np.divmod(addresses, np.uint64(2**32))
        updated, removed = [], []
        with lance_errors(self.uri):
            for number in np.unique(fragments).tolist():
                left = self.dataset.get_fragment(number).delete_rows(offsets[fragments == number].tolist())
                if left is None:
                    removed.append(number)
                else:
                    updated.append(left)
        operation = Operation.Update(
            removed_fragment_ids=removed,
            updated_fragments=updated,
            new_fragments=[fragment],
            fields_for_preserving_frag_bitmap=[field.id() for field in self.dataset.lance_schema.fields()],
            update_mode="rewrite_rows",
        )
        return self.commit(operation, step, counts, **numbers)

    def last_step(self) -> dict[str, Any]:
        """What the newest commit of a step says of itself; empty where the last commits are of something else."""
        for version in range(self.version, max(0, self.version - LOOKED_BACK), -1):
            properties = self._properties(version)
            if STEP in properties:
                content: dict[str, Any] = json.loads(properties[STEP])
                return content
        return {}

    def _properties(self, version: int) -> dict[str, str]:
        """What a commit says of itself; nothing where Lance cannot tell (pylance 14: compaction), or it is gone."""
        try:
            transaction = self.dataset.read_transaction(version)
        except (OSError, ValueError, TypeError):
            return {}
        return (transaction.transaction_properties if transaction is not None else None) or {}

    def write_fragment(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> FragmentMetadata:
        """Write rows that no version has yet -> the fragment that they are."""
        failed: list[BaseException] = []

        def watched() -> Iterator[pa.RecordBatch]:
            try:
                yield from batches
            except BaseException as error:
                failed.append(error)
                raise

        reader = pa.RecordBatchReader.from_batches(schema, watched())
        try:
            with lance_errors(self.uri):
                (fragment,) = write_fragments(reader, self.uri, schema=schema, max_rows_per_file=2**31)
        except BaseException as error:
            raise (failed[0] if failed else error) from None
        return fragment

    def digest_of_fragment(self, fragment: FragmentMetadata) -> int:
        """The `digest_of` the ids that a fragment holds, as they are read from its file."""
        reader = LanceFileReader(f"{self.uri}/data/{fragment.files[0].path}", columns=["id"])
        batches = reader.read_all(batch_size=SCANNED).to_batches()
        return sum(digest_of(values(batch["id"])) for batch in batches) % 2**64

    def needs_care(self) -> bool:
        """Whether so many fragments have come that the index and the fragments are better made anew."""
        fragments = len(self.dataset.get_fragments())
        return fragments > -(-self.dataset.count_rows() // 2**19) + SMALL_FRAGMENTS

    def indexed(self) -> "Table":
        """With an index on the ids of all rows."""
        with lance_errors(self.uri):
            if self.dataset.has_index:
                self.dataset.optimize.optimize_indices()
            else:
                self.dataset.create_scalar_index("id", "BTREE")
        self._sync_all()
        return Table(self.uri, self.dataset, self.unsynced)

    def compacted(self) -> "Table":
        """With few fragments; versions that are older than 14 days go, but for those that have a tag."""
        with lance_errors(self.uri):
            self.dataset.optimize.compact_files(materialize_deletions_threshold=0.5, num_threads=1)
            self._sync_all()
            self.dataset.cleanup_old_versions(KEPT, error_if_tagged_old_versions=False)
        return Table(self.uri, self.dataset, self.unsynced)

    def _sync_all(self) -> None:
        self.unsynced.sync_data()
        self.unsynced.sync_versions()

    # Versions with names

    def tags(self) -> dict[str, int]:
        """Tag -> version."""
        return {name: int(tag["version"]) for name, tag in self.dataset.tags.list().items()}

    def settle(self, counts: Counts) -> str:
        """Let the tag of this state name this version, and remove those of states that a rollback has left -> the tag.

        It is what a step does last. If it was killed before, the next one does it first.
        """
        name, tags, known = self.state.tag(counts.batches), self.dataset.tags, self.tags()
        for other in known:
            kind, _, number = other.partition("-")
            limit = {"batch": counts.batches, "transformed": self.state.generation}.get(kind)
            if limit is not None and number.isdecimal() and int(number) > limit:
                tags.delete(other)
        if name not in known:
            tags.create(name, self.version)
        elif known[name] != self.version:
            tags.update(name, self.version)
        self.unsynced.sync_versions()
        return name


def _places(ids: Array, among: Array) -> Array:
    """Where each of the ids (m,), of which some may be there twice, stands among distinct ones -> (m,), or -1."""
    if not len(among):
        return np.full(len(ids), -1)
    order = among.argsort()
    place = np.minimum(np.searchsorted(among, ids, sorter=order), len(among) - 1)
    return np.where(among[order[place]] == ids, order[place], -1)


def _literal(item: Any) -> str:
    """An id in a filter."""
    return "'" + str(item).replace("'", "''") + "'" if isinstance(item, str) else str(item)
