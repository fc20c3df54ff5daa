"""The parts of the engine where an error would be rare: binning at the edges, refined distances, chunks and threads."""

import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import backfilling_curve, cutoffs
from retrieval.ranking import engine
from retrieval.ranking.binning import bins_of
from retrieval.ranking.distances import distance_table
from retrieval.ranking.threads import run_chunks
from tests.retrieval.oracle import seeded

NOT_THERE = torch.full((200,), -1)  # the queries are no items of the gallery
VALUES = st.lists(st.floats(0, 2.0**100, width=32) | st.just(float("inf")), min_size=1, max_size=12)
CHUNKS = torch.arange(50).unbind()


def check_bins(thresholds: torch.Tensor, values: torch.Tensor) -> None:
    row = torch.arange(len(values))[:, None]
    counts = bins_of(thresholds, values).long() - row * (thresholds.shape[1] + 1)
    assert torch.equal(counts, torch.searchsorted(thresholds, values))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(thresholds=VALUES, values=VALUES)
def test_bins_agree_with_searchsorted(thresholds: list[float], values: list[float]) -> None:
    rows = torch.tensor([thresholds, [0.5] * len(thresholds)]).sort(1).values
    check_bins(rows, torch.tensor([values + thresholds, thresholds + values]))


@pytest.mark.parametrize("spread", [1.0, 1e-6, 1e-37])
def test_bins_agree_with_searchsorted_on_neighbouring_floats(spread: float) -> None:
    generator = seeded(0)
    thresholds = (1 + spread * torch.randn(20, 40, generator=generator)).abs().sort(1).values
    thresholds[:, 30:] = torch.inf
    near = [thresholds, thresholds.nextafter(torch.tensor(0.0)), thresholds.nextafter(torch.tensor(torch.inf))]
    check_bins(thresholds, torch.cat([*near, torch.rand(20, 500, generator=generator) * 2], dim=1))


def test_equal_embeddings_are_equally_far_to_the_last_bit() -> None:
    generator = seeded(1)
    distinct = torch.randn(50, 37, generator=generator)
    gallery = distinct[torch.randint(50, (333,), generator=generator)]
    table = distance_table(torch.randn(20, 37, generator=generator), [gallery, gallery.flip(0)], "l2")
    rows = table.rows(torch.arange(20), NOT_THERE[:20])  # (20, 2, 333)
    assert torch.equal(rows[:, 0], rows[:, 1].flip(1))
    for vector in distinct:
        same = rows[:, 0, (gallery == vector).all(1)]
        assert (same == same[:, :1]).all()


@pytest.mark.parametrize("offset", [0.0, 1e3, -3e5])
@pytest.mark.parametrize("step", [1.0, 2.0**-5, 2.0**-10])
def test_distances_are_right_in_every_float32_digit(offset: float, step: float) -> None:
    """Also those of near-duplicates, on a scale where all coordinates are exact."""
    gallery = (offset + step * torch.randint(-30, 30, (200, 16), generator=seeded(2))).float()
    gallery[100:] = gallery[:100]
    gallery[100:, 0] += step
    gallery[0] += 1000 * step
    rows = distance_table(gallery, [gallery], "l2").rows(torch.arange(200), NOT_THERE)[:, 0].double()
    exact = (gallery.double()[:, None] - gallery.double()).square().sum(2)
    scale = rows[0, 1] / exact[0, 1]  # a power of two
    assert torch.log2(scale).frac() == 0
    assert torch.equal(rows, (exact * scale).float().double())


def test_queries_are_not_copied_before_their_turn() -> None:
    """So those of a mapped file are read chunk by chunk."""
    query = torch.randn(10, 4, generator=seeded(4))
    table = distance_table(query, [query + 1], "l2")
    before = table.rows(torch.tensor([3]), NOT_THERE[:1]).clone()
    query[3] += 1
    assert not torch.equal(table.rows(torch.tensor([3]), NOT_THERE[:1]), before)


@pytest.mark.parametrize("elements", [10, 2 * 10**4, 2 * 10**7, 10**10])
@pytest.mark.parametrize(
    ("device", "free", "expected"), [("cpu", 0, 2**30), ("cuda", 2**30, 3 * 2**30 // 2), ("cuda", 60 * 2**30, 2**31)]
)
def test_chunks_fit_the_memory(
    monkeypatch: pytest.MonkeyPatch, device: str, free: int, expected: int, elements: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 6 * 2**30)  # by torch, of which ...
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4 * 2**30)  # ... this is in use
    memory = engine.chunk_memory(torch.device(device))
    assert memory == expected
    length = engine.chunk_length(elements, memory, torch.device(device))
    assert length == 1 or length * elements * engine.BYTES_PER_ELEMENT <= memory
    assert length == 1 or length * elements < 2**31  # indices are int32
    # 10,000 items and a curve: enough for an efficient matrix product
    assert length >= (50 if elements == 2 * 10**4 else 1)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param  # whatever was done meanwhile
    torch.set_num_threads(before)


def test_results_of_chunks_come_in_order_each_on_one_thread(threads: int) -> None:
    used = set()

    def work(chunk: torch.Tensor) -> int:
        assert torch.get_num_threads() == 1
        assert not torch.is_grad_enabled()
        used.add(threading.get_ident())
        return int(chunk)

    assert list(run_chunks(work, CHUNKS, torch.device("cpu"))) == list(range(50))
    assert 1 <= len(used) <= threads


def test_an_error_in_a_chunk_comes_through(threads: int) -> None:
    def work(chunk: torch.Tensor) -> int:
        return 1 // (7 - int(chunk))

    with pytest.raises(ZeroDivisionError):
        list(run_chunks(work, CHUNKS, torch.device("cpu")))


def test_a_curve_is_the_same_in_chunks_of_any_size_on_any_number_of_threads(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, transformed = torch.randn(2, 150, 8, generator=seeded(0))
    labels, order = torch.arange(150) % 7, {"order": torch.arange(149, -1, -1)}
    points, progress = cutoffs(150, 4), list[int]()
    whole = backfilling_curve(new, transformed, new, labels, orders=order, cutoffs=points)
    monkeypatch.setattr(engine, "MIN_QUERIES", 7)
    monkeypatch.setattr(engine, "CPU_CHUNK_ELEMENTS", 1)
    parts = backfilling_curve(new, transformed, new, labels, orders=order, cutoffs=points, progress=progress.append)
    assert parts == whole
    assert progress == [*range(7, 150, 7), 150]
