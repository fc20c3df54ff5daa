"""Examples: the nearest items as a naive loop finds them, and queries that show the effect."""

import numpy as np
import pytest

from suites.retrieval_examples import Embeddings, choose_examples, nearest


def embeddings(rows: np.ndarray, labels: np.ndarray, ids: np.ndarray | None = None) -> Embeddings:
    return Embeddings(rows.astype(np.float32), np.arange(len(rows)) if ids is None else ids, labels)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_nearest_agrees_with_a_naive_loop(metric: str) -> None:
    rng = np.random.default_rng(0)
    ids = rng.permutation(600)
    gallery = embeddings(rng.normal(size=(600, 5)), np.zeros(600), ids)
    queries = embeddings(rng.normal(size=(300, 5)), np.zeros(300), ids[300:])  # more than a chunk of them
    found = nearest(queries, gallery, k=4, metric=metric)
    for q, item in enumerate(queries.ids):
        row = queries.rows[q]
        if metric == "l2":
            distances = [np.linalg.norm(row - other) for other in gallery.rows]
        else:
            distances = [-row @ other / np.linalg.norm(row) / np.linalg.norm(other) for other in gallery.rows]
        ranked = [i for i in np.argsort(distances) if gallery.ids[i] != item]
        assert found[q].tolist() == ranked[:4]


def steps_of(classes: int = 6, per_class: int = 10) -> list[tuple[Embeddings, Embeddings]]:
    """Noise, better, perfect: class centres under less and less noise."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(classes), per_class)
    centres = np.eye(classes)[labels]
    old, transformed, new = (embeddings(centres + s * rng.normal(size=centres.shape), labels) for s in (2, 0.5, 0.05))
    return [(old, old), (new, transformed), (new, new)]


def test_examples_show_the_effect_on_different_classes() -> None:
    examples = choose_examples(steps_of(), count=4)
    assert len({example.query_id // 10 for example in examples}) == 4
    for example in examples:
        before, transformed, after = example.steps
        assert not before.right[0]
        assert transformed.right[0]
        assert after.right == [True] * 5
        assert sum(before.right) < sum(transformed.right)


def test_right_is_the_class_of_the_query_and_never_the_query_itself() -> None:
    for example in choose_examples(steps_of(), count=6):
        for hits in example.steps:
            assert hits.right == [item // 10 == example.query_id // 10 for item in hits.ids]
            assert example.query_id not in hits.ids


def test_the_same_examples_every_time_whatever_the_order_of_the_files() -> None:
    steps = steps_of()
    turned = [
        (queries, Embeddings(gallery.rows[::-1], gallery.ids[::-1], gallery.labels[::-1])) for queries, gallery in steps
    ]
    assert choose_examples(steps, count=4) == choose_examples(steps, count=4) == choose_examples(turned, count=4)


def test_fewer_classes_and_items_than_asked_for() -> None:
    examples = choose_examples(steps_of(classes=2, per_class=2), count=9)
    assert len(examples) == 4
    assert {len(hits.ids) for example in examples for hits in example.steps} == {3}
