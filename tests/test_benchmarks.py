"""The benchmarks run, and write the figures that they print."""

import json
from pathlib import Path

import pytest

from tests.tiny import succeed


@pytest.mark.parametrize("name", ["backbone", "transformation"])
def test_a_benchmark_writes_its_figures(name: str, tmp_path: Path) -> None:
    output = succeed(f"benchmarks/bench_{name}.py", "--quick", "--json", "figures.json", cwd=tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert any(figure["bar"] is not None for figure in figures)
    for figure in figures:
        assert set(figure) == {"name", "value", "unit", "bar", "holds"}
        assert figure["name"] in output
        assert (figure["holds"] is None) == (figure["bar"] is None)
        assert figure["value"] >= 0
