"""Queries that show what an upgrade does, with their nearest gallery items before, during and after; their picture."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps

from suites.plots import GREEN, GREY, RED, save_figure

CANDIDATES = 1000  # queries among which examples are looked for
CHUNK = 256  # queries whose distances to the whole gallery are in memory at a time
STEPS = {  # title -> what is compared with what
    "before the upgrade": "old query, old gallery",
    "after the transformation": "new query, transformed gallery",
    "after full backfilling": "new query, new gallery",
}
THUMBNAIL = 128  # pixels a side of an example image, at most


@dataclass(frozen=True)
class Embeddings:
    """Embeddings with the ids and class labels of their items."""

    rows: np.ndarray  # (n, d) float32
    ids: np.ndarray  # (n,)
    labels: np.ndarray  # (n,)
    log_variance: np.ndarray | None = None  # (n,)

    def take(self, ids: np.ndarray) -> "Embeddings":
        """The items with these ids, in this order, without their log variance."""
        order = np.argsort(self.ids, kind="stable")
        chosen = order[np.searchsorted(self.ids, ids, sorter=order)]
        return Embeddings(self.rows[chosen], ids, self.labels[chosen])


@dataclass(frozen=True)
class Hits:
    """The items that a query found, nearest first, and which of them are of its class."""

    ids: list[int]
    right: list[bool]


@dataclass(frozen=True)
class Example:
    """A query with what it finds at each step of the upgrade."""

    query_id: int
    steps: list[Hits]


def nearest(queries: Embeddings, gallery: Embeddings, k: int, metric: str = "l2") -> np.ndarray:
    """Positions in `gallery` of the k items nearest to each query, itself excepted -> (q, k).

    `metric` is l2, or cosine for embeddings of length one.
    """
    q, g = queries.rows, gallery.rows
    if metric == "cosine":
        q, g = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (q, g))
    lengths = np.square(g).sum(axis=1)
    found = []
    for start in range(0, len(q), CHUNK):
        chunk = slice(start, start + CHUNK)
        distances = lengths - 2 * q[chunk] @ g.T  # (chunk, n); |q|^2 does not change a query's ranking
        distances[queries.ids[chunk, None] == gallery.ids] = np.inf
        closest = np.argpartition(distances, k, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(distances, closest, axis=1), axis=1, kind="stable")
        found.append(np.take_along_axis(closest, order, axis=1))
    return np.concatenate(found)


def choose_examples(
    steps: list[tuple[Embeddings, Embeddings]], count: int, k: int = 5, metric: str = "l2"
) -> list[Example]:
    """Pick queries that show the effect of an upgrade, of different classes as far as there are enough.

    Of a random sample those come first whose nearest item was wrong before the upgrade, is right ever after,
    and who find more of their class at every step.

    Args:
        steps: (queries, gallery) before the upgrade, after the transformation and after backfilling.
        count: how many; fewer where there are fewer queries.
        k: items a query finds.
    """
    first = steps[0][0]
    ids = np.random.default_rng(0).permutation(first.ids)[:CANDIDATES]
    k = min(k, *(len(gallery.ids) - 1 for _, gallery in steps))
    # A step each: (q, k) positions in its gallery, and whether these are of the query's class.
    positions = [nearest(queries.take(ids), gallery, k, metric) for queries, gallery in steps]
    labels = first.take(ids).labels
    rights = [gallery.labels[found] == labels[:, None] for (_, gallery), found in zip(steps, positions, strict=True)]
    top = [right[:, 0].astype(int) for right in rights]
    counts = [right.sum(axis=1) for right in rights]
    effect = 1 - top[0] + sum(top[1:]) + sum(b > a for a, b in pairwise(counts))
    ranked = np.argsort(-effect, kind="stable").tolist()
    _, first_of_class = np.unique(labels[ranked], return_index=True)
    ranked = [ranked[i] for i in sorted(first_of_class)] + [q for i, q in enumerate(ranked) if i not in first_of_class]
    return [
        Example(
            query_id=int(ids[q]),
            steps=[
                Hits(gallery.ids[found[q]].tolist(), right[q].tolist())
                for (_, gallery), found, right in zip(steps, positions, rights, strict=True)
            ],
        )
        for q in ranked[:count]
    ]


def plot_retrieval_examples(examples: list[Example], image_of: Callable[[int], Image.Image], path: Path) -> None:
    """Draw each query with its nearest gallery images at every step; right and wrong are framed and marked.

    Args:
        examples: as `choose_examples` gives them.
        image_of: the RGB image of an item's id.
        path: PNG file to write.
    """
    k = len(examples[0].steps[0].ids)
    gap, margin = 0.3, 0.55  # between blocks, and above for their titles, in images
    width = 1 + len(STEPS) * (gap + k)
    figure = Figure(figsize=(0.9 * width, 0.9 * (len(examples) + margin)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(len(examples), -margin)
    axes.set_axis_off()
    axes.text(0.5, -0.24, "query", ha="center", va="bottom", fontsize=12)
    starts = [1 + gap + step * (k + gap) for step in range(len(STEPS))]
    for start, (title, compared) in zip(starts, STEPS.items(), strict=True):
        axes.text(start + k / 2, -0.24, title, ha="center", va="bottom", fontsize=12)
        axes.text(start + k / 2, -0.05, compared, ha="center", va="bottom", fontsize=9, color=GREY)
    for y, example in enumerate(examples):
        draw_image(axes, image_of(example.query_id), 0, y)
        for start, hits in zip(starts, example.steps, strict=True):
            for rank, (item, right) in enumerate(zip(hits.ids, hits.right, strict=True)):
                draw_image(axes, image_of(item), start + rank, y, right)
    save_figure(figure, path)


def draw_image(axes: Axes, image: Image.Image, x: float, y: float, right: bool | None = None) -> None:
    """Draw an image, cut to a square, into the unit cell whose upper left corner is (x, y).

    What a query found is framed in a colour for right or wrong and has a tick or a cross in the lower right corner, so
    that colour is not the only sign; a query itself (None) is framed in grey.
    """
    side = min(THUMBNAIL, *image.size)
    left, top, size = x + 0.06, y + 0.06, 0.88
    square = ImageOps.fit(image, (side, side))
    axes.imshow(square, extent=(left, left + size, top + size, top), interpolation="nearest", aspect="auto")
    colour = GREY if right is None else GREEN if right else RED
    axes.add_patch(Rectangle((left, top), size, size, fill=False, edgecolor=colour, linewidth=3))
    if right is not None:
        axes.text(
            x + 0.81,
            y + 0.81,
            "✓" if right else "✗",
            color="white",
            fontsize=10,
            fontweight="bold",
            ha="center",
            va="center",
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": colour, "edgecolor": "white"},
        )
