"""benchmarks/gpu.py runs from end to end on a CPU, and no part of it takes the figures of the others along."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.harness import Figure, figure
from benchmarks.on_gpu import correctness
from tests.tiny import succeed


def test_a_trial_has_figures_of_every_part(tmp_path: Path) -> None:
    output = succeed("benchmarks/gpu.py", "--tiny", "--json", "gpu.json", cwd=tmp_path)
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert {row["part"] for row in written["figures"]} == set(gpu.PARTS)
    for row in written["figures"]:
        assert row["name"] in output
        assert "error" not in row
        assert row["holds"] is not False
    assert written["machine"]["torch"] == torch.__version__
    assert "epoch 1" not in output  # of the trainers


def fine(tiny: bool) -> Iterator[Figure]:
    yield figure("fine", 1.0)


def wrong(tiny: bool) -> Iterator[Figure]:
    yield figure("half", 0.5)
    raise RuntimeError("CUDA error: an illegal memory access")


def dies(tiny: bool) -> Iterator[Figure]:
    yield figure("last words", 2.0)
    os._exit(3)


def lasts(tiny: bool) -> Iterator[Figure]:
    yield figure("early", 3.0)
    time.sleep(60)


def test_a_part_that_fails_or_takes_too_long_leaves_what_it_has_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PARTS", {"a": gpu.Part(1, [wrong, fine]), "b": gpu.Part(1, [dies, fine])})
    monkeypatch.setitem(gpu.PARTS, "c", gpu.Part(1, [lasts, fine]))
    limits = {"a": 60, "b": 60, "c": 4}
    found = {
        name: [(row["name"], row.get("error")) for row in gpu.figures_of(name, True, limit)]
        for name, limit in limits.items()
    }
    assert found["a"] == [("half", None), ("a, wrong", "CUDA error: an illegal memory access"), ("fine", None)]
    assert found["b"] == [("last words", None), ("b", "its process ended with 3")]
    assert found["c"] == [("early", None), ("c", "was stopped after 4 s")]


def test_the_shares_of_the_time_make_a_whole() -> None:
    assert sum(part.share for part in gpu.PARTS.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", correctness.CHECKS)
def test_a_device_that_computes_otherwise_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = correctness.CHECKS[name]
    calls = []

    def compute(device: torch.device, count: int) -> correctness.Outcome:
        """As it is; the first call, which is the device's, of other numbers."""
        calls.append(device)
        outcome = {"x": torch.full((10,), 0.5)}
        return {"x": outcome["x"] + 3 * check.tolerance} if len(calls) == 1 else outcome

    monkeypatch.setitem(correctness.CHECKS, name, correctness.Check(compute, check.tolerance))
    assert correctness.difference(name, torch.device("cpu"), correctness.FEW) > check.tolerance
    calls.append(torch.device("cpu"))
    assert correctness.difference(name, torch.device("cpu"), correctness.FEW) == 0
