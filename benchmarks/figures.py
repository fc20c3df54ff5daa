"""The figures of a benchmark: a line each on screen, and a JSON file of all."""

from typing import Any

import torch

from utils.files import write_json
from utils.provenance import environment

Figure = dict[str, Any]


def figure(
    name: str, value: float, unit: str, *, at_least: float | None = None, at_most: float | None = None
) -> Figure:
    """A measured value, and the bar that it should reach or not exceed, if there is one."""
    bar = at_least if at_most is None else at_most
    holds = None if bar is None else bool(value >= bar if at_most is None else value <= bar)
    return {"name": name, "value": value, "unit": unit, "bar": bar, "holds": holds}


def print_machine() -> None:
    """Print what the figures are measured on."""
    machine = environment()
    print(f"{machine['device']}, {machine['cores']} cores, torch {machine['torch']}, {torch.get_num_threads()} threads")


def print_figure(row: Figure, remark: str = "") -> None:
    """Print a figure's line."""
    bar = "" if row["bar"] is None else f"   bar {row['bar']:g}: {'holds' if row['holds'] else 'MISSED'}"
    print(f"{row['name']:64}{row['value']:12.4g} {row['unit']:8}{remark}{bar}", flush=True)


def report(figures: list[Figure], json_path: str | None) -> None:
    """Print the machine and its figures, and write them to a file if one is named."""
    print_machine()
    for row in figures:
        print_figure(row)
    if json_path:
        write_json(json_path, figures)
