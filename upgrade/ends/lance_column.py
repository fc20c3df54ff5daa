"""A column of the user's own Lance table as a store: the new vectors come into a column beside it."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lance
import pyarrow as pa
from pyarrow import compute

from upgrade.ends.store import Pushed, StoreInfo
from utils.config import key
from utils.errors import UserError, said

MERGED = 2**17  # rows of a push in one commit


@dataclass
class LanceColumnParams:
    """`store`, of the kind lance."""

    uri: str = key(doc="the table", path="any")
    id: str = key("id", doc="column of ids: whole numbers or text, each there once")
    embedding: str = key(
        "embedding", doc="column of old vectors; new ones come into NAME_new, until they change places"
    )
    label: str | None = key(None, doc="column of whole numbers, if any")


class LanceColumn:
    """See `Store`. After the cutover the old vectors are in NAME_old."""

    def __init__(self, params: LanceColumnParams, dataset: Any) -> None:
        self.params, self.dataset = params, dataset
        self.new, self.kept = f"{params.embedding}_new", f"{params.embedding}_old"
        self.record, self.batch = f"refill.{params.embedding}", f"{params.embedding}_batch"

    @classmethod
    def open(cls, params: LanceColumnParams) -> "LanceColumn":
        """Open the table.

        Raises:
            UserError: there is none, or it has no such columns.
        """
        try:
            dataset = lance.dataset(params.uri)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"store.uri: {params.uri} cannot be opened as a Lance table ({said(error)})") from None
        store, names = cls(params, dataset), dataset.schema.names
        for name, column in (("id", params.id), ("embedding", params.embedding), ("label", params.label)):
            if column is not None and column not in names:
                raise UserError(f"store.{name}: {params.uri} has no column {column}; it has {', '.join(names)}")
        kind = dataset.schema.field(params.id).type
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind)):
            raise UserError(f"store.id: {params.id} is {kind}, neither whole numbers nor text")
        if not pa.types.is_fixed_size_list(store._old_type):
            raise UserError(f"store.embedding: {params.embedding} is {store._old_type}, no list of a fixed size")
        return store

    @property
    def _is_cut_over(self) -> bool:
        return self.kept in self.dataset.schema.names

    @property
    def _old(self) -> str:
        return self.kept if self._is_cut_over else self.params.embedding

    @property
    def _old_type(self) -> pa.DataType:
        return self.dataset.schema.field(self._old).type

    def info(self) -> StoreInfo:
        rows, present = self.dataset.count_rows(), self.dataset.count_rows(f"{self._old} IS NOT NULL")
        text = pa.types.is_string(self.dataset.schema.field(self.params.id).type)
        identity = f"{self.params.uri}/{self.params.embedding}"
        kind = pa.string() if text else pa.int64()
        return StoreInfo(identity, present, rows - present, self._old_type.list_size, kind)

    def read_old(self, rows: int) -> Iterator[pa.RecordBatch]:
        """See `Store`; the ids are in memory, and where the rows are."""
        where = f"{self._old} IS NOT NULL"
        found = self.dataset.scanner(columns=[self.params.id], filter=where, with_row_id=True).to_table()
        if found[self.params.id].null_count:
            raise UserError(f"store.id: {self.params.id} of {self.params.uri} has missing values")
        places = found["_rowid"].take(compute.sort_indices(found[self.params.id])).to_numpy()
        columns = {"id": self.params.id, "embedding": self._old}
        columns |= {} if self.params.label is None else {"label": self.params.label}
        vectors = pa.list_(pa.float32(), self._old_type.list_size)
        for start in range(0, len(places), rows):
            part = self.dataset._take_rows(places[start : start + rows].tolist(), columns=list(columns.values()))
            kinds = {"id": self.info().id_type, "embedding": vectors, "label": pa.int64()}
            arrays = [part[column].cast(kinds[name]).combine_chunks() for name, column in columns.items()]
            yield pa.RecordBatch.from_arrays(arrays, names=list(columns))

    def pushed(self) -> Pushed | None:
        text = self.dataset.metadata.get(self.record)
        return None if text is None else dataclasses.replace(Pushed(**json.loads(text)), cut_over=self._is_cut_over)

    def push(self, batches: Iterator[pa.RecordBatch], record: Pushed) -> int:
        """See `Store`; each part is a commit."""
        target, written, held = self.params.embedding if self._is_cut_over else self.new, 0, []
        for batch in batches:
            held.append(batch)
            if sum(part.num_rows for part in held) >= MERGED:
                written, held = written + self._merge(pa.Table.from_batches(held), target), []
        if held:
            written += self._merge(pa.Table.from_batches(held), target)
        self.dataset.update_metadata({self.record: json.dumps(dataclasses.asdict(record))})
        return written

    def _merge(self, part: pa.Table, target: str) -> int:
        vectors = part["embedding"].type
        if target not in self.dataset.schema.names:
            self.dataset.add_columns(pa.schema([pa.field(target, vectors), pa.field(self.batch, pa.int32())]))
        elif self.dataset.schema.field(target).type != vectors:
            kind = self.dataset.schema.field(target).type
            raise UserError(
                f"store.embedding: {target} of {self.params.uri} is {kind}, not {vectors}; drop that column"
            )
        kind = self.dataset.schema.field(self.params.id).type
        named = part.rename_columns([self.params.id, target, self.batch])
        named = named.set_column(0, self.params.id, named[self.params.id].cast(kind))
        merge = self.dataset.merge_insert(self.params.id).when_matched_update_all()
        return int(merge.execute(named)["num_updated_rows"])

    def cutover(self) -> None:
        """See `Store`: both columns change their names in one commit."""
        if self._is_cut_over:
            return
        self._check_full()
        self._rename({self.params.embedding: self.kept, self.new: self.params.embedding})

    def _check_full(self) -> None:
        lacking = f"{self._old} IS NOT NULL AND {self.new} IS NULL"
        missing = self.dataset.count_rows(lacking) if self.new in self.dataset.schema.names else None
        if missing is None:
            raise UserError(f"store: {self.params.uri} has no column {self.new}; run `upgrade_gallery.py push` first")
        if missing:
            rows = self.dataset.to_table(columns=[self.params.id], filter=lacking, limit=3)
            ids = ", ".join(map(str, rows[self.params.id].to_pylist()))
            raise UserError(f"store: {missing:,} rows of {self.params.uri} have no new vector ({ids}, ...); push again")

    def undo_cutover(self) -> None:
        if self._is_cut_over:
            self._rename({self.params.embedding: self.new, self.kept: self.params.embedding})

    def _rename(self, names: dict[str, str]) -> None:
        schema = self.dataset.schema
        renamed = {name: names.get(name, name) for name in schema.names}
        assert len(set(renamed.values())) == len(schema.names)
        self.dataset.alter_columns(*({"path": old, "name": new} for old, new in names.items()))
