"""An animation of an upgrade: the gallery being backfilled, retrieval getting better, and what a few queries find."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from suites.plots import BLUE, GREY, ORANGE, frame_axes
from suites.results import METRICS, Results
from suites.retrieval_examples import Embeddings, Example, choose_examples, draw_image, nearest
from utils.files import atomic_path

QUERIES, K = 5, 5
GAP, HEADING = 0.35, 0.35  # between a query and what it finds, and above them for titles; in images
COLUMNS, LINES = 48, 8  # of the gallery's cells, an item each
SIZE, DPI = (8.0, 4.2), 100  # inches; 800 pixels wide
COLOURS = 96  # of the palette
FIRST, STEP, LAST = 1800, 260, 3000  # milliseconds that frames stay
ORDERS = {"sigma": ("-", BLUE, "most uncertain first"), "random": ("--", ORANGE, "random order")}


@dataclass(frozen=True)
class Upgrade:
    """Queries and gallery before an upgrade and after the transformation, which has a log variance of each item."""

    before: tuple[Embeddings, Embeddings]
    transformed: tuple[Embeddings, Embeddings]  # the queries are the new embeddings of the gallery's items

    def gallery(self, cutoff: int) -> Embeddings:
        """The gallery of which the `cutoff` most uncertain items are recomputed."""
        new, old = self.transformed
        return Embeddings(np.where((self.rank < cutoff)[:, None], new.rows, old.rows), old.ids, old.labels)

    @cached_property
    def rank(self) -> np.ndarray:
        """The place of each item in the sigma order, (n,)."""
        log_variance = self.transformed[1].log_variance
        assert log_variance is not None
        return np.argsort(np.argsort(-log_variance, kind="stable"))


@dataclass(frozen=True)
class Frame:
    """One picture of the animation."""

    title: str
    point: int | None  # of the curves; None before the upgrade
    hits: np.ndarray  # (QUERIES, K) positions in the gallery


def write_demo(
    upgrade: Upgrade, evaluation: Results, baselines: Results, image_of: Callable[[int], Image.Image], path: Path
) -> None:
    """Write the animation, a GIF that repeats.

    Args:
        evaluation: of the transformed gallery, with the orders of ORDERS, as eval.py writes it.
        baselines: the metrics of `old_old` and `new_new`.
        image_of: the RGB image of an item's id.
    """
    curves, metric = evaluation["backfilling"], evaluation["distance_metric"]
    cutoffs = curves["sigma"]["cutoffs"]
    parts = [(upgrade.transformed[0], upgrade.gallery(cutoffs[i * (len(cutoffs) - 1) // 3])) for i in range(4)]
    examples = choose_examples([upgrade.before, *parts], QUERIES, K, metric)
    figures = [
        _draw_frame(frame, upgrade, examples, curves, baselines, image_of)
        for frame in _frames(upgrade, examples, cutoffs, metric)
    ]
    pictures = [_rasterise(figure) for figure in figures]
    palette = _stacked([pictures[0], pictures[len(pictures) // 2], pictures[-1]]).quantize(COLOURS)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    times = [FIRST, FIRST, *[STEP] * (len(frames) - 3), LAST]
    with atomic_path(path) as temporary:
        frames[0].save(
            temporary, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True
        )


def _frames(upgrade: Upgrade, examples: list[Example], cutoffs: list[int], metric: str) -> Iterator[Frame]:
    ids = np.array([example.query_id for example in examples])
    old = nearest(upgrade.before[0].take(ids), upgrade.before[1], K, metric)
    yield Frame("The old model: its queries, its gallery", None, old)
    queries = upgrade.transformed[0].take(ids)
    for point, cutoff in enumerate(cutoffs):
        share = f"{100 * cutoff / cutoffs[-1]:.0f} % of the gallery recomputed"
        title = f"The new model's queries: {'transformed gallery, nothing recomputed' if point == 0 else share}"
        yield Frame(title, point, nearest(queries, upgrade.gallery(cutoff), K, metric))


def _draw_frame(
    frame: Frame,
    upgrade: Upgrade,
    examples: list[Example],
    curves: Results,
    baselines: Results,
    image_of: Callable[[int], Image.Image],
) -> Figure:
    figure = Figure(figsize=SIZE, dpi=DPI, facecolor="white")
    figure.text(0.5, 0.955, frame.title, ha="center", va="center", fontsize=13, fontweight="bold")
    _draw_curves(figure.add_axes((0.075, 0.42, 0.385, 0.47)), frame, curves, baselines)
    _draw_gallery(figure.add_axes((0.075, 0.04, 0.385, 0.2)), frame, upgrade, curves)
    _, gallery = upgrade.before if frame.point is None else upgrade.transformed
    cell = 0.5 / (1 + GAP + K)  # an image's share of the width
    height = cell * (HEADING + QUERIES) * SIZE[0] / SIZE[1]
    _draw_hits(figure.add_axes((0.49, 0.91 - height, 0.5, height)), frame, examples, gallery, image_of)
    return figure


def _draw_curves(axes: Axes, frame: Frame, curves: Results, baselines: Results) -> None:
    name = "map" if curves["sigma"]["map"] is not None else "cmc_top1"
    levels = {key: baselines[key][name] for key in ("old_old", "new_new")}
    for key, level in levels.items():
        axes.axhline(100 * level, color=GREY, linewidth=1)
        axes.text(0.99, 100 * level, f"{key.replace('_', '/')} {100 * level:.1f}", ha="right", va="bottom", color=GREY)
    for order, (style, colour, label) in ORDERS.items():
        shown = 0 if frame.point is None else frame.point + 1
        places, values = curves[order]["fractions"][:shown], [100 * value for value in curves[order][name][:shown]]
        axes.plot(places, values, style, color=colour, linewidth=2.5, label=label)
        axes.plot(places[-1:], values[-1:], "o", color=colour, clip_on=False)
    lowest, highest = 100 * levels["old_old"], 100 * levels["new_new"]
    axes.set_xlim(0, 1)
    axes.set_ylim(lowest - 0.06 * (highest - lowest), highest + 0.14 * (highest - lowest))
    axes.xaxis.set_major_formatter(lambda fraction, _: f"{100 * fraction:.4g}")
    axes.set_xlabel("share of the gallery recomputed (%)")
    axes.set_ylabel(f"{METRICS[name]} (%)")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.08), frameon=False)
    frame_axes(axes)


def _draw_gallery(axes: Axes, frame: Frame, upgrade: Upgrade, curves: Results) -> None:
    """A sample of the gallery: the darker the more uncertain, blue where it is recomputed (sigma order)."""
    sample = np.random.default_rng(0).permutation(len(upgrade.rank))[: COLUMNS * LINES]
    rank = upgrade.rank[sample]
    doubt = 1 - rank / len(upgrade.rank)  # 1: the most uncertain
    cells = 1 - doubt[:, None] * (1 - np.array(to_rgb("#555555"))) * 0.9
    if frame.point is not None:
        cells[rank < curves["sigma"]["cutoffs"][frame.point]] = to_rgb(BLUE)
    cells = np.concatenate([cells, np.ones((COLUMNS * LINES - len(cells), 3))])
    axes.imshow(cells.reshape(LINES, COLUMNS, 3), interpolation="nearest", aspect="auto")
    axes.set_xticks(np.arange(COLUMNS + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(LINES + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    axes.set_title("gallery: the darker the less certain, blue: recomputed", fontsize=9, color=GREY)
    axes.spines[:].set_visible(False)


def _draw_hits(
    axes: Axes, frame: Frame, examples: list[Example], gallery: Embeddings, image_of: Callable[[int], Image.Image]
) -> None:
    axes.set_xlim(0, 1 + GAP + K)
    axes.set_ylim(QUERIES, -HEADING)
    axes.set_axis_off()
    axes.text(0.5, -0.1, "query", ha="center", va="bottom", fontsize=10)
    axes.text(1 + GAP + K / 2, -0.1, "nearest in the gallery", ha="center", va="bottom", fontsize=10)
    labels: dict[int, Any] = dict(zip(gallery.ids.tolist(), gallery.labels.tolist(), strict=True))
    for y, (example, found) in enumerate(zip(examples, frame.hits, strict=True)):
        draw_image(axes, image_of(example.query_id), 0, y)
        for rank, item in enumerate(gallery.ids[found].tolist()):
            draw_image(axes, image_of(item), 1 + GAP + rank, y, labels[item] == labels[example.query_id])


def _stacked(pictures: list[Image.Image]) -> Image.Image:
    """One picture with all of these, whose colours a palette should have."""
    return Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures]))


def _rasterise(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return Image.open(buffer).convert("RGB")
