"""The benchmarks run as their docstrings say, and write the figures that they print."""

import json
from pathlib import Path

import pytest

from tests.tiny import succeed


@pytest.mark.parametrize("name", ["eval", "feeding", "fits", "orders", "training", "upgrade"])
def test_a_trial_writes_what_it_prints(name: str, tmp_path: Path) -> None:
    output = succeed(f"benchmarks/bench_{name}.py", "--tiny", "--json", "figures.json", cwd=tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert len({figure["name"] for figure in figures}) == len(figures)
    for figure in figures:
        assert figure["name"] in output
        assert figure["min"] <= figure["value"] <= figure["max"]
        assert (figure["holds"] is None) == (figure["bar"] is None)
    if name == "eval":  # both sides compute the same
        assert figures[0]["name"].startswith("largest difference")
        assert figures[0]["holds"]
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
