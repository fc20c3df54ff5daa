"""The plots of a suite: backfilling curves, the areas under them, and how good each order is."""

from itertools import cycle
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from suites.report import RISKS, percent
from suites.results import METRICS
from suites.summary import Figure as Spread
from suites.summary import Figures, Row, Summary
from utils.files import atomic_path

# Okabe and Ito's palette, whose colours differ for colour-blind readers too.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY = "#666666"
CASE_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY)
LineStyle = Literal["-", "--", "-.", ":"] | tuple[int, tuple[int, ...]]
ORDER_STYLES: dict[str, tuple[LineStyle, str, str]] = {  # of lines: dashes, marks of areas, their colour
    "sigma": ("-", "D", BLUE),
    "random": ("--", "o", GREY),
    "distance": (":", "x", ORANGE),
    "auto": ((0, (10, 2)), "P", GREEN),
    "confidence": ("-.", "s", GREEN),
    "gain": ((0, (1, 2)), "h", RED),
    "density": ((0, (2, 2)), "p", PURPLE),
    "entropy": ((0, (5, 1, 1, 1, 1, 1)), "v", PURPLE),
    "class_distance": ((0, (1, 3)), "^", RED),
    "knn_disagreement": ((0, (7, 3)), "<", BLUE),
    "oracle": ((0, (1, 1)), "*", ORANGE),
}
RISK_BOUNDS: dict[str, tuple[Literal["-", "--"], str]] = {  # thin lines to compare the curves of orders with
    "random": ("--", "random order"),
    "oracle": ("-", "smallest risk first"),
}
ORDER_NAMES = {name: name.replace("_", " ") for name in ORDER_STYLES} | {
    "distance": "distance (oracle)",
    "oracle": "true error (oracle)",
}
PANELS = ("cmc_top1", "map")


def plot_backfilling(summary: Summary, path: Path) -> None:
    """Plot CMC-1 and mAP over the share of the gallery backfilled, a curve for each row that was run and asks for one.

    With several seeds a curve is their mean, in a band of one standard deviation to either side.

    Args:
        path: PNG file to write.
    """
    rows = [row for row in summary.backfilling if row.measured is not None and row.curve]
    metrics = [name for name in PANELS if summary.new_new[name] is not None]
    rows.sort(key=lambda row: -_known(row.measured, metrics[0]).mean)
    figure = Figure(figsize=(5.2 * len(metrics), 4.2 + 0.12 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        _plot_metric(axes, rows, summary, metric)
    if rows:
        areas = " and ".join(METRICS[metric] for metric in metrics)
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            title=f"method, order of backfilling: area under the curve, {areas}",
            loc="outside lower center",
            ncols=len(metrics),
            handlelength=3,
            frameon=False,
        )
    save_figure(figure, path)


def _known(figures: Figures | None, metric: str) -> Spread:
    """A figure to draw; zero where it was not computed."""
    return (figures or {}).get(metric) or Spread(0.0)


def _plot_metric(axes: Axes, rows: list[Row], summary: Summary, metric: str) -> None:
    for name, figures in {"new/new": summary.new_new, "old/old": summary.old_old}.items():
        level = _known(figures, metric)
        axes.axhline(level.mean, color=GREY, linewidth=1)
        label = f"{name}\n{percent(level)}"  # beside the panel, where no curve crosses it
        axes.annotate(label, (1, level.mean), xytext=(4, 0), textcoords="offset points", va="center", color=GREY)
    colours = _colours(summary)
    for row in rows:
        _draw_order(axes, row, row.fractions, row.curves[metric], colours[_method(row)], _label(row))
    axes.set_xlabel("share of the gallery backfilled (%)")
    axes.set_ylabel(f"{METRICS[metric]} (%)")
    axes.set_xlim(0, 1)
    axes.margins(y=0.08)
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda fraction, _: f"{100 * fraction:.4g}")
    frame_axes(axes)


def _colours(summary: Summary) -> dict[str, str]:
    """The colour of each method that the plots of curves show, the same in all of them."""
    methods = dict.fromkeys(_method(row) for row in summary.backfilling if row.curve)
    return dict(zip(methods, cycle(CASE_COLOURS), strict=False))


def plot_areas(summary: Summary, path: Path) -> None:
    """Plot the area under the backfilling curve of each row that was run, a line for each method and a mark an order.

    With several seeds a bar reaches one standard deviation to either side.

    Args:
        path: PNG file to write.
    """
    rows = [row for row in summary.backfilling if row.measured is not None]
    metrics = [name for name in PANELS if summary.new_new[name] is not None]
    methods = list(dict.fromkeys(map(_method, rows)))
    figure = Figure(figsize=(4.6 * len(metrics), 1.4 + 0.5 * len(methods)), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        for order, (_, mark, colour) in ORDER_STYLES.items():
            of_order = [row for row in rows if row.order == order]
            if not of_order:
                continue
            areas = [_known(row.measured, metric) for row in of_order]
            axes.errorbar(
                [100 * area.mean for area in areas],
                [methods.index(_method(row)) for row in of_order],
                xerr=[100 * (area.deviation or 0.0) for area in areas],
                fmt=mark,
                color=colour,
                capsize=3,
                label=ORDER_NAMES[order],
            )
        full = {_method(row): 100 * _known(row.new_new, metric).mean for row in rows}
        axes.vlines(
            [full[method] for method in methods],
            [place - 0.5 for place in range(len(methods))],
            [place + 0.5 for place in range(len(methods))],
            color=GREY,
            linewidth=1,
            label="new/new",
        )
        axes.set_xlabel(f"AUC {METRICS[metric]} (%)")
        axes.set_yticks(range(len(methods)), methods)
        axes.set_ylim(len(methods) - 0.5, -0.5)  # the first at the top
        frame_axes(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, path)


def plot_risk_coverage(summary: Summary, path: Path) -> bool:
    """Plot each risk over the share of items kept, those backfilled last: a curve for each row that asks for one.

    Rows whose order was not judged have none. Each method's curves lie above that of the smallest risk first, and those
    of orders better than a random one below the mean risk of all items.

    Args:
        path: PNG file to write.

    Returns:
        Whether there was an order to judge; nothing is written where there was none.
    """
    rows = [row for row in summary.backfilling if row.risks and row.curve]
    if not rows:
        return False
    names = [name for name in RISKS if any(name in row.risks for row in rows)]
    figure = Figure(figsize=(4.6 * len(names), 4.6 + 0.08 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        _plot_risk(axes, [row for row in rows if name in row.risks], _colours(summary), name)
    lines = [line for line in panels[0].lines if not str(line.get_label()).startswith("_")]
    bounds = [
        Line2D([], [], linestyle=style, color=GREY, linewidth=1, label=meaning)
        for style, meaning in RISK_BOUNDS.values()
    ]
    figure.legend(
        handles=[*lines, *bounds],
        title="method, order of backfilling; thin, in the method's colour: a random order, and the best there can be",
        loc="outside lower center",
        ncols=3,
        handlelength=3,
        frameon=False,
    )
    save_figure(figure, path)
    return True


def _plot_risk(axes: Axes, rows: list[Row], colours: dict[str, str], name: str) -> None:
    for method, row in {_method(row): row for row in reversed(rows)}.items():  # what is no order's, once a method
        for bound, (style, _) in RISK_BOUNDS.items():
            risk = row.risks[name]
            draw_curve(axes, risk.coverages, risk.curves[bound], style, colours[method], f"_{bound}", width=1)
    for row in rows:
        risk, label = row.risks[name], f"{_method(row)}, {ORDER_NAMES[str(row.order)]}"
        _draw_order(axes, row, risk.coverages, risk.curves["kept"], colours[_method(row)], label)
    axes.set_xlabel("share of the items kept, backfilled last (%)")
    axes.set_ylabel(f"mean {RISKS[name]} of those kept")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda fraction, _: f"{100 * fraction:.4g}")
    frame_axes(axes)


def _draw_order(axes: Axes, row: Row, places: list[float], points: list[Spread], colour: str, label: str) -> None:
    """A curve of a row, in its order's style."""
    width = 2.5 if row.order == "sigma" else 1.8
    draw_curve(axes, places, points, ORDER_STYLES[str(row.order)][0], colour, label, width)


def draw_curve(
    axes: Axes, places: list[float], points: list[Spread], style: LineStyle, colour: str, label: str, width: float
) -> None:
    """A curve of means, with a band of one standard deviation to either side where there are several seeds."""
    means = np.array([point.mean for point in points])
    axes.plot(places, means, linestyle=style, color=colour, linewidth=width, label=label)
    if all(point.deviation is not None for point in points):
        spread = np.array([point.deviation for point in points])
        axes.fill_between(places, means - spread, means + spread, color=colour, alpha=0.15, linewidth=0)


def frame_axes(axes: Axes) -> None:
    """A light grid, and no spines above and to the right."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _method(row: Row) -> str:
    return row.case.removesuffix(" new/old") + (" + side-info" if row.side_info else "")


def _label(row: Row) -> str:
    """A row's name in the legend: `FastFill + side-info, sigma: 53.9 ± 0.2, 32.6 ± 0.1`."""
    areas = [(row.measured or {}).get(metric) for metric in PANELS]
    figures = ", ".join(percent(area) for area in areas if area is not None)
    return f"{_method(row)}, {ORDER_NAMES[str(row.order)]}: {figures}"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; the same figure has the same bytes."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, facecolor="white", metadata={"Software": None})
