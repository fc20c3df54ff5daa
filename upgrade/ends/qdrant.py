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
from tqdm import tqdm

from upgrade.ends.config import QdrantParams
from upgrade.ends.store import Pushed, StoreInfo
from utils.errors import UserError, said

RECORD = "refill_upgrade"  # in the metadata of the collection that has the new vectors
BATCH = "refill_batch"  # in the payload of the points whose new vector a push has written
DISTANCES = {"l2": models.Distance.EUCLID, "cosine": models.Distance.COSINE, "dot": models.Distance.DOT}
METADATA, SECOND_VECTOR = (1, 16), (1, 18)  # the versions of the server that have them first


class Qdrant:
    """A collection as `Store` describes it, but for two things that Qdrant has not.

    Reading sees no snapshot: a point that changes meanwhile is read as it was or as it is. And with both vectors in one
    point there is no name to switch: cutover is an entry in the collection's metadata, by which clients choose.
    """

    def __init__(self, params: QdrantParams, client: QdrantClient) -> None:
        self.params, self.client, self.old_name = params, client, params.vector or ""
        second = f"{params.collection}_new"
        with self._talk():
            version = tuple(int(part) for part in client.info().version.split(".")[:2])
            if version < METADATA:
                raise UserError("store: the server keeps no metadata of collections, which those of 1.16 and later do")
            if params.collection in self._aliases():
                raise UserError(f"store.collection: {params.collection} is an alias: name its collection")
            if not client.collection_exists(params.collection):
                raise UserError(f"store.collection: there is no {params.collection}")
            self.vectors = self._vectors(params.collection)
            begun = self._record(second) is not None
        old = self.vectors.get(self.old_name)
        if old is None or old.multivector_config is not None:
            names = ", ".join(name or "one without a name" for name in self.vectors)
            raise UserError(f"store.vector: {params.collection} has no such dense vector (it has {names})")
        # Beside vectors without a name, a named one makes Qdrant refuse what clients write without names.
        able = version >= SECOND_VECTOR and params.vector is not None
        if params.beside == "vector" and not able:
            raise UserError("store.beside: a second vector needs a server of 1.18 or later, and a name of the old one")
        self.inside = able and params.beside != "collection" and not begun
        self.old = old
        self.target, self.name = (params.collection, params.new_vector) if self.inside else (second, self.old_name)

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
            client = QdrantClient(params.url, path=params.path, api_key=key, timeout=60, check_compatibility=False)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"store: {params.url or params.path}: cannot be opened ({said(error)})") from error
        return cls(params, client)

    @contextmanager
    def _talk(self) -> Iterator[None]:
        """Say in a line what Qdrant refuses."""
        try:
            yield
        except (ApiException, ValueError, KeyError, RuntimeError) as error:
            where = f"{self.params.url or self.params.path}, {self.params.collection}"
            raise UserError(f"store: {where}: {said(error)}; what is written stays: run the step again") from error

    def _aliases(self) -> dict[str, str]:
        return {alias.alias_name: alias.collection_name for alias in self.client.get_aliases().aliases}

    def _vectors(self, collection: str) -> dict[str, models.VectorParams]:
        """Name -> what the dense vectors are; the name "" is the vector without one."""
        vectors = self.client.get_collection(collection).config.params.vectors
        return {"": vectors} if isinstance(vectors, models.VectorParams) else dict(vectors or {})

    def _record(self, collection: str) -> dict[str, Any] | None:
        there = self.client.collection_exists(collection)
        return (self.client.get_collection(collection).config.metadata or {}).get(RECORD) if there else None

    def _pages(self, rows: int, must_not: Any = None, **keys: Any) -> Iterator[list[Any]]:
        """The points with an old vector, in Qdrant's order of ids: of the numbers, or of the UUIDs as text."""
        chosen = models.Filter(must=[models.HasVectorCondition(has_vector=self.old_name)], must_not=must_not)
        offset = None
        while True:
            with self._talk():
                points, offset = self.client.scroll(self.params.collection, chosen, limit=rows, offset=offset, **keys)
            if points:
                yield points
            if offset is None:
                return

    def info(self) -> StoreInfo:
        """Counts of points with and without the old vector."""
        first = next(self._pages(1, with_payload=False), None)
        if first is None:
            raise UserError(f"store.collection: {self.params.collection} holds no such vector")
        with self._talk():
            has_old = models.Filter(must=[models.HasVectorCondition(has_vector=self.old_name)])
            rows = self.client.count(self.params.collection, has_old).count
            total = self.client.count(self.params.collection).count
        place = f"qdrant:{self.params.url or self.params.path}/{self.params.collection}/{self.old_name}"
        return StoreInfo(place, rows, total - rows, self.old.size, _id_type(first))

    def read_old(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Page by page."""
        label, kind = self.params.label_key, None
        vectors = [self.old_name] if self.old_name else True
        for points in self._pages(rows, with_payload=[label] if label else False, with_vectors=vectors):
            kind = kind or _id_type(points)
            if _id_type(points) != kind:
                raise UserError("store.collection: has both numbers and UUIDs as ids")
            found = [
                point.vector[self.old_name] if isinstance(point.vector, dict) else point.vector for point in points
            ]
            flat = np.array(found, np.float32).reshape(-1)
            columns = {
                "id": pa.array([point.id for point in points], kind),
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), self.old.size),
            }
            if label:
                try:
                    columns["label"] = pa.array([(point.payload or {}).get(label) for point in points], pa.int64())
                except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                    raise UserError(f"store.label_key: {label}: {said(error)}") from error
            yield pa.RecordBatch.from_pydict(columns)

    def pushed(self) -> Pushed | None:
        """As the metadata of the collection with the new vectors has it; None too where a push was interrupted."""
        with self._talk():
            record = self._record(self.target) or {}
            return Pushed(**{**record["pushed"], "cut_over": self._is_cut_over()}) if record.get("complete") else None

    def _is_cut_over(self) -> bool:
        if self.inside:
            return (self._record(self.target) or {}).get("cut_over", False)
        return self._aliases().get(self.params.alias or "") == self.target

    def _keep(self, **changes: Any) -> None:
        """Change the record, which is written as a whole."""
        record = {"cut_over": False, "pushed": None, **(self._record(self.target) or {}), **changes}
        self.client.update_collection(self.target, metadata={RECORD: record})

    def push(self, batches: Iterator[pa.RecordBatch], record: Pushed) -> int:
        """Request by request; points that are gone are left out, new vectors that the application wrote stay."""
        size, writer = self.params.request_points, uuid.uuid4().hex
        held = gone = own = begun = 0
        progress = tqdm(desc="pushing", unit="point", unit_scale=True, leave=False, delay=1)
        for rows in (batch.slice(start, size) for batch in batches for start in range(0, len(batch), size)):
            vectors = rows["embedding"].flatten().to_numpy().astype(np.float32).reshape(len(rows), -1)
            if (bad := ~np.isfinite(vectors).all(axis=1)).any():
                raise UserError(
                    f"store: the new embedding of item {rows['id'][int(bad.argmax())]} holds NaN or infinity"
                )
            with self._talk():
                if not begun:
                    self._make_room(vectors.shape[1])
                    self._keep(complete=False, writer=writer)
                if (self._record(self.target) or {}).get("writer") != writer:
                    raise UserError("store: another push has begun since; this one ends")
                missing, kept = self._write(rows["id"].to_pylist(), vectors.tolist(), rows["batch"].to_pylist())
            held, gone, own, begun = held + len(rows) - missing - kept, gone + missing, own + kept, 1
            progress.update(len(rows))
        progress.close()
        with self._talk():
            self._keep(complete=True, writer=writer, pushed=asdict(record))
        for count, text in ((gone, "are no longer in the collection"), (own, "keep the application's own new vector")):
            if count:
                print(f"store: {count:,} items {text}; they were left out", file=sys.stderr, flush=True)
        return held

    def _make_room(self, dim: int) -> None:
        """The second vector, or the second collection, of `dim` numbers."""
        distance = self.old.distance if self.params.distance is None else DISTANCES[self.params.distance]
        present = None
        if self.client.collection_exists(self.target):
            present = self._vectors(self.target).get(self.name)
            if self._record(self.target) is None and (present or not self.inside):
                raise UserError(f"store: {self.target} has new vectors already, which no push has written")
        if present is not None and (present.size, present.distance) != (dim, distance):
            raise UserError(
                f"store: new vectors in {self.target} are {present.size}-d by {present.distance.value}, what is pushed "
                f"{dim}-d by {distance.value}; delete those first"
            )
        if present is None and self.inside:
            dense = models.DenseVectorConfig(size=dim, distance=distance)
            self.client.create_vector_name(self.target, self.name, models.DenseVectorNameConfig(dense=dense))
        elif present is None:
            model = self.client.get_collection(self.params.collection)
            if len(self.vectors) > 1 or model.config.params.sparse_vectors:
                raise UserError("store.beside: the points have further vectors, which a second collection would lack")
            vector = self.old.model_copy(update={"size": dim, "distance": distance})
            vectors = {self.name: vector} if self.name else vector
            same = {key: getattr(model.config.params, key) for key in ("shard_number", "replication_factor")}
            self.client.create_collection(self.target, vectors, metadata={RECORD: {"complete": False}}, **same)
            for key, index in model.payload_schema.items():
                self.client.create_payload_index(self.target, key, index.params or index.data_type)

    def _write(self, ids: list[Any], vectors: list[Any], numbers: list[int]) -> tuple[int, int]:
        """Points into Qdrant -> how many of them are gone, and how many the application has written itself."""
        old = self.client.retrieve(self.params.collection, ids, with_payload=not self.inside)
        found = {point.id: point.payload or {} for point in old}
        unmarked: list[Any] = [
            models.HasIdCondition(has_id=ids),
            models.IsEmptyCondition(is_empty=models.PayloadField(key=BATCH)),
            models.HasVectorCondition(has_vector=self.name),
        ]
        there, _ = self.client.scroll(self.target, models.Filter(must=unmarked), limit=len(ids), with_payload=False)
        own = {point.id for point in there} & {key for key, number in zip(ids, numbers, strict=True) if number == 0}
        rows = [row for row in zip(ids, vectors, numbers, strict=True) if row[0] in found and row[0] not in own]
        if rows and self.inside:
            update = models.UpdateVectors(points=[models.PointVectors(id=x, vector={self.name: v}) for x, v, _ in rows])
            operations: list[Any] = [models.UpdateVectorsOperation(update_vectors=update)]
            for number in sorted({number for _, _, number in rows}):
                mark = models.SetPayload(payload={BATCH: number}, points=[x for x, _, n in rows if n == number])
                operations.append(models.SetPayloadOperation(set_payload=mark))
            self.client.batch_update_points(self.target, operations)
        elif rows:
            whole = ((x, {self.name: v} if self.name else v, {**found[x], BATCH: number}) for x, v, number in rows)
            self.client.upsert(self.target, [models.PointStruct(id=x, vector=v, payload=p) for x, v, p in whole])
        return len(ids) - len(found), len(found) - len(rows)

    def cutover(self) -> None:
        """Switch the alias, or say in the metadata that the new vectors serve; a second time it does nothing.

        Raises:
            UserError: a push is missing or has not ended, points lack a new vector, or no alias is named.
        """
        record = self.pushed()
        if record is None:
            raise UserError("store: nothing was pushed, or not to its end; push first")
        if record.cut_over:
            return
        lacking: list[Any] = []
        has_new = [models.HasVectorCondition(has_vector=self.name)] if self.inside else None
        for points in self._pages(10_000, has_new, with_payload=False):
            ids = [point.id for point in points]
            with self._talk():
                copies = [] if self.inside else self.client.retrieve(self.target, ids, with_payload=False)
            lacking += sorted(set(ids) - {point.id for point in copies})
        if lacking:
            names = ", ".join(map(str, lacking[:3]))
            raise UserError(
                f"store: {len(lacking):,} points lack a new vector, as {names}; transform and push them first"
            )
        self._switch(self.target)

    def undo_cutover(self) -> None:
        """The alias, or the metadata, as before; where nothing was switched it does nothing."""
        with self._talk():
            switched = self._is_cut_over()
        if switched:
            self._switch(self.params.collection)

    def _switch(self, collection: str) -> None:
        alias = self.params.alias
        with self._talk():
            if self.inside:
                return self._keep(cut_over=not self._is_cut_over())
            aliases = self._aliases()
            if alias is None:
                raise UserError("store.alias: is missing; name the alias by which queries reach the collection")
            if aliases.get(alias) not in (None, self.params.collection, self.target):
                raise UserError(f"store.alias: {alias} is an alias of {aliases[alias]}; nothing was switched")
            drop = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))
            to = models.CreateAlias(collection_name=collection, alias_name=alias)
            make = models.CreateAliasOperation(create_alias=to)
            self.client.update_collection_aliases([drop, make] if alias in aliases else [make])  # both or none
        return None


def _id_type(points: list[Any]) -> pa.DataType:
    kinds = {type(point.id) for point in points}
    if len(kinds) > 1:
        raise UserError("store.collection: has both numbers and UUIDs as ids")
    if kinds == {int} and max(point.id for point in points) >= 2**63:
        raise UserError("store.collection: has ids of 2^63 and more, which ids here cannot be")
    return pa.int64() if kinds == {int} else pa.string()
