"""The predicted curves against plain loops, and the answer that is read off them."""

from collections import Counter

import numpy as np
import pytest
import torch

from retrieval import prediction
from retrieval.prediction import Curve, predict_map, predict_recall
from tests.retrieval.oracle import evaluate_slowly

M, D, K = 60, 4, 3
CUTOFFS = [0, 15, 30, 60]
RNG = np.random.default_rng(0)
NEW = RNG.normal(size=(M, D)).astype(np.float32)
TRANSFORMED = NEW + RNG.normal(scale=0.6, size=(M, D)).astype(np.float32)
ORDER = RNG.permutation(M)


def recall_slowly(weights: np.ndarray, cutoff: int) -> float:
    """Recall of the k nearest of a gallery that holds each item as often as its weight says."""
    mixed = TRANSFORMED.copy()
    mixed[ORDER[:cutoff]] = NEW[ORDER[:cutoff]]
    recalls = []
    for query in range(M):
        found = []
        for gallery in (NEW, mixed):
            distances = ((gallery - NEW[query]).astype(np.float64) ** 2).sum(1)
            copies = [item for item in np.argsort(distances) if item != query for _ in range(int(weights[item]))]
            found.append(Counter(copies[:K]))
        recalls.append((found[0] & found[1]).total() / K)
    return float(np.average(recalls, weights=weights))


def predict(seed: int = 0, confidence: float = 0.95) -> Curve:
    return predict_recall(
        torch.from_numpy(NEW),
        torch.from_numpy(TRANSFORMED),
        orders={"given": torch.from_numpy(ORDER), "other": torch.arange(M)},
        cutoffs=CUTOFFS,
        k=K,
        confidence=confidence,
        seed=seed,
    )["given"]


def test_recall_and_its_band_are_those_of_plain_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "RESAMPLES", 12)
    curve = predict()
    assert curve.fractions == [cutoff / M for cutoff in CUTOFFS]
    assert curve.values[-1] == 1
    draws = prediction._weights(M, seed=0)
    assert all(weights.sum() == M for weights in draws)
    for point, cutoff in enumerate(CUTOFFS):
        resampled = [recall_slowly(weights.numpy(), cutoff) for weights in draws]
        spread = 1.959964 * np.std(resampled, ddof=1)
        found = recall_slowly(np.ones(M), cutoff)
        assert curve.values[point] == pytest.approx(2 * found - np.mean(resampled), abs=1e-5)
        assert curve.low[point] == pytest.approx(max(0, curve.values[point] - spread), abs=1e-5)
        assert curve.high[point] == pytest.approx(min(1, curve.values[point] + spread), abs=1e-5)


def test_the_band_is_a_function_of_the_seed_and_grows_with_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "RESAMPLES", 12)
    assert predict() == predict()
    assert predict() != predict(seed=1)
    narrow, wide = predict(confidence=0.5), predict(confidence=0.99)
    assert all(a > b for a, b in zip(narrow.low[:-1], wide.low[:-1], strict=True))


def test_map_is_that_of_the_evaluator() -> None:
    labels = torch.arange(M) % 4
    curve = predict_map(
        torch.from_numpy(NEW),
        torch.from_numpy(TRANSFORMED),
        labels,
        orders={"given": torch.from_numpy(ORDER)},
        cutoffs=CUTOFFS,
        confidence=0.95,
        seed=0,
    )["given"]
    ends = [evaluate_slowly(torch.from_numpy(NEW), torch.from_numpy(g), labels)["map"] for g in (TRANSFORMED, NEW)]
    assert [curve.values[0], curve.values[-1]] == pytest.approx(ends)
    assert all(low < value < high for low, value, high in zip(curve.low, curve.values, curve.high, strict=True))


def test_the_answer_is_read_off_the_line_between_points() -> None:
    curve = Curve([0, 0.25, 0.5, 1], [0.4, 0.5, 0.6, 0.8], [0.3, 0.4, 0.5, 0.8], [0.5, 0.6, 0.7, 0.8])
    relative = curve.relative()
    assert relative.values == pytest.approx([0.5, 0.625, 0.75, 1])
    assert relative.reaching(0.6) == pytest.approx(0.2)
    assert relative.reaching(0.5) == relative.reaching(0.1) == 0
    assert relative.reaching(1.0) == 1
    assert relative.at(0.75) == pytest.approx((0.875, 0.8125, 0.9375))
    assert curve.at(0) == (0.4, 0.3, 0.5)
