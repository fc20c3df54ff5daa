"""What the benchmarks share measures what it says."""

import time
from functools import partial

import pytest
import torch

from benchmarks.harness import Apart, TrainerTurns, cost_of, figure, ratios, take_turns


def test_ways_take_turns_and_the_first_turn_does_not_count() -> None:
    calls: list[str] = []

    def way(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(seconds if calls.count(name) > 1 else 0.5)

    times = take_turns({"a": partial(way, "a", 0.02), "b": partial(way, "b", 0.0)}, turns=2)
    assert calls == ["a", "b"] * 3
    assert [len(each) for each in times.values()] == [2, 2]
    assert all(0.02 <= each < 0.5 for each in times["a"])


def test_a_trainer_takes_turns_with_the_plain_loop() -> None:
    calls: list[str] = []

    def plain_epoch() -> float:
        calls.append("plain")
        return 5.0

    turns = TrainerTurns(plain_epoch)
    for _ in range(3):
        calls.extend(turns.epoch([1, 2], lambda batch: f"fed {batch}"))
    assert calls == ["plain", "fed 1", "fed 2"] * 3
    plain, ours = turns.times()
    assert plain == [2.5, 2.5]
    assert all(0 < each < 1 for each in ours)


def test_work_apart_is_timed_there() -> None:
    apart = Apart(partial(partial, time.sleep, 0.05))
    assert all(0.05 <= apart() < 0.5 for _ in range(2))


def test_a_figure_is_the_median_and_its_bar_is_a_limit_from_one_side() -> None:
    row = figure("speed", ratios([6.0, 2.0, 30.0], [2.0, 2.0, 3.0]), "x", at_least=3)
    assert (row["value"], row["min"], row["max"], row["holds"]) == (3, 1, 10, True)
    assert not figure("speed", 2.9, at_least=3)["holds"]
    assert figure("time", 2.9, at_most=3)["holds"]
    assert not figure("time", 3.1, at_most=3)["holds"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there, memory is the GPU's")
def test_the_memory_of_work_is_counted_beyond_what_it_is_given() -> None:
    given = partial(torch.ones, 2**25)  # 0.125 GiB of float32
    cost = cost_of(torch.Tensor.double, given, partial(torch.ones, 2))  # makes 0.25 GiB of it
    assert 0.24 < cost.extra < 0.3
    assert cost.whole > 0.375
