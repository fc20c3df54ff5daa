"""The plot of groups of queries while the gallery is backfilled: the figures of each, and the gap between them."""

from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from suites.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    ORDER_NAMES,
    PANELS,
    PURPLE,
    RED,
    LineStyle,
    draw_curve,
    frame_axes,
    save_figure,
)
from suites.report import percent
from suites.results import METRICS
from suites.summary import Groups, Row, Summary

ROW_COLOURS = (ORANGE, BLUE, GREEN, PURPLE, RED)
GROUP_STYLES: tuple[LineStyle, ...] = ("-", "--", ":", "-.")


def plot_groups(summary: Summary, path: Path) -> bool:
    """Plot CMC-1 and mAP of each group of queries, and below the gap, over the share of the gallery backfilled.

    A line shows the gap of the old model alone.

    A curve for each row with backfilling that asks for one; with several seeds it is their mean, in a band of one
    standard deviation to either side.

    Args:
        path: PNG file to write.

    Returns:
        Whether there were groups; nothing is written where there were none.
    """
    shown = [(row, row.groups) for row in summary.backfilling if row.groups is not None and row.curve]
    if not shown:
        return False
    metrics = [name for name in PANELS if all(name in groups.gaps for _, groups in shown)]
    names = dict.fromkeys(name for _, groups in shown for name in groups.curves)
    styles = dict(zip(names, cycle(GROUP_STYLES), strict=False))
    colours = dict(zip((_title(row, shown) for row, _ in shown), cycle(ROW_COLOURS), strict=False))
    figure = Figure(figsize=(5.2 * len(metrics), 7.4), layout="constrained")
    panels = figure.subplots(2, len(metrics), squeeze=False, sharex=True)
    for metric, (upper, lower) in zip(metrics, panels.T, strict=True):
        for row, groups in shown:
            colour = colours[_title(row, shown)]
            for name, curves in groups.curves.items():
                draw_curve(upper, row.fractions, curves[metric], styles[name], colour, f"_{name}", width=1.8)
            draw_curve(lower, row.fractions, groups.gaps[metric], "-", colour, "_gap", width=1.8)
        if summary.old_old_groups is not None and (old := summary.old_old_groups.gap[metric]) is not None:
            lower.axhline(old.mean, color=GREY, linewidth=1)
            lower.annotate(
                f"old/old  {percent(old)}",
                (1.0, old.mean),
                xytext=(-4, 3),
                textcoords="offset points",
                ha="right",
                va="bottom",
                color=GREY,
            )
        upper.set_ylabel(f"{METRICS[metric]} of a group (%)")
        lower.set_ylabel(f"gap in {METRICS[metric]} (points)")
        lower.set_xlabel("share of the gallery backfilled (%)")
        lower.set_ylim(bottom=0)
        for axes in (upper, lower):
            _in_percent(axes)
    handles = [Line2D([], [], color=GREY, linestyle=style, label=name) for name, style in styles.items()]
    handles += [Line2D([], [], color=colour, label=title) for title, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, handlelength=3, frameon=False)
    save_figure(figure, path)
    return True


def _title(row: Row, shown: list[tuple[Row, Groups]]) -> str:
    order = f"{ORDER_NAMES[str(row.order)]} order"
    return order if len({other.case for other, _ in shown}) == 1 else f"{row.case}, {order}"


def _in_percent(axes: Axes) -> None:
    axes.set_xlim(0, 1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda fraction, _: f"{100 * fraction:.4g}")
    frame_axes(axes)
