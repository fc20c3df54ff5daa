"""A gallery in Qdrant: new vectors beside the old ones in the same points, or in a second collection with an alias.

Tested on the client's local mode alone, in memory and in a folder; no server took part.
"""

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException

from upgrade.ends.config import QdrantParams
from upgrade.ends.store import Pushed, StoreInfo
from utils.errors import UserError

RECORD = "refill_upgrade"  # in the metadata of the collection that has the new vectors
BATCH = "refill_batch"  # in the payload of points whose new vector a push has written
DISTANCES = {"l2": models.Distance.EUCLID, "cosine": models.Distance.COSINE, "dot": models.Distance.DOT}
METADATA, SECOND_VECTOR = (1, 16), (1, 18)  # versions of the server


class Qdrant:
    """A collection as `Store` describes it, but for two things that Qdrant has not.

    Reading sees no snapshot: points that change meanwhile are read as they were or as they are. And with both vectors
    in one point there is no name to switch: cutover is an entry in the collection's metadata, by which clients choose.
    """

    def __init__(self, params: QdrantParams, client: QdrantClient) -> None:
        self.params, self.client = params, client
        with self._talk():
            version = tuple(int(part) for part in client.info().version.split(".")[:2])
            if version < METADATA:
                raise UserError("store: the server keeps no metadata of collections, which those of 1.16 and later do")
            if any(alias.alias_name == params.collection for alias in client.get_aliases().aliases):
                raise UserError(
                    f"store.collection: {params.collection} is an alias: name it as store.alias, and its collection"
                )
            if not client.collection_exists(params.collection):
                raise UserError(f"store.collection: there is no {params.collection}")
            self.vectors = self._vectors(params.collection)
            old = self.vectors.get(params.vector or "")
            if old is None or old.multivector_config is not None:
                names = ", ".join(name or "one without a name" for name in self.vectors)
                raise UserError(f"store.vector: {params.collection} has no such dense vector (it has {names})")
            self.old = old
            second = f"{params.collection}_new"
            able = params.vector is not None and version >= SECOND_VECTOR
            if params.beside == "vector" and not able:
                raise UserError(
                    "store.beside: a second vector needs a server of 1.18 or later, and a name of the old one"
                )
            begun = client.collection_exists(second) and self._record(second) is not None
            self.inside = able and params.beside != "collection" and not begun
        self.target = params.collection if self.inside else second
        self.name = params.new_vector if self.inside else params.vector or ""

    @classmethod
    def open(cls, params: QdrantParams) -> "Qdrant":
        """The store, by the server or folder that the config names.

        Raises:
            UserError: it cannot be reached, or has no such vectors.
        """
        key = os.environ.get(params.api_key_env or "")
        if params.api_key_env is not None and not key:
            raise UserError(f"store.api_key_env: the environment variable {params.api_key_env} is not set")
        try:
            client = QdrantClient(url=params.url, path=params.path, api_key=key, timeout=60, check_compatibility=False)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"store: {params.url or params.path}: cannot be opened ({_first_line(error)})") from error
        return cls(params, client)

    @contextmanager
    def _talk(self) -> Iterator[None]:
        """Say in a line what Qdrant refuses."""
        try:
            yield
        except (ApiException, ValueError, KeyError, RuntimeError) as error:
            where = f"store: {self.params.url or self.params.path or 'Qdrant'}, {self.params.collection}"
            raise UserError(f"{where}: {_first_line(error)}; what is written stays: run the step again") from error

    def _vectors(self, collection: str) -> dict[str, models.VectorParams]:
        """Name -> what the collection's dense vectors are; the name "" is the vector without one."""
        vectors = self.client.get_collection(collection).config.params.vectors
        return {"": vectors} if isinstance(vectors, models.VectorParams) else dict(vectors or {})

    def _record(self, collection: str) -> dict[str, Any] | None:
        return (self.client.get_collection(collection).config.metadata or {}).get(RECORD)

    def info(self) -> StoreInfo:
        """Counts of points with and without the old vector."""
        params = self.params
        with self._talk():
            with_old = models.Filter(must=[models.HasVectorCondition(has_vector=params.vector or "")])
            rows = self.client.count(params.collection, with_old, exact=True).count
            total = self.client.count(params.collection, exact=True).count
            first, _ = self.client.scroll(params.collection, with_old, limit=1, with_payload=False)
        if not first:
            raise UserError(f"store.collection: {params.collection} holds no such vector")
        place = f"qdrant:{params.url or params.path}/{params.collection}/{params.vector or ''}"
        return StoreInfo(place, rows, total - rows, self.old.size, _id_type(first[0].id))

    def read_old(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Page by page, in Qdrant's order of ids: that of the numbers, or of the UUIDs as text."""
        params, offset, kind = self.params, None, None
        name, label = params.vector or "", params.label_key
        while True:
            with self._talk():
                points, offset = self.client.scroll(
                    params.collection,
                    models.Filter(must=[models.HasVectorCondition(has_vector=name)]),
                    limit=rows,
                    offset=offset,
                    with_payload=[label] if label else False,
                    with_vectors=[name] if name else True,
                )
            kinds = {_id_type(point.id) for point in points} | ({kind} if kind else set())
            if len(kinds) > 1:
                raise UserError(f"store.collection: {params.collection} has both numbers and UUIDs as ids")
            if points:
                kind = kinds.pop()
                vectors = np.array([_vector_of(point, name) for point in points], np.float32)  # (n, d)
                columns = {
                    "id": pa.array([point.id for point in points], kind),
                    "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.old.size),
                }
                if label:
                    columns["label"] = pa.array([_label_of(point, label) for point in points], pa.int64())
                yield pa.RecordBatch.from_pydict(columns)
            if offset is None:
                return

    def pushed(self) -> Pushed | None:
        """As the metadata of the collection with the new vectors has it; None too where a push was interrupted."""
        with self._talk():
            record = self._record(self.target) if self.client.collection_exists(self.target) else None
            if record is None or not record.get("complete"):
                return None
            return Pushed(**{**record["pushed"], "cut_over": self._is_cut_over()})

    def _is_cut_over(self) -> bool:
        if self.inside:
            return bool((self._record(self.target) or {}).get("cut_over"))
        return any(
            (a.alias_name, a.collection_name) == (self.params.alias, self.target)
            for a in self.client.get_aliases().aliases
        )

    def _keep(self, **changes: Any) -> None:
        """Change the record, which is written as a whole."""
        record = {**(self._record(self.target) or {"cut_over": False, "pushed": None}), **changes}
        self.client.update_collection(self.target, metadata={RECORD: record})

    def push(self, batches: Iterator[pa.RecordBatch], record: Pushed) -> int:
        """Request by request; points that are gone are left out, new vectors that the application wrote stay."""
        held = gone = own = 0
        writer, begun = uuid.uuid4().hex, False
        for batch in batches:
            for start in range(0, len(batch), self.params.request_points):
                rows = batch.slice(start, self.params.request_points)
                vectors = rows["embedding"].flatten().to_numpy().astype(np.float32).reshape(len(rows), -1)
                if not np.isfinite(vectors).all():
                    bad = rows["id"][int((~np.isfinite(vectors)).any(axis=1).argmax())]
                    raise UserError(f"store: the new embedding of item {bad} holds NaN or infinity")
                with self._talk():
                    if not begun:
                        self._make_room(vectors.shape[1])
                        self._keep(complete=False, writer=writer)
                        begun = True
                    if (self._record(self.target) or {}).get("writer") != writer:
                        raise UserError("store: another push has begun since; this one ends")
                    missing, kept = self._write(rows["id"].to_pylist(), vectors, rows["batch"].to_pylist())
                held, gone, own = held + len(rows) - missing - kept, gone + missing, own + kept
        with self._talk():
            self._keep(complete=True, writer=writer, pushed=asdict(record))
        if gone:
            _note(f"{gone:,} items are no longer in the collection and were left out")
        if own:
            _note(f"{own:,} items keep the new vector that the application wrote")
        return held

    def _make_room(self, dim: int) -> None:
        """The second vector, or the second collection, of `dim` numbers."""
        params, client = self.params, self.client
        distance = self.old.distance if params.distance is None else DISTANCES[params.distance]
        there = client.collection_exists(self.target)
        present = self._vectors(self.target).get(self.name) if there else None
        if (present is not None or (there and not self.inside)) and self._record(self.target) is None:
            raise UserError(
                f"store: {self.target} holds {self.name or 'vectors'} already, which no push has written; name another"
            )
        if present is not None:
            if (present.size, present.distance) != (dim, distance):
                raise UserError(
                    f"store: new vectors in {self.target} are {present.size}-d by {present.distance.value}, what is "
                    f"pushed {dim}-d by {distance.value}; delete those first"
                )
        elif self.inside:
            dense = models.DenseVectorConfig(size=dim, distance=distance)
            client.create_vector_name(self.target, self.name, models.DenseVectorNameConfig(dense=dense))
        else:
            config = client.get_collection(params.collection)
            if len(self.vectors) > 1 or config.config.params.sparse_vectors:
                raise UserError("store.beside: the points have further vectors, which a second collection would lack")
            vector = self.old.model_copy(update={"size": dim, "distance": distance})
            client.create_collection(
                self.target,
                {self.name: vector} if self.name else vector,
                shard_number=config.config.params.shard_number,
                replication_factor=config.config.params.replication_factor,
                on_disk_payload=config.config.params.on_disk_payload,
                metadata={RECORD: {"cut_over": False, "pushed": None}},
            )
            for key, index in config.payload_schema.items():
                client.create_payload_index(self.target, key, index.params or index.data_type)

    def _write(self, ids: list[Any], vectors: Any, numbers: list[int]) -> tuple[int, int]:
        """Points into Qdrant -> how many of them are gone, and how many the application has written itself."""
        client, params = self.client, self.params
        payload: Any = not self.inside
        found = {point.id: point.payload for point in client.retrieve(params.collection, ids, with_payload=payload)}
        conditions: list[Any] = [
            models.HasIdCondition(has_id=ids),
            models.IsEmptyCondition(is_empty=models.PayloadField(key=BATCH)),
            models.HasVectorCondition(has_vector=self.name),
        ]
        marked, _ = client.scroll(self.target, models.Filter(must=conditions), limit=len(ids), with_payload=False)
        own = {point.id for point in marked} & {key for key, number in zip(ids, numbers, strict=True) if number == 0}
        rows = [row for row, key in enumerate(ids) if key in found and key not in own]
        if self.inside and rows:
            points = [models.PointVectors(id=ids[row], vector={self.name: vectors[row].tolist()}) for row in rows]
            operations: list[Any] = [models.UpdateVectorsOperation(update_vectors=models.UpdateVectors(points=points))]
            for number in sorted({numbers[row] for row in rows}):
                some = [ids[row] for row in rows if numbers[row] == number]
                mark = models.SetPayload(payload={BATCH: number}, points=some)
                operations.append(models.SetPayloadOperation(set_payload=mark))
            client.batch_update_points(self.target, operations, wait=True)
        elif rows:
            copies = [
                models.PointStruct(
                    id=ids[row],
                    vector={self.name: vectors[row].tolist()} if self.name else vectors[row].tolist(),
                    payload={**(found[ids[row]] or {}), BATCH: numbers[row]},
                )
                for row in rows
            ]
            client.upsert(self.target, copies, wait=True)
        return len(ids) - len(found), len(ids) - len(rows) - (len(ids) - len(found))

    def cutover(self) -> None:
        """Switch the alias, or say in the metadata that the new vectors serve; a second time it does nothing.

        Raises:
            UserError: a push is missing or has not ended, points lack a new vector, or no alias is named.
        """
        record = self.pushed()
        if record is not None and record.cut_over:
            return
        if record is None:
            raise UserError("store: nothing was pushed, or not to its end; push first")
        with self._talk():
            lacking = list(self._lacking())
        if lacking:
            names = ", ".join(str(key) for key in lacking[:3])
            raise UserError(
                f"store: {len(lacking):,} points lack a new vector, as {names}; transform and push them first"
            )
        self._switch(self.target, cut_over=True)

    def undo_cutover(self) -> None:
        """The alias, or the metadata, as before; where nothing was switched it does nothing."""
        with self._talk():
            switched = self.client.collection_exists(self.target) and self._is_cut_over()
        if switched:
            self._switch(self.params.collection, cut_over=False)

    def _switch(self, collection: str, *, cut_over: bool) -> None:
        alias = self.params.alias
        with self._talk():
            if self.inside:
                self._keep(cut_over=cut_over)
                return
            if alias is None:
                raise UserError("store.alias: is missing; name the alias by which queries reach the collection")
            pointing = {known.alias_name: known.collection_name for known in self.client.get_aliases().aliases}
            if pointing.get(alias) not in (None, self.params.collection, self.target):
                raise UserError(f"store.alias: {alias} is an alias of {pointing[alias]}; nothing was switched")
            changes: list[Any] = [
                models.CreateAliasOperation(
                    create_alias=models.CreateAlias(collection_name=collection, alias_name=alias)
                )
            ]
            if alias in pointing:
                changes.insert(0, models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
            self.client.update_collection_aliases(changes)  # all of them or none

    def _lacking(self) -> Iterator[Any]:
        """Ids of points with an old vector and no new one."""
        has_old = models.HasVectorCondition(has_vector=self.params.vector or "")
        has_new = models.HasVectorCondition(has_vector=self.name)
        chosen = models.Filter(must=[has_old], must_not=[has_new] if self.inside else None)
        offset = None
        while True:
            points, offset = self.client.scroll(
                self.params.collection, chosen, limit=10_000, offset=offset, with_payload=False
            )
            ids = [point.id for point in points]
            there = (
                set()
                if self.inside or not ids
                else {point.id for point in self.client.retrieve(self.target, ids, with_payload=False)}
            )
            yield from (key for key in ids if key not in there)
            if offset is None:
                return


def _id_type(key: Any) -> pa.DataType:
    if isinstance(key, int) and key >= 2**63:
        raise UserError(f"store.collection: the id {key:,} is 2^63 or more, which ids here cannot be")
    return pa.int64() if isinstance(key, int) else pa.string()


def _vector_of(point: Any, name: str) -> Any:
    return point.vector[name] if isinstance(point.vector, dict) else point.vector


def _label_of(point: Any, key: str) -> int | None:
    label = (point.payload or {}).get(key)
    if label is not None and not isinstance(label, int):
        raise UserError(f"store.label_key: {key} of point {point.id} is {label!r}, no whole number")
    return label


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _note(text: str) -> None:
    print(f"store: {text}", file=sys.stderr, flush=True)
