"""A gallery in a real Postgres: what is read, pushed, switched and switched back."""

import uuid
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.upgrade.ends.conftest import NEW_DIM, OLD_DIM, RECORD, Database, Gallery, record_batches, same


def test_what_is_read_is_what_is_stored(gallery: Gallery) -> None:
    gallery.database.run("INSERT INTO items VALUES (99999, NULL)")
    store = gallery.store()
    info = store.info()
    assert (info.rows, info.without, info.dim, info.id_type) == (500, 1, OLD_DIM, pa.int64())
    read = pa.Table.from_batches(store.read_old(64))
    order = np.argsort(gallery.ids)
    assert read["id"].to_numpy().tolist() == gallery.ids[order].tolist()
    vectors = read["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, OLD_DIM)
    assert np.array_equal(vectors, gallery.old[order])


def test_push_cutover_and_back(gallery: Gallery) -> None:
    store, database = gallery.store(), gallery.database
    assert store.pushed() is None
    assert store.push(gallery.rows(), RECORD) == 500
    assert store.pushed() == RECORD
    assert same(database.vectors("embedding_new"), gallery.expected())
    old = database.vectors("embedding")
    for _ in range(2):
        store.cutover()
        assert same(database.vectors("embedding"), gallery.expected())
        assert same(database.vectors("embedding_old"), old)
    assert store.info().dim == OLD_DIM
    assert store.pushed() == replace(RECORD, cut_over=True)
    for _ in range(2):
        store.undo_cutover()
        assert same(database.vectors("embedding"), old)
    assert store.pushed() == RECORD
