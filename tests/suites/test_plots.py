"""The pictures: the curves are drawn where the figures say, and right and wrong are marked."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from evaluation.config import BackfillingOrder
from suites import plots
from suites.plots import (
    ORDER_NAMES,
    ORDER_STYLES,
    plot_areas,
    plot_backfilling,
    plot_risk_coverage,
)
from suites.summary import summarise


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, as objects."""
    saved: list[Figure] = []
    save = plots.save_figure

    def keep(figure: Figure, path: Path) -> None:
        saved.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "save_figure", keep)
    return saved


def results(with_map: bool = True) -> dict[str, Any]:
    def figures(value: float) -> dict[str, float | None]:
        return {"cmc_top1": value, "cmc_top5": value, "map": value / 2 if with_map else None}

    curve: dict[str, Any] = {"fractions": [0.0, 0.5, 1.0], "cmc_top1": [0.4, 0.55, 0.6], "map": [0.2, 0.25, 0.3]}
    curve |= {} if with_map else {"map": None}
    shared: dict[str, Any] = {"side_info": False, "published": None, "curve": True, "new_new": None}
    shared |= {"gain_recovered": {"cmc_top1": None, "map": None}}
    row = shared | {"case": "FCT new/old", "stage": "fct", "order": "random", "measured": figures(0.5)}
    sigma = shared | {"case": "FastFill new/old", "stage": "ff", "order": "sigma", "measured": figures(0.56)}
    return {
        "seed": 0,
        "stages": {name: {"once": name in ("old", "new")} for name in ("old", "new", "fct", "ff")},
        "baselines": {"old_old": figures(0.3), "new_new": figures(0.6)},
        "baseline_stages": {"old_old": "old", "new_new": "new"},
        "no_backfilling": [],
        "backfilling": [row, sigma, row | {"stage": None, "measured": None}],
        "evaluations": {
            "old": {"metrics": figures(0.3)},
            "new": {"metrics": figures(0.6)},
            "fct": {"backfilling": {"random": curve}},
            "ff": {"backfilling": {"sigma": curve}},
        },
    }


def test_backfilling_curves(tmp_path: Path, figures: list[Figure]) -> None:
    plot_backfilling(summarise([results()]), tmp_path / "backfilling.png")
    with Image.open(tmp_path / "backfilling.png") as image:
        assert min(image.size) > 400
    cmc, mean_precision = figures[0].axes
    assert (cmc.get_ylabel(), mean_precision.get_ylabel()) == ("CMC-1 (%)", "mAP (%)")
    new, old, *curves = cmc.lines
    assert np.asarray(new.get_ydata())[0] == 0.6
    assert np.asarray(old.get_ydata())[0] == 0.3
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "FastFill, sigma: 56.0, 28.0",
        "FCT, random: 50.0, 25.0",
    ]
    figures[0].draw_without_rendering()
    assert {tick.get_text() for tick in cmc.get_yticklabels()} >= {"30", "35", "60"}  # percent, without decimals
    boxes = [axes.get_tightbbox() for axes in figures[0].axes]
    assert not any(box is None or legend.get_window_extent().overlaps(box) for box in boxes)
    assert np.asarray(curves[0].get_ydata()).tolist() == [0.4, 0.55, 0.6]
    assert np.asarray(mean_precision.lines[2].get_ydata()).tolist() == [0.2, 0.25, 0.3]
    assert curves[0].get_color() != curves[1].get_color()
    assert [text.get_text() for text in cmc.texts] == ["new/new  60.0", "old/old  30.0"]


def test_a_row_without_a_curve(tmp_path: Path, figures: list[Figure]) -> None:
    values = results()
    values["backfilling"][0]["curve"] = False
    plot_backfilling(summarise([values]), tmp_path / "backfilling.png")
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["FastFill, sigma: 56.0, 28.0"]


def test_bands_over_seeds(tmp_path: Path, figures: list[Figure]) -> None:
    first, second = results(), results()
    second["evaluations"]["fct"]["backfilling"]["random"] |= {"cmc_top1": [0.5, 0.59, 0.6]}
    second["backfilling"][0]["measured"]["cmc_top1"] = 0.54
    plot_backfilling(summarise([first, second]), tmp_path / "backfilling.png")
    cmc = figures[0].axes[0]
    (fct,) = [line for line in cmc.lines if str(line.get_label()).startswith("FCT")]
    assert np.asarray(fct.get_ydata()) == pytest.approx([0.45, 0.57, 0.6])
    assert fct.get_label() == "FCT, random: 52.0 ± 2.8, 25.0 ± 0.0"
    bands = [band.get_paths()[0].vertices for band in cmc.collections]
    assert len(bands) == 2
    deviation = 0.1 / np.sqrt(2)  # of two figures that are 0.1 apart
    lowest, highest = 0.45 - deviation, 0.45 + deviation
    assert any(
        np.isclose(band, [0.0, lowest]).all(1).any() and np.isclose(band, [0.0, highest]).all(1).any()
        for band in map(np.asarray, bands)
    )
    assert [text.get_text() for text in cmc.texts] == ["new/new  60.0", "old/old  30.0"]  # they ran once


def judged_results() -> dict[str, Any]:
    """FastFill's sigma and distance orders and FCT's, judged by two risks; FCT's is not to be drawn."""
    values = results()
    row = values["backfilling"][1]
    values["backfilling"] += [
        row | {"order": "distance"},
        row | {"case": "FCT new/old", "stage": "fct", "curve": False},
    ]
    for stage in ("ff", "fct"):
        curves = values["evaluations"][stage]["backfilling"]
        curves |= dict.fromkeys(("sigma", "distance"), next(iter(curves.values())))
        values["evaluations"][stage]["risk_coverage"] = {
            "sigma": dict.fromkeys(("alignment_error", "cmc_top1"), risk([0.1, 0.2])),
            "distance": dict.fromkeys(("alignment_error", "cmc_top1"), risk([0.05, 0.2])),
        }
    return values


def risk(kept: list[float]) -> dict[str, Any]:
    aurc = {"kept": sum(kept) / 2, "oracle": 0.12, "random": 0.2}
    return {
        "spearman": 0.5,
        "coverages": [0.5, 1.0],
        "kept": kept,
        "oracle": [0.04, 0.2],
        "random": 0.2,
        "aurc": aurc,
    }


def test_risk_coverage(tmp_path: Path, figures: list[Figure]) -> None:
    path = tmp_path / "risk.png"
    assert not plot_risk_coverage(summarise([results()]), path)
    assert not path.exists()  # no order was judged
    summary = summarise([judged_results()])
    assert plot_risk_coverage(summary, path)
    assert path.exists()
    errors, missed = figures[0].axes
    assert [axes.get_ylabel() for axes in (errors, missed)] == [
        "mean alignment error of those kept",
        "mean 1 - CMC-1 of those kept",
    ]
    for axes in (errors, missed):
        assert [np.asarray(line.get_ydata()).tolist() for line in axes.lines] == [
            *([0.2, 0.2], [0.04, 0.2]),  # once, though there are two orders
            *([0.1, 0.2], [0.05, 0.2]),
        ]
    figures[0].draw_without_rendering()
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *("FastFill, sigma", "FastFill, distance (oracle)"),
        *("random order", "smallest risk first"),
    ]
    boxes = [axes.get_tightbbox() for axes in figures[0].axes]
    assert not any(box is None or legend.get_window_extent().overlaps(box) for box in boxes)
    plot_backfilling(summary, path)
    of_both = [{str(line.get_color()) for line in axes.lines} for axes in (errors, figures[1].axes[0])]
    assert len(of_both[0]) == 1  # FastFill's
    assert of_both[0] <= of_both[1]


def test_a_risk_that_one_order_lacks(tmp_path: Path, figures: list[Figure]) -> None:
    values = judged_results()
    of_distance = values["evaluations"]["ff"]["risk_coverage"]["distance"]
    values["evaluations"]["ff"]["risk_coverage"]["distance"] = {"alignment_error": of_distance["alignment_error"]}
    plot_risk_coverage(summarise([values]), tmp_path / "risk.png")
    assert [len(axes.lines) for axes in figures[0].axes] == [4, 3]


def test_areas(tmp_path: Path, figures: list[Figure]) -> None:
    first, second = results(), results()
    second["backfilling"][0]["measured"]["cmc_top1"] = 0.54
    plot_areas(summarise([first, second]), tmp_path / "areas.png")
    assert (tmp_path / "areas.png").exists()
    cmc, mean_precision = figures[0].axes
    assert (cmc.get_xlabel(), mean_precision.get_xlabel()) == ("AUC CMC-1 (%)", "AUC mAP (%)")
    assert [label.get_text() for label in cmc.get_yticklabels()] == ["FCT", "FastFill"]
    containers: list[Any] = list(cmc.containers)
    places = {str(bar.get_label()): bar.lines[0].get_xydata().tolist() for bar in containers if bar.lines[0]}
    assert places["random"] == [pytest.approx([52.0, 0.0])]
    assert places["sigma"] == [pytest.approx([56.0, 1.0])]
    (random,) = [bar for bar in containers if bar.get_label() == "random"]
    (line,) = random.lines[2][0].get_segments()
    assert line[:, 0] == pytest.approx([52 - 2 * 2**0.5, 52 + 2 * 2**0.5])  # the deviation of 50 and 54 to either side


def test_areas_beside_the_new_new_of_each_row(tmp_path: Path, figures: list[Figure]) -> None:
    values = results()
    values["stages"]["other"] = {"once": True}
    values["evaluations"]["other"] = {"metrics": {"cmc_top1": 0.7, "cmc_top5": 0.8, "map": 0.65}}
    values["backfilling"][1]["new_new"] = "other"
    plot_areas(summarise([values]), tmp_path / "areas.png")
    lines = [[c for c in axes.collections if c.get_label() == "new/new"] for axes in figures[0].axes]
    drawn = [[segment.tolist() for segment in line.get_segments()] for (line,) in lines]  # type: ignore[attr-defined]
    for (first, second), (own, shared) in zip(drawn, ((70, 60), (65, 30)), strict=True):
        assert np.asarray(first) == pytest.approx(np.array([[shared, -0.5], [shared, 0.5]]))  # of FCT
        assert np.asarray(second) == pytest.approx(np.array([[own, 0.5], [own, 1.5]]))  # of FastFill


def test_one_panel_without_map(tmp_path: Path, figures: list[Figure]) -> None:
    plot_backfilling(summarise([results(with_map=False)]), tmp_path / "backfilling.png")
    assert [axes.get_ylabel() for axes in figures[0].axes] == ["CMC-1 (%)"]


def test_every_order_has_a_style() -> None:
    assert set(ORDER_STYLES) == set(ORDER_NAMES) == set(get_args(BackfillingOrder))
