"""The benchmarks run as their docstrings say, and write the figures that they print."""

import json
from pathlib import Path

import pytest

from tests.tiny import succeed

BARS: dict[str, list[float]] = {  # of each benchmark, in the order of its figures
    "backbone": [3, 1],  # and 0.9, where two processes can have the cores that one has
    "eval": [0.6, 30, 120, 1.2, 1.2, 1],
    "feeding": [0.97, 10, 10, 0.85],
    "orders": [60.0, 1.0] * 7 + [1.0],
    "transformation": [30, 2],
    "upgrade": [3, 2e9 / 2**30, 1.1, 2e9 / 2**30, 1.1],
}


@pytest.mark.parametrize("name", BARS)
def test_a_trial_writes_what_it_prints(name: str, tmp_path: Path) -> None:
    output = succeed(f"benchmarks/bench_{name}.py", "--quick", "--json", "figures.json", cwd=tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())
    bars = [figure["bar"] for figure in figures if figure["bar"] is not None]
    assert bars[: len(BARS[name])] == BARS[name]
    assert len({figure["name"] for figure in figures}) == len(figures)
    for figure in figures:
        assert set(figure) == {"name", "value", "unit", "bar", "holds"}
        assert figure["name"] in output
        assert (figure["holds"] is None) == (figure["bar"] is None)
        assert figure["value"] >= 0
    if name == "eval":  # both sides compute the same
        (difference,) = (figure["value"] for figure in figures if "largest difference" in figure["name"])
        assert difference < 1e-6
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
