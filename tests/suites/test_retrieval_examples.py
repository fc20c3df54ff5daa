"""Examples: the nearest items as scikit-learn's distances rank them, and queries that show the effect."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import pairwise_distances

from suites.plots import GREEN, RED
from suites.retrieval_examples import Embeddings, Example, Hits, choose_examples, nearest, plot_retrieval_examples


@pytest.mark.parametrize(("metric", "name"), [("l2", "euclidean"), ("cosine", "cosine")])
def test_nearest_agrees_with_sorting_all_distances(metric: str, name: str) -> None:
    rng = np.random.default_rng(0)
    ids = rng.permutation(600)
    gallery = Embeddings(rng.normal(size=(600, 5)), ids, np.zeros(600))
    queries = Embeddings(rng.normal(size=(300, 5)), ids[300:], np.zeros(300))  # more than a chunk of them
    found = nearest(queries, gallery, k=4, metric=metric)
    ranked = pairwise_distances(queries.rows, gallery.rows, metric=name).argsort(axis=1)
    for query, places, expected in zip(queries.ids, found, ranked, strict=True):
        assert places.tolist() == [place for place in expected if gallery.ids[place] != query][:4]


def steps_of(classes: int = 6, per_class: int = 10) -> list[tuple[Embeddings, Embeddings]]:
    """Noise, better, perfect: class centres under less and less noise."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(classes), per_class)
    centres, ids = np.eye(classes)[labels], np.arange(len(labels))
    old, transformed, new = (
        Embeddings(centres + scale * rng.normal(size=centres.shape), ids, labels) for scale in (2, 0.5, 0.05)
    )
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
        for hits in example.steps:  # right is the class of the query, which never finds itself
            assert hits.right == [item // 10 == example.query_id // 10 for item in hits.ids]
            assert example.query_id not in hits.ids


def test_the_same_examples_every_time_whatever_the_order_of_the_files() -> None:
    steps = steps_of()
    turned = [(queries, Embeddings(g.rows[::-1], g.ids[::-1], g.labels[::-1])) for queries, g in steps]
    assert choose_examples(steps, count=4) == choose_examples(steps, count=4) == choose_examples(turned, count=4)


def test_fewer_classes_and_items_than_asked_for() -> None:
    examples = choose_examples(steps_of(classes=2, per_class=2), count=9)
    assert len(examples) == 4
    assert {len(hits.ids) for example in examples for hits in example.steps} == {3}


def test_right_and_wrong_are_framed_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr("suites.retrieval_examples.save_figure", lambda figure, path: figures.append(figure))
    rights = [[False, False], [True, False], [True, True]]
    examples = [Example(9, [Hits([10 * step, 10 * step + 1], right) for step, right in enumerate(rights)])] * 3
    drawn = []

    def image_of(item: int) -> Image.Image:
        drawn.append(item)
        return Image.new("RGB", (40, 20 + item))

    plot_retrieval_examples(examples, image_of, Path("examples.png"))
    assert drawn == [9, 0, 1, 10, 11, 20, 21] * 3
    (axes,) = figures[0].axes
    marks = [text.get_text() for text in axes.texts if text.get_text() in "✓✗"]
    assert marks == ["✗", "✗", "✓", "✗", "✓", "✓"] * 3
    frames = [to_hex(patch.get_edgecolor(), keep_alpha=False).upper() for patch in axes.patches]
    assert frames[1:7] == [GREEN if mark == "✓" else RED for mark in marks[:6]]
    sides = {np.asarray(image.get_array()).shape[:2] for image in axes.images}  # cut to squares
    assert sides == {(side, side) for side in (29, 20, 21, 30, 31, 40)}
