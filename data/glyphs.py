"""Glyphs: a data set rendered from code, for the quickstart and for tests. Synthetic; nothing is downloaded.

A class is a set of curved strokes. Classes come in families that share most of their strokes. In the first half of the
classes colour means nothing; in the second half each member of a family leans towards a tint of its own. So a model of
the first half has no use for colour and keeps little of it: as in life, the old embeddings lack what nobody had asked
of them when they were made. An image is the class's strokes under much nuisance: hand jitter, affine map, stroke width,
colours, texture, distractors, occlusion, blur, noise.

Every image is a pure function of (seed, split, class, index): neither the number of processes nor the number of images
rendered changes it.
"""

import multiprocessing
import os
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from data.preparation import encode_png, write_files

Split = Literal["training", "validation"]
Job = tuple[int, Split, int, int]  # seed, split, label, number of images

SIZE = 24  # pixels a side
NUM_CLASSES = 100
CLASSES_PER_FAMILY = 5

# The first word of every random stream, so that no two streams share a seed.
_STREAMS = {"family": 0, "member": 1, "training": 2, "validation": 3}

# A glyph: strokes are quadratic Bezier curves in the square [-1, 1]^2, drawn as chains of straight segments.
FAMILY_STROKES, MEMBER_STROKES = 3, 2
SEGMENTS_PER_STROKE = 4
STROKE_EXTENT = 0.75  # control points lie within +- this
STROKE_MIN_LENGTH = 0.6  # between the ends of a stroke
STROKE_BEND = 0.6  # the largest offset of the middle control point from the chord's middle

# The tints of a family's members: evenly spaced hues, vectors from grey in RGB.
FIRST_TINTED_CLASS = NUM_CLASSES // 2
TINT_CHROMA = 0.65  # length of a tint
TINT_SHARE = 0.35  # of a glyph's colour; the rest is random

# The nuisance. Pairs are the bounds of a uniform distribution. It is balanced so that a small network learns in a few
# epochs, yet errs often: half as much again and it learns next to nothing, half as much and it hardly errs.
JITTER = 0.06  # standard deviation of the control points
ROTATION = (-0.5, 0.5)  # radians
SCALE = (0.75, 1.05)  # per axis
SHEAR = (-0.2, 0.2)
TRANSLATION = (-0.15, 0.15)
HALF_WIDTH = (0.045, 0.11)
MIN_CONTRAST = 0.2  # between the mean levels of glyph and background; colours are in [0, 1]
TEXTURE_CELLS = (2, 4, 8, 16)  # texture noise has so many cells a side
BACKGROUND_TEXTURE = (0.0, 0.2)
STROKE_TEXTURE = (0.0, 0.1)
DISTRACTOR_PROBABILITY = 0.8
OCCLUDER_PROBABILITY = 0.6
OCCLUDER_SIDE = (0.25, 0.6)
BLUR = (0.0, 0.7)  # standard deviation in pixels
NOISE = (0.03, 0.11)  # standard deviation

_CENTRES = ((np.arange(SIZE) + 0.5) * (2 / SIZE) - 1).astype(np.float32)
_T = np.linspace(0, 1, SEGMENTS_PER_STROKE + 1)
_BERNSTEIN = np.stack([(1 - _T) ** 2, 2 * _T * (1 - _T), _T**2], axis=1)  # control points -> points of a stroke
_PIXELS_Y, _PIXELS_X = (axis.reshape(1, -1) for axis in np.meshgrid(_CENTRES, _CENTRES, indexing="ij"))


def class_name(label: int) -> str:
    """The folder name of a class; zero-padded, so that names sort as the labels do."""
    return f"{label:0{len(str(NUM_CLASSES - 1))}d}"


@cache
def class_strokes(seed: int, label: int) -> np.ndarray:
    """The prototype of a class: control points (strokes, 3, 2), the family's strokes first."""
    family = _generator("family", seed, label // CLASSES_PER_FAMILY)
    member = _generator("member", seed, label)
    return np.concatenate([_draw_strokes(family, FAMILY_STROKES), _draw_strokes(member, MEMBER_STROKES)])


def render(seed: int, split: Split, label: int, index: int) -> np.ndarray:
    """Image number `index` of a class: uint8 (SIZE, SIZE, 3)."""
    rng = _generator(split, seed, label, index)
    strokes = class_strokes(seed, label)
    strokes = strokes + rng.normal(scale=JITTER, size=strokes.shape)
    strokes = strokes @ _linear_map(rng) + rng.uniform(*TRANSLATION, size=2)
    background, foreground = _colours(rng)
    if label >= FIRST_TINTED_CLASS:
        foreground = _tinted(foreground, member=label % CLASSES_PER_FAMILY)
    half_width = rng.uniform(*HALF_WIDTH)

    image = background + _texture(rng, BACKGROUND_TEXTURE)
    if rng.uniform() < DISTRACTOR_PROBABILITY:
        image = _paint(image, _coverage(_draw_strokes(rng, 1), half_width), rng.uniform(size=3))
    image = _paint(image, _coverage(strokes, half_width), foreground + _texture(rng, STROKE_TEXTURE))
    if rng.uniform() < OCCLUDER_PROBABILITY:
        image = _paint(image, _box(rng), rng.uniform(size=3))
    image = _blur(image, rng.uniform(*BLUR))
    image = image + rng.normal(scale=rng.uniform(*NOISE), size=image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def lay_out(folder: Path, seed: int, train_per_class: int, validation_per_class: int) -> dict[str, int]:
    """Write so many images of each class as `SPLIT/CLASS/INDEX.png` into `folder`; returns the images per split."""
    per_class: dict[Split, int] = {"training": train_per_class, "validation": validation_per_class}
    jobs = [(seed, split, label, count) for split, count in per_class.items() for label in range(NUM_CLASSES)]
    # The workers only render: whatever becomes of this process, no other writes into the folder.
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        classes = tqdm(pool.imap_unordered(_render_class, jobs), "glyphs", total=len(jobs), unit=" class folders")
        for (_, split, label, _), contents in classes:
            folder_name = f"{split}/{class_name(label)}"
            write_files(folder, ((f"{folder_name}/{i:05d}.png", content) for i, content in enumerate(contents)))
    return {split: count * NUM_CLASSES for split, count in per_class.items()}


def _render_class(job: Job) -> tuple[Job, list[bytes]]:
    """The images of one class folder, as PNG files."""
    seed, split, label, count = job
    return job, [encode_png(render(seed, split, label, index)) for index in range(count)]


def _generator(stream: str, *key: int) -> np.random.Generator:
    return np.random.default_rng([_STREAMS[stream], *key])


def _draw_strokes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Control points (count, 3, 2) of random curves, none of them short."""
    strokes: list[np.ndarray] = []
    while len(strokes) < count:
        start, end = rng.uniform(-STROKE_EXTENT, STROKE_EXTENT, size=(2, 2))
        middle = (start + end) / 2 + rng.uniform(-STROKE_BEND, STROKE_BEND, size=2)
        if np.hypot(*(end - start)) >= STROKE_MIN_LENGTH:
            strokes.append(np.stack([start, middle, end]))
    return np.stack(strokes)


def _linear_map(rng: np.random.Generator) -> np.ndarray:
    """A random rotation, shear and scale (2, 2), for row vectors."""
    angle = rng.uniform(*ROTATION)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shear = np.array([[1.0, 0.0], [rng.uniform(*SHEAR), 1.0]])
    return np.diag(rng.uniform(*SCALE, size=2)) @ shear @ rotation


def _colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The colours (3,) of background and glyph. The glyph is the lighter one: with either polarity a network stays at
    chance for epochs before it learns anything, which is no part of the lesson."""
    while True:
        background, foreground = rng.uniform(size=(2, 3))
        if (foreground - background).sum() >= 3 * MIN_CONTRAST:
            return background, foreground


def _tinted(colour: np.ndarray, member: int) -> np.ndarray:
    """The colour (3,) drawn towards the tint of a family's member, as light as it was."""
    hue = 2 * np.pi * member / CLASSES_PER_FAMILY
    tint = TINT_CHROMA * (
        np.cos(hue) * np.array([1, -1, 0]) / np.sqrt(2) + np.sin(hue) * np.array([1, 1, -2]) / np.sqrt(6)
    )
    grey = colour.mean()
    return grey + (1 - TINT_SHARE) * (colour - grey) + TINT_SHARE * tint


def _texture(rng: np.random.Generator, strength: tuple[float, float]) -> np.ndarray:
    """Smooth coloured noise (SIZE, SIZE, 3) of zero mean, of random coarseness and strength."""
    cells = int(rng.choice(TEXTURE_CELLS))
    noise = rng.uniform(-1, 1, size=(cells, cells, 3)) * rng.uniform(*strength)
    position = (np.arange(SIZE) + 0.5) * cells / SIZE - 0.5
    weights = np.maximum(0, 1 - np.abs(position.clip(0, cells - 1)[:, None] - np.arange(cells)))  # bilinear
    return _apply_on_both_sides(weights, noise)


def _coverage(strokes: np.ndarray, half_width: float) -> np.ndarray:
    """How much of each pixel (SIZE, SIZE, 1) lies within `half_width` of the strokes; anti-aliased."""
    points = (_BERNSTEIN @ strokes).astype(np.float32)  # (strokes, points, 2)
    (x, y), (to_x, to_y) = (
        points[:, :-1].reshape(-1, 2).T[..., None],
        np.diff(points, axis=1).reshape(-1, 2).T[..., None],
    )
    from_x, from_y = _PIXELS_X - x, _PIXELS_Y - y  # (segments, pixels)
    nearest = ((from_x * to_x + from_y * to_y) / np.maximum(to_x**2 + to_y**2, 1e-12)).clip(0, 1)
    distance = np.sqrt(((from_x - nearest * to_x) ** 2 + (from_y - nearest * to_y) ** 2).min(axis=0))
    return (0.5 + (half_width - distance) * (SIZE / 2)).clip(0, 1).reshape(SIZE, SIZE, 1)


def _box(rng: np.random.Generator) -> np.ndarray:
    """A mask (SIZE, SIZE, 1) of a random axis-aligned box."""
    centre, sides = rng.uniform(-0.8, 0.8, size=2), rng.uniform(*OCCLUDER_SIDE, size=2)
    column, row = (np.abs(_CENTRES[None] - centre[:, None]) <= sides[:, None] / 2).astype(np.float32)
    return (row[:, None] * column[None])[..., None]


def _paint(image: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return image + mask * (colour - image)


def _blur(image: np.ndarray, deviation: float) -> np.ndarray:
    """A Gaussian blur whose weights are normalised at the borders."""
    if deviation < 0.1:
        return image
    step = np.arange(SIZE)
    kernel = np.exp(-0.5 * ((step[:, None] - step) / deviation) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return _apply_on_both_sides(kernel, image)


def _apply_on_both_sides(matrix: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Map rows, then columns, by `matrix` (SIZE, n): (n, n, 3) -> (SIZE, SIZE, 3)."""
    rows = (matrix @ image.reshape(len(image), -1)).reshape(SIZE, -1, 3)
    return matrix @ rows
