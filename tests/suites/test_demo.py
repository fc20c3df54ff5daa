"""The animation: the gallery fills, and what the frames show is what the evaluation found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from suites import demo
from suites.demo import Upgrade, write_demo
from suites.retrieval_examples import Embeddings

ITEMS, CUTOFFS = 24, [0, 8, 16, 24]


def upgrade() -> Upgrade:
    """Noise before, better after the transformation, class centres at the end."""
    rng = np.random.default_rng(0)
    labels = np.arange(ITEMS) // 6
    new, noise = np.eye(4)[labels], rng.normal(size=(3, ITEMS, 4))
    ids = rng.permutation(ITEMS)

    def items(rows: np.ndarray, log_variance: np.ndarray | None = None) -> Embeddings:
        return Embeddings(rows.astype(np.float32), ids, labels, log_variance)

    before = items(2 * noise[0])
    transformed = items(new + 0.6 * noise[1], np.abs(noise[1]).sum(1))
    return Upgrade((before, before), (items(new + 0.01 * noise[2]), transformed))


def test_the_most_uncertain_items_are_recomputed_first() -> None:
    shown = upgrade()
    new, old = shown.transformed
    assert old.log_variance is not None
    first = np.argsort(-old.log_variance)[:8]
    gallery = shown.gallery(8)
    for item in range(ITEMS):
        assert np.array_equal(gallery.rows[item], (new if item in first else old).rows[item])
    assert np.array_equal(shown.gallery(0).rows, old.rows)
    assert np.array_equal(shown.gallery(ITEMS).rows, new.rows)


def test_an_animation_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = []
    draw = demo._draw_frame

    def keep(frame: demo.Frame, *others: Any) -> Any:
        frames.append(frame)
        return draw(frame, *others)

    monkeypatch.setattr(demo, "_draw_frame", keep)
    curve = {"cutoffs": CUTOFFS, "fractions": [c / ITEMS for c in CUTOFFS], "map": [0.4, 0.6, 0.7, 0.8]}
    evaluation = {"distance_metric": "l2", "backfilling": {"sigma": curve, "random": curve}}
    baselines = {"old_old": {"map": 0.2}, "new_new": {"map": 0.8}}
    image = Image.new("RGB", (8, 8), (100, 0, 0))
    write_demo(upgrade(), evaluation, baselines, lambda item: image, tmp_path / "demo.gif")
    with Image.open(tmp_path / "demo.gif") as animation:
        assert animation.format == "GIF"
        assert animation.size[0] == 800
        assert getattr(animation, "n_frames") == 5  # noqa: B009 (typed as a plain image)
        assert animation.info["loop"] == 0
    assert [frame.point for frame in frames] == [None, 0, 1, 2, 3]
    labels = upgrade().transformed[0].labels
    right = [(labels[frame.hits] == labels[frame.hits][:, :1]).mean() for frame in frames]
    assert right[-1] == 1  # at the end each query finds five of one class
