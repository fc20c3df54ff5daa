"""The animation: the gallery fills, and what the frames show is what the evaluation found."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from suites import demo
from suites.demo import Upgrade, write_demo
from tests.suites.test_retrieval_examples import steps_of

ITEMS, CUTOFFS = 24, [0, 8, 16, 24]


@pytest.fixture
def upgrade() -> Upgrade:
    before, (new, transformed), _ = steps_of(classes=4, per_class=6)
    return Upgrade(before, (new, replace(transformed, log_variance=np.random.default_rng(0).normal(size=ITEMS))))


def test_the_most_uncertain_items_are_recomputed_first(upgrade: Upgrade) -> None:
    new, old = upgrade.transformed
    assert old.log_variance is not None
    first = np.argsort(-old.log_variance)[:8]
    gallery = upgrade.gallery(8)
    for item in range(ITEMS):
        assert np.array_equal(gallery.rows[item], (new if item in first else old).rows[item])
    assert np.array_equal(upgrade.gallery(0).rows, old.rows)
    assert np.array_equal(upgrade.gallery(ITEMS).rows, new.rows)


def test_an_animation_is_written(upgrade: Upgrade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    write_demo(upgrade, evaluation, baselines, lambda item: image, tmp_path / "demo.gif")
    with Image.open(tmp_path / "demo.gif") as animation:
        assert (animation.format, animation.size[0], animation.info["loop"]) == ("GIF", 800, 0)
        assert getattr(animation, "n_frames") == 5  # noqa: B009 (typed as a plain image)
    assert [frame.point for frame in frames] == [None, 0, 1, 2, 3]
    found = upgrade.transformed[0].labels[frames[-1].hits]
    assert (found == found[:, :1]).all()  # at the end each query finds five of one class
