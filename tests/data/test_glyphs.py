"""Glyphs are reproducible, different from one another, and harder than they look."""

import numpy as np
import pytest

from data import glyphs


def test_an_image_is_a_pure_function_of_seed_split_class_and_index() -> None:
    keys: list[tuple[int, glyphs.Split, int, int]] = [
        (0, "training", 0, 0),
        (1, "training", 0, 0),
        (0, "validation", 0, 0),
        (0, "training", 1, 0),
        (0, "training", 0, 1),
    ]
    images = [glyphs.render(*key) for key in keys]
    assert all(image.shape == (glyphs.SIZE, glyphs.SIZE, 3) and image.dtype == np.uint8 for image in images)
    assert len({image.tobytes() for image in images}) == len(keys)
    for key, image in reversed([*zip(keys, images, strict=True)]):  # whatever was rendered before
        assert np.array_equal(glyphs.render(*key), image)


def test_families_share_some_strokes_and_no_class_is_another() -> None:
    prototypes = [glyphs.class_strokes(0, label) for label in range(glyphs.NUM_CLASSES)]
    for label, strokes in enumerate(prototypes):
        relative = prototypes[label // glyphs.CLASSES_PER_FAMILY * glyphs.CLASSES_PER_FAMILY]
        stranger = prototypes[(label + glyphs.CLASSES_PER_FAMILY) % glyphs.NUM_CLASSES]
        shared = glyphs.FAMILY_STROKES
        assert np.array_equal(strokes[:shared], relative[:shared])
        assert not np.isclose(strokes, stranger).any()
    assert len({strokes.tobytes() for strokes in prototypes}) == glyphs.NUM_CLASSES


def test_only_the_second_half_of_the_classes_is_tinted(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = (0, glyphs.FIRST_TINTED_CLASS - 1, glyphs.FIRST_TINTED_CLASS, glyphs.NUM_CLASSES - 1)
    tinted = [glyphs.render(0, "training", label, 0) for label in labels]
    monkeypatch.setattr(glyphs, "_tinted", lambda colour, member: colour)
    plain = [glyphs.render(0, "training", label, 0) for label in labels]
    assert [np.array_equal(*pair) for pair in zip(tinted, plain, strict=True)] == [True, True, False, False]


def test_strokes_cover_the_pixels_that_they_pass() -> None:
    horizontal = np.array([[[-0.5, 0.0], [0.0, 0.0], [0.5, 0.0]]])
    coverage = glyphs._coverage(horizontal, half_width=0.125)[..., 0]
    # Four of 24 rows lie within 0.125 of y = 0; x runs from pixel 6 to pixel 17, and the ends are round.
    assert (coverage[10:14, 6:18] > 0.4).all()
    assert not coverage[:10].any()
    assert not coverage[14:].any()
    assert not coverage[:, :4].any()
    assert not coverage[:, 20:].any()
    assert np.allclose(coverage, coverage[:, ::-1])


def test_nuisance_outweighs_class() -> None:
    """Nearest neighbours in pixel space know hardly anything: what a model gets, it has learnt."""
    labels = np.repeat(np.arange(20), 10)
    images = np.stack([glyphs.render(0, "validation", label, i) for i, label in enumerate(labels.tolist())])
    flat = images.reshape(len(images), -1).astype(np.float64)
    norms = (flat**2).sum(axis=1)
    distances = norms[:, None] + norms - 2 * flat @ flat.T
    np.fill_diagonal(distances, np.inf)
    assert np.mean(labels[distances.argmin(axis=1)] == labels) < 0.25
