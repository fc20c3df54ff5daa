"""The benchmark of the evaluation runs, and its sides compute the same figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.tiny import ENVIRONMENT, REPOSITORY, TIMEOUT


def test_quick_run(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "bench_eval.py"), "--quick", "--json", "figures.json"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert all(list(figure) == ["name", "value", "unit", "bar", "holds"] for figure in figures)
    assert all((figure["bar"] is None) == (figure["holds"] is None) for figure in figures)
    assert len({figure["name"] for figure in figures}) == len(figures)
    values = {figure["name"]: figure["value"] for figure in figures}
    assert values["largest difference of a metric, ours and sort, n = 200"] < 1e-6
    assert all(figure["name"] in done.stdout for figure in figures)
