"""Chunks on several threads: the results of one, in order, and torch's threads as they were."""

import threading
from collections.abc import Iterator

import pytest
import torch

from retrieval import backfilling_curve, cutoffs
from retrieval.ranking.threads import run_chunks

CHUNKS = torch.arange(50).unbind()


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def test_results_come_in_order_each_on_one_thread(threads: int) -> None:
    used = set()

    def work(chunk: torch.Tensor) -> int:
        assert torch.get_num_threads() == 1
        assert not torch.is_grad_enabled()
        used.add(threading.get_ident())
        return int(chunk)

    assert list(run_chunks(work, CHUNKS, torch.device("cpu"))) == list(range(50))
    assert 1 <= len(used) <= threads


def test_an_error_comes_through(threads: int) -> None:
    def work(chunk: torch.Tensor) -> int:
        return 1 // (7 - int(chunk))

    with pytest.raises(ZeroDivisionError):
        list(run_chunks(work, CHUNKS, torch.device("cpu")))


@pytest.mark.parametrize("threads", [2, 5], indirect=True)
def test_a_curve_is_the_same_on_any_number_of_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.ranking.engine.MIN_QUERIES", 16)
    monkeypatch.setattr("retrieval.ranking.engine.CPU_CHUNK_ELEMENTS", 1)
    new, transformed = torch.randn(2, 150, 8, generator=torch.Generator().manual_seed(0))
    curves = []
    for count in (1, threads):
        torch.set_num_threads(count)
        labels, orders = torch.arange(150) % 7, {"order": torch.arange(149, -1, -1)}
        curves.append(backfilling_curve(new, transformed, new, labels, orders=orders, cutoffs=cutoffs(150, 4)))
    assert curves[0] == curves[1]
