"""The pictures: the curves are drawn where the figures say, in the colours of their methods."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from matplotlib.figure import Figure as Picture

from evaluation.config import BackfillingOrder
from suites.group_plots import plot_groups
from suites.plots import ORDER_NAMES, ORDER_STYLES, plot_areas, plot_backfilling, plot_risk_coverage
from suites.summary import Figure, Figures, Groups, Risk, Row, Summary


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Picture]:
    """The pictures that would be saved."""
    pictures: list[Picture] = []
    monkeypatch.setattr("suites.plots.save_figure", lambda figure, path: pictures.append(figure))
    return pictures


def figures(cmc: float, mean_precision: float | None, deviation: float | None = None) -> Figures:
    return {
        "cmc_top1": Figure(cmc, deviation),
        "map": None if mean_precision is None else Figure(mean_precision, deviation),
    }


def points(*means: float, deviation: float | None = None) -> list[Figure]:
    return [Figure(mean, deviation) for mean in means]


PATH = Path("picture.png")
FCT = Row(
    *("FCT new/old", False, "random", None),
    measured=figures(0.5, 0.25),
    new_new=figures(0.6, 0.3),
    fractions=[0.0, 0.5, 1.0],
    curves={"cmc_top1": points(0.4, 0.55, 0.6), "map": points(0.2, 0.25, 0.3)},
)
FASTFILL = replace(FCT, case="FastFill new/old", order="sigma", measured=figures(0.56, 0.28))
NOT_RUN = Row("FCT new/old", True, "random", None)


def summary(*rows: Row) -> Summary:
    return Summary([0], figures(0.3, 0.15), figures(0.6, 0.3), [], list(rows))


def legend_of(picture: Picture) -> list[str]:
    """The texts of the legend, which must lie beside all panels."""
    picture.draw_without_rendering()
    (legend,) = picture.legends
    boxes = [axes.get_tightbbox() for axes in picture.axes]
    assert not any(box is None or legend.get_window_extent().overlaps(box) for box in boxes)
    return [text.get_text() for text in legend.get_texts()]


def heights(lines: Any) -> list[list[float]]:
    return [np.asarray(line.get_ydata()).tolist() for line in lines]


def test_backfilling_curves(saved: list[Picture]) -> None:
    plot_backfilling(summary(FCT, FASTFILL, NOT_RUN, replace(FCT, curve=False)), PATH)
    cmc, mean_precision = saved[0].axes
    assert (cmc.get_ylabel(), mean_precision.get_ylabel()) == ("CMC-1 (%)", "mAP (%)")
    assert legend_of(saved[0]) == ["FastFill, sigma: 56.0, 28.0", "FCT, random: 50.0, 25.0"]  # the best at the top
    assert {tick.get_text() for tick in cmc.get_yticklabels()} >= {"30", "35", "60"}  # percent, without decimals
    assert heights(cmc.lines) == [[0.6, 0.6], [0.3, 0.3], *[[0.4, 0.55, 0.6]] * 2]
    assert heights(mean_precision.lines[2:]) == [[0.2, 0.25, 0.3]] * 2
    assert cmc.lines[2].get_color() != cmc.lines[3].get_color()
    assert [text.get_text() for text in cmc.texts] == ["new/new\n60.0", "old/old\n30.0"]
    assert all(text.get_window_extent().x0 >= cmc.get_window_extent().x1 for text in cmc.texts)  # crossed by no curve


def test_bands_over_seeds(saved: list[Picture]) -> None:
    curves = {name: points(0.45, 0.57, 0.6, deviation=0.07) for name in ("cmc_top1", "map")}
    of_seeds = replace(FCT, measured=figures(0.52, 0.25, 0.028), curves=curves)
    plot_backfilling(summary(of_seeds, FASTFILL), PATH)
    assert legend_of(saved[0])[1] == "FCT, random: 52.0 ± 2.8, 25.0 ± 2.8"
    (band,) = saved[0].axes[0].collections  # FastFill has one seed
    vertices = np.asarray(band.get_paths()[0].vertices)
    for point in ([0.0, 0.38], [0.0, 0.52], [0.5, 0.5], [0.5, 0.64]):
        assert np.isclose(vertices, point).all(1).any()


def test_one_panel_without_map(saved: list[Picture]) -> None:
    without = Summary([0], figures(0.3, None), figures(0.6, None), [], [replace(FCT, measured=figures(0.5, None))])
    plot_backfilling(without, PATH)
    plot_areas(without, PATH)
    assert [axes.get_ylabel() for axes in saved[0].axes] == ["CMC-1 (%)"]
    assert [axes.get_xlabel() for axes in saved[1].axes] == ["AUC CMC-1 (%)"]


def risk(*kept: float) -> Risk:
    curves = {"kept": points(*kept), "oracle": points(0.04, 0.2), "random": points(0.2, 0.2)}
    return Risk(None, [0.5, 1.0], curves, {})


JUDGED = replace(FASTFILL, risks=dict.fromkeys(("alignment_error", "cmc_top1"), risk(0.1, 0.2)))
OTHER_ORDER = replace(JUDGED, order="distance", risks=dict.fromkeys(JUDGED.risks, risk(0.05, 0.2)))


def test_risk_coverage(saved: list[Picture]) -> None:
    assert not plot_risk_coverage(summary(FCT, FASTFILL), PATH)  # no order was judged
    assert not saved
    judged = summary(FCT, JUDGED, OTHER_ORDER, replace(JUDGED, case="FCT new/old", curve=False))
    assert plot_risk_coverage(judged, PATH)
    errors, missed = saved[0].axes
    labels = ["mean alignment error of those kept", "mean 1 - CMC-1 of those kept"]
    assert [axes.get_ylabel() for axes in (errors, missed)] == labels
    bounds = [[0.2, 0.2], [0.04, 0.2]]  # once, though there are two orders
    for axes in (errors, missed):
        assert heights(axes.lines) == [*bounds, [0.1, 0.2], [0.05, 0.2]]
    orders = ["FastFill, sigma", "FastFill, distance (oracle)"]
    assert legend_of(saved[0]) == [*orders, "random order", "smallest risk first"]
    plot_backfilling(judged, PATH)
    colours = [{str(line.get_color()) for line in axes.lines} for axes in (errors, saved[1].axes[0])]
    assert len(colours[0]) == 1  # FastFill's
    assert colours[0] <= colours[1]
    lacking = replace(OTHER_ORDER, risks={"alignment_error": risk(0.05, 0.2)})
    plot_risk_coverage(summary(JUDGED, lacking), PATH)
    assert [len(axes.lines) for axes in saved[2].axes] == [4, 3]


def test_areas_lie_beside_the_new_new_of_each_row(saved: list[Picture]) -> None:
    of_seeds = replace(FCT, measured=figures(0.52, 0.26, 0.028))
    with_own_models = replace(FASTFILL, new_new=figures(0.7, 0.65))
    plot_areas(summary(of_seeds, with_own_models, NOT_RUN), PATH)
    cmc, mean_precision = saved[0].axes
    assert (cmc.get_xlabel(), mean_precision.get_xlabel()) == ("AUC CMC-1 (%)", "AUC mAP (%)")
    assert [label.get_text() for label in cmc.get_yticklabels()] == ["FCT", "FastFill"]
    containers: list[Any] = list(cmc.containers)
    marks = {str(container.get_label()): container.lines for container in containers}
    assert marks["random"][0].get_xydata().tolist() == [pytest.approx([52.0, 0.0])]
    assert marks["sigma"][0].get_xydata().tolist() == [pytest.approx([56.0, 1.0])]
    (bar,) = marks["random"][2][0].get_segments()
    assert bar[:, 0] == pytest.approx([52 - 2.8, 52 + 2.8])
    for axes, (own, shared) in ((cmc, (70, 60)), (mean_precision, (65, 30))):
        (lines,) = (each for each in axes.collections if each.get_label() == "new/new")
        segments: Any = lines.get_segments()  # type: ignore[attr-defined]
        expected = [[[shared, -0.5], [shared, 0.5]], [[own, 0.5], [own, 1.5]]]  # of FCT, of FastFill
        assert np.asarray(segments) == pytest.approx(np.array(expected))


def test_groups_and_the_gap_between_them(saved: list[Picture], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suites.group_plots.save_figure", lambda figure, path: saved.append(figure))
    assert not plot_groups(summary(FCT), PATH)
    few, many = points(0.2, 0.4, 0.5), points(0.6, 0.6, 0.7)
    groups = Groups(
        {},
        {},
        curves={"few": {"cmc_top1": few, "map": few}, "many": {"cmc_top1": many, "map": many}},
        gaps={"cmc_top1": points(0.4, 0.2, 0.2), "map": points(0.4, 0.2, 0.2, deviation=0.1)},
    )
    rows = [replace(row, groups=groups) for row in (FCT, replace(FCT, order="sigma"), replace(FCT, curve=False))]
    old = Groups({}, figures(0.5, None))
    assert plot_groups(replace(summary(*rows, FASTFILL), old_old_groups=old), PATH)
    upper, _, lower, of_precision = saved[0].axes
    assert heights(upper.lines) == [[0.2, 0.4, 0.5], [0.6, 0.6, 0.7]] * 2
    assert [str(line.get_linestyle()) for line in upper.lines] == ["-", "--"] * 2  # of groups
    assert len({str(line.get_color()) for line in upper.lines}) == 2  # of orders
    assert heights(lower.lines) == [[0.4, 0.2, 0.2], [0.4, 0.2, 0.2], [0.5, 0.5]]
    assert [text.get_text() for text in lower.texts] == ["old/old  50.0"]
    assert len(of_precision.lines) == 2
    assert len(of_precision.collections) == 2
    assert legend_of(saved[0]) == ["few", "many", "random order", "sigma order"]


def test_every_order_has_a_style() -> None:
    assert set(ORDER_STYLES) == set(ORDER_NAMES) == set(get_args(BackfillingOrder))
