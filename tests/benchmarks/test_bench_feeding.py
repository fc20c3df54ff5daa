"""The benchmark of feeding runs as its docstring says, and writes its figures."""

import json
from pathlib import Path

from tests.tiny import succeed


def test_a_trial_measures_every_claim(tmp_path: Path) -> None:
    arguments = ("--quick", "--workers", "1", "--json", "figures.json")
    output = succeed("benchmarks/bench_feeding.py", *arguments, cwd=tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [figure["bar"] for figure in figures] == [0.97, 10, 10, 0.85, None]
    for figure in figures:
        assert figure.keys() == {"name", "value", "unit", "bar", "holds"}
        assert figure["value"] > 0
        assert figure["holds"] == (None if figure["bar"] is None else figure["value"] >= figure["bar"])
        assert figure["name"] in output
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
