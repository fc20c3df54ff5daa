"""The two pictures of a suite: the backfilling curves, and queries with what they find."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from PIL import Image, ImageOps

from suites.report import METRICS
from suites.retrieval_examples import Example
from utils.files import atomic_path

# Okabe and Ito's palette, whose colours differ for colour-blind readers too.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666"
CASE_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
ORDER_STYLES = {"sigma": "-", "random": "--", "distance": ":"}
ORDER_NAMES = {"sigma": "sigma", "random": "random", "distance": "distance (oracle)"}
STEPS = {  # title -> what is compared with what
    "before the upgrade": "old query, old gallery",
    "after the transformation": "new query, transformed gallery",
    "after full backfilling": "new query, new gallery",
}
THUMBNAIL = 128  # pixels a side of an example image, at most


def plot_backfilling(results: dict[str, Any], path: Path) -> None:
    """Plot CMC-1 and mAP over the share of the gallery backfilled, a curve for each row that was run.

    Args:
        results: as `suites.report.collect_results` gives them.
        path: PNG file to write.
    """
    rows = [row for row in results["backfilling"] if row["measured"] is not None]
    metrics = [name for name in ("cmc_top1", "map") if results["baselines"]["new_new"][name] is not None]
    figure = Figure(figsize=(5.2 * len(metrics), 5.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        _plot_metric(axes, rows, results, metric)
    _save(figure, path)


def _plot_metric(axes: Axes, rows: list[dict[str, Any]], results: dict[str, Any], metric: str) -> None:
    for name, position, side, inset in (("new_new", 0.0, "left", 4), ("old_old", 1.0, "right", -4)):
        level = results["baselines"][name][metric]
        axes.axhline(level, color=GREY, linewidth=1)
        text = f"{name.replace('_', '/')}  {100 * level:.1f}"
        axes.annotate(
            text, (position, level), xytext=(inset, 3), textcoords="offset points", ha=side, va="bottom", color=GREY
        )
    cases = list(dict.fromkeys((row["case"], row["side_info"]) for row in rows))
    for row in sorted(rows, key=lambda row: -row["measured"][metric]):
        curve = results["evaluations"][row["stage"]]["backfilling"][row["order"]]
        colour = CASE_COLOURS[cases.index((row["case"], row["side_info"])) % len(CASE_COLOURS)]
        side_info = " + side-info" if row["side_info"] else ""
        method = row["case"].removesuffix(" new/old") + side_info
        axes.plot(
            curve["fractions"],
            curve[metric],
            ORDER_STYLES[row["order"]],
            color=colour,
            linewidth=2.5 if row["order"] == "sigma" else 1.8,
            label=f"{method}, {ORDER_NAMES[row['order']]}: {100 * row['measured'][metric]:.1f}",
        )
    axes.set_title(METRICS[metric])
    axes.set_xlabel("share of the gallery backfilled")
    axes.set_xlim(0, 1)
    axes.margins(y=0.08)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if rows:
        axes.legend(
            title="method, order of backfilling: area under the curve",
            title_fontsize=9,
            fontsize=9,
            handlelength=3,
            frameon=False,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.14),
        )


def plot_retrieval_examples(examples: list[Example], image_of: Callable[[int], Image.Image], path: Path) -> None:
    """Draw each query with its nearest gallery images at every step; right and wrong are framed and marked.

    Args:
        examples: as `suites.retrieval_examples.choose_examples` gives them.
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
        _draw(axes, image_of(example.query_id), 0, y, frame=GREY)
        for start, hits in zip(starts, example.steps, strict=True):
            for rank, (item, right) in enumerate(zip(hits.ids, hits.right, strict=True)):
                _draw(axes, image_of(item), start + rank, y, frame=GREEN if right else RED)
                _mark(axes, start + rank, y, right)
    _save(figure, path)


def _draw(axes: Axes, image: Image.Image, x: float, y: float, frame: str) -> None:
    side = min(THUMBNAIL, *image.size)
    left, top, size = x + 0.06, y + 0.06, 0.88
    square = ImageOps.fit(image, (side, side))
    axes.imshow(square, extent=(left, left + size, top + size, top), interpolation="nearest", aspect="auto")
    axes.add_patch(Rectangle((left, top), size, size, fill=False, edgecolor=frame, linewidth=3))


def _mark(axes: Axes, x: float, y: float, right: bool) -> None:
    """A tick or a cross in the image's lower right corner, so that colour is not the only sign."""
    axes.text(
        x + 0.81,
        y + 0.81,
        "✓" if right else "✗",
        color="white",
        fontsize=10,
        fontweight="bold",
        ha="center",
        va="center",
        bbox={"boxstyle": "circle,pad=0.15", "facecolor": GREEN if right else RED, "edgecolor": "white"},
    )


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, facecolor="white", metadata={"Software": None})
