"""The picture of a plan: predicted quality over the share of the gallery that is re-embedded, with bands."""

from pathlib import Path

from matplotlib.figure import Figure

from upgrade.planning import Plan
from utils.files import atomic_path

COLOURS = {"confidence": "#009E73", "sigma": "#0072B2", "random": "#D55E00"}
STYLES = {"confidence": "-", "sigma": "-", "random": "--"}


def plot_plan(plan: Plan, path: Path) -> None:
    """Write the picture to a PNG file."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for name, curve in plan.curves.items():
        axes.fill_between(curve.fractions, curve.low, curve.high, color=COLOURS[name], alpha=0.2, linewidth=0)
        axes.plot(curve.fractions, curve.values, STYLES[name], color=COLOURS[name], linewidth=2, label=f"{name} order")
    value, _, _ = plan.curves[plan.order].at(plan.fraction)
    axes.plot([plan.fraction], [value], "o", color="black")
    axes.annotate(
        f"{plan.items:,} items",
        (plan.fraction, value),
        xytext=(8, -14),
        textcoords="offset points",
    )
    axes.set_xlabel("share of the gallery re-embedded (%)")
    axes.set_ylabel(f"{plan.metric} (%)")
    axes.set_xlim(0, 1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda fraction, _: f"{100 * fraction:.4g}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, facecolor="white", metadata={"Software": None})
