"""A gallery in Qdrant's local mode: a second vector in the same points, or a second collection and an alias."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.upgrade.ends.conftest import NEW_DIM, OLD_DIM, RECORD, record_batches
from upgrade.ends.config import QdrantParams
from upgrade.ends.qdrant import RECORD as KEY
from upgrade.ends.qdrant import Qdrant
from utils.config import build
from utils.errors import UserError

qdrant_client = pytest.importorskip("qdrant_client")
models = qdrant_client.models
N = 250


@dataclass(frozen=True)
class Points:
    """The collection `items`, and what is in it."""

    client: Any
    keys: dict[str, Any]
    ids: list[Any]
    old: np.ndarray
    new: np.ndarray

    def store(self, **keys: Any) -> Qdrant:
        given: dict[str, Any] = {"collection": "items", "url": "http://memory", "alias": "live", "request_points": 40}
        return Qdrant(QdrantParams(**{**given, **self.keys, **keys}), self.client)

    def rows(self, which: Any = slice(None), shift: float = 0.0, batch: int = 0) -> Iterator[pa.RecordBatch]:
        yield from record_batches(np.array(self.ids)[which].tolist(), self.new[which] + np.float16(shift), batch)

    def found(self) -> dict[Any, tuple[np.ndarray, Any]]:
        """Id -> new vector and batch, by the client alone."""
        inside = "vector" in self.keys
        points, _ = self.client.scroll("items" if inside else "items_new", limit=9999, with_vectors=True)
        vectors = {point.id: point.vector.get("embedding_new") if inside else point.vector for point in points}
        return {
            point.id: (np.array(vectors[point.id], np.float32), (point.payload or {}).get("refill_batch"))
            for point in points
            if vectors[point.id] is not None
        }

    def check(self, shift: float = 0.0, but: tuple[int, ...] = ()) -> None:
        """Every row holds its new vector, but for those that the caller looks at."""
        found = self.found()
        rows = [row for row in range(len(self.ids)) if row not in but]
        assert set(found) >= {self.ids[row] for row in rows}
        for row in rows:
            assert np.allclose(found[self.ids[row]][0], self.new[row] + np.float16(shift), rtol=1e-6)

    def nearest(self, row: int) -> Any:
        """What a client gets that follows the switch: by the alias, or by the vector that the metadata names."""
        metadata = self.client.get_collection("items").config.metadata or {}
        using = {}
        if "vector" in self.keys:
            using = {"using": "embedding_new" if metadata.get(KEY, {}).get("cut_over") else "mine"}
        query = self.new[row] if self.store().pushed().cut_over else self.old[row]  # type: ignore[union-attr]
        name = "items" if using else "live"
        return self.client.query_points(name, query.tolist(), limit=1, **using).points[0].id


KINDS: dict[str, dict[str, Any]] = {"vector": {"vector": "mine"}, "collection": {}}


def make_points(client: Any, keys: dict[str, Any], *, uuids: bool = False, count: int = N) -> Points:
    rng = np.random.default_rng(0)
    ids: list[Any] = (rng.permutation(9 * N)[:count] + 1).tolist()
    if uuids:
        ids = [str(uuid.UUID(bytes=rng.bytes(16))) for _ in ids]
    old, new = (
        rng.normal(size=(count, OLD_DIM)).astype(np.float32),
        rng.normal(size=(count, NEW_DIM)).astype(np.float16),
    )
    vector = models.VectorParams(size=OLD_DIM, distance=models.Distance.EUCLID)
    client.create_collection("items", {"mine": vector} if keys else vector)
    client.upsert(
        "items",
        [
            models.PointStruct(
                id=key,
                vector={"mine": row.tolist()} if keys else row.tolist(),
                payload={"title": f"item {key}", "kind": 7},
            )
            for key, row in zip(ids, old, strict=True)
        ],
    )
    client.update_collection_aliases(
        [models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name="items", alias_name="live"))]
    )
    return Points(client, keys, ids, old, new)


@pytest.fixture(params=list(KINDS))
def points(request: pytest.FixtureRequest) -> Points:
    return make_points(qdrant_client.QdrantClient(":memory:"), KINDS[request.param])


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert len(message.splitlines()) <= 2
    assert message.startswith("store")
    return message


def test_what_is_read_is_what_is_stored(points: Points) -> None:
    store = points.store(label_key="kind")
    info = store.info()
    assert (info.rows, info.without, info.dim, info.id_type) == (N, 0, OLD_DIM, pa.int64())
    batches = list(store.read_old(64))
    assert [len(batch) for batch in batches] == [64, 64, 64, 58]
    read = pa.Table.from_batches(batches)
    order = np.argsort(points.ids)
    assert read["id"].to_pylist() == sorted(points.ids)
    vectors = read["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, OLD_DIM)
    assert np.array_equal(vectors, points.old[order])
    assert read["label"].to_pylist() == [7] * N


def test_push_cutover_and_back(points: Points) -> None:
    store = points.store()
    assert store.pushed() is None
    assert "nothing was pushed" in refusal(store.cutover)
    for _ in range(2):
        assert store.push(points.rows(), RECORD) == N
        points.check()
        assert store.pushed() == RECORD
    assert {batch for _, batch in points.found().values()} == {0}
    assert points.nearest(3) == points.ids[3]
    for _ in range(2):
        store.cutover()
        assert points.store().pushed() == replace(RECORD, cut_over=True)
        assert points.nearest(3) == points.ids[3]
    assert store.push(points.rows([3, 4], shift=2, batch=5), RECORD) == 2
    points.check(but=(3, 4))
    assert np.allclose(points.found()[points.ids[4]][0], points.new[4] + np.float16(2))
    assert points.found()[points.ids[4]][1] == 5
    for _ in range(2):
        store.undo_cutover()
        assert store.pushed() == RECORD
        assert points.nearest(3) == points.ids[3]
    old = [point.vector for point in points.client.retrieve("items", points.ids[:1], with_vectors=True)]
    assert np.array_equal(old[0]["mine"] if points.keys else old[0], points.old[0])
    payload = points.client.retrieve(store.target, points.ids[:1])[0].payload
    assert payload == {"title": f"item {points.ids[0]}", "kind": 7, "refill_batch": 0}


def test_what_the_application_wrote_and_deleted_stays_so(points: Points, capsys: pytest.CaptureFixture[str]) -> None:
    store = points.store()
    store.push(points.rows(slice(0, 100)), RECORD)
    mine, lost = points.ids[5], points.ids[200]
    vector = {"embedding_new": [9.0] * NEW_DIM, "mine": [0.0] * OLD_DIM} if points.keys else [9.0] * NEW_DIM
    points.client.upsert(store.target, [models.PointStruct(id=mine, vector=vector, payload={"title": "new"})])
    points.client.delete("items", [lost])
    assert store.push(points.rows(), RECORD) == N - 2
    errors = capsys.readouterr().err
    assert "1 items are no longer in the collection" in errors
    assert "1 items keep the application's own new vector" in errors
    points.check(but=(5, 200))
    assert np.array_equal(points.found()[mine][0], np.full(NEW_DIM, 9, np.float32))
    assert lost not in points.found()
    assert store.push(points.rows([5], batch=3), RECORD) == 1
    assert points.found()[mine][1] == 3


def test_a_push_that_breaks_off_is_no_push(points: Points) -> None:
    def breaking() -> Iterator[pa.RecordBatch]:
        yield next(points.rows())
        raise UserError("the disk of the gallery is gone")

    store = points.store()
    with pytest.raises(UserError, match="is gone"):
        store.push(breaking(), RECORD)
    assert store.pushed() is None
    assert len(points.found()) == 100
    assert "not to its end; push first" in refusal(store.cutover)
    store.push(points.rows(slice(0, 248)), RECORD)
    message = refusal(store.cutover)
    assert "2 points lack a new vector, as " in message
    assert all(str(key) in message for key in points.ids[248:])
    store.push(points.rows(), RECORD)
    with pytest.raises(UserError, match="is gone"):
        store.push(breaking(), RECORD)
    assert store.pushed() is None
    store.push(points.rows(), RECORD)
    store.cutover()


def test_another_push_ends_the_first(points: Points) -> None:
    def meanwhile() -> Iterator[pa.RecordBatch]:
        for number, batch in enumerate(points.rows(shift=1)):
            if number == 1:
                points.store().push(points.rows(shift=2), RECORD)
            yield batch

    assert "another push has begun since" in refusal(lambda: points.store().push(meanwhile(), RECORD))
    points.check(shift=2)


def test_a_folder_and_uuids(tmp_path: Path) -> None:
    keys = {"url": None, "path": str(tmp_path / "qdrant")}
    client = qdrant_client.QdrantClient(path=keys["path"])
    points = make_points(client, KINDS["vector"], uuids=True, count=20)  # each costs a commit
    client.close()
    params = QdrantParams(collection="items", vector="mine", **keys)  # type: ignore[arg-type]
    store = Qdrant.open(params)
    assert "cannot be opened" in refusal(lambda: Qdrant.open(params))  # by two at once
    assert store.info().id_type == pa.string()
    assert [key for batch in store.read_old(9) for key in batch["id"].to_pylist()] == sorted(points.ids)
    assert store.push(points.rows(), RECORD) == 20
    store.cutover()
    store.client.close()
    again = Qdrant.open(params)
    assert again.pushed() == replace(RECORD, cut_over=True)
    Points(again.client, points.keys, points.ids, points.old, points.new).check()
    again.client.close()


def test_cosine_normalises_what_it_keeps(points: Points) -> None:
    store = points.store(distance="cosine")
    store.push(points.rows(), RECORD)
    found = points.found()
    for key, row in zip(points.ids, points.new.astype(np.float32), strict=True):
        assert np.allclose(found[key][0], row / np.linalg.norm(row), atol=1e-6)


def test_what_is_not_ours_stays(points: Points) -> None:
    if points.keys:
        dense = models.DenseVectorConfig(size=NEW_DIM, distance=models.Distance.EUCLID)
        points.client.create_vector_name("items", "embedding_new", models.DenseVectorNameConfig(dense=dense))
    else:
        points.client.create_collection("items_new", points.store().vectors[""])
    before = points.client.get_collection(points.store().target).points_count
    assert "which no push has written" in refusal(lambda: points.store().push(points.rows(), RECORD))
    assert points.client.get_collection(points.store().target).points_count == before


def test_vectors_of_another_size(points: Points) -> None:
    points.store().push(points.rows(), RECORD)
    wider = record_batches(points.ids, np.ones((N, 6), np.float16))
    message = refusal(lambda: points.store().push(wider, RECORD))
    assert "are 5-d by Euclid, what is pushed 6-d by Euclid; delete those first" in message
    points.check()


def test_a_collection_or_vector_that_is_not_there(points: Points, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no none" in refusal(lambda: points.store(collection="none"))
    assert "live is an alias" in refusal(lambda: points.store(collection="live"))
    assert "items has no such dense vector" in refusal(lambda: points.store(vector="other"))
    if not points.keys:
        assert "needs a server of 1.18 or later, and a name" in refusal(lambda: points.store(beside="vector"))
        points.store().push(points.rows(), RECORD)
        assert "store.alias: is missing" in refusal(points.store(alias=None).cutover)
        points.client.create_collection("third", points.store().vectors[""])
        points.client.update_collection_aliases(
            [models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name="third", alias_name="far"))]
        )
        assert "far is an alias of third" in refusal(points.store(alias="far").cutover)
    version = models.VersionInfo(title="", version="1.15.4", commit=None)
    monkeypatch.setattr(points.client, "info", lambda: version)
    assert "those of 1.16 and later" in refusal(points.store)
    version.version = "1.17.0"
    if points.keys:
        assert points.store().target == "items_new"
        points.store().push(points.rows(), RECORD)
        version.version = "1.18.0"  # a server that was renewed meanwhile
        assert points.store().pushed() == RECORD


def test_points_that_cannot_be_read_or_written(points: Points) -> None:
    bad = np.full((N, NEW_DIM), np.nan, np.float32)
    assert f"item {points.ids[0]} holds NaN" in refusal(
        lambda: points.store().push(record_batches(points.ids, bad), RECORD)
    )
    vector = {"mine": [0.0] * OLD_DIM} if points.keys else [0.0] * OLD_DIM
    points.client.upsert("items", [models.PointStruct(id=2**63, vector=vector, payload={"kind": "x"})])
    assert "ids of 2^63 and more" in refusal(lambda: list(points.store().read_old(N)))
    points.client.delete("items", [2**63])
    points.client.upsert("items", [models.PointStruct(id=str(uuid.UUID(int=1)), vector=vector)])
    assert "both numbers and UUIDs" in refusal(lambda: list(points.store().read_old(64)))
    points.client.set_payload("items", {"kind": "x"}, points=[min(points.ids)])
    assert "store.label_key: kind: " in refusal(lambda: list(points.store(label_key="kind").read_old(64)))


def test_a_second_collection_would_lack_further_vectors() -> None:
    client = qdrant_client.QdrantClient(":memory:")
    points = make_points(client, KINDS["vector"])
    dense = models.DenseVectorConfig(size=3, distance=models.Distance.DOT)
    client.create_vector_name("items", "third", models.DenseVectorNameConfig(dense=dense))
    store = points.store(beside="collection")
    assert "further vectors" in refusal(lambda: store.push(points.rows(), RECORD))
    assert not client.collection_exists("items_new")
    assert points.store().push(points.rows(), RECORD) == N


def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Connection refused" in refusal(lambda: Qdrant.open(QdrantParams(collection="x", url="http://127.0.0.1:1")))
    keys: dict[str, Any] = {"collection": "x", "url": "http://127.0.0.1:1", "api_key_env": "NO_SUCH_KEY"}
    assert "NO_SUCH_KEY is not set" in refusal(lambda: Qdrant.open(QdrantParams(**keys)))
    with pytest.raises(UserError, match="url, path: name one of them"):
        build(QdrantParams, {"collection": "x"}, "upgrade.yaml", "store.")
