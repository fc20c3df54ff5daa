"""Classification by nearest neighbours, against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from trainers.backbone import neighbours
from trainers.backbone.neighbours import knn_predict


@pytest.mark.parametrize(
    ("items", "k", "temperature"), [(200, 20, 0.07), (200, 1, 0.07), (200, 5, 100.0), (7, 20, 0.5)]
)
def test_predictions_are_scikit_learns(monkeypatch: pytest.MonkeyPatch, items: int, k: int, temperature: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, items)
    bank = rng.normal(size=(items, 6)) + 0.7 * np.eye(6)[labels]
    queries = rng.normal(size=(300, 6)) + 0.7 * np.eye(6)[rng.integers(0, 4, 300)]
    oracle = KNeighborsClassifier(
        min(k, items), metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    expected = oracle.fit(bank, labels).predict(queries)
    arguments = torch.tensor(queries), torch.tensor(bank), torch.tensor(labels)
    monkeypatch.setattr(neighbours, "CHUNK_ELEMENTS", 7 * items)  # many chunks
    monkeypatch.setattr(neighbours, "NEIGHBOURS", k)
    monkeypatch.setattr(neighbours, "TEMPERATURE", temperature)
    assert knn_predict(*arguments).tolist() == expected.tolist()
    assert 0.1 < np.mean(expected == 0) < 0.5


@pytest.mark.parametrize(("temperature", "expected"), [(0.07, 1), (1e6, 0), (1e-6, 1)])
def test_a_close_neighbour_outweighs_many_far_ones(
    monkeypatch: pytest.MonkeyPatch, temperature: float, expected: int
) -> None:
    """At 0.07 it is exp(1 / 0.07) against 9 exp(0.5 / 0.07)."""
    monkeypatch.setattr(neighbours, "TEMPERATURE", temperature)
    bank = torch.tensor([[1.0, 0.0]] + [[0.5, 0.866]] * 9)
    assert knn_predict(torch.tensor([[1.0, 0.0]]), bank, torch.tensor([1] + [0] * 9)).item() == expected
