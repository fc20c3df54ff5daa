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
    assert knn_predict(*arguments, neighbours=k, temperature=temperature).tolist() == expected.tolist()
    assert 0.1 < np.mean(expected == 0) < 0.5


def test_a_close_neighbour_outweighs_many_far_ones() -> None:
    bank = torch.tensor([[1.0, 0.0]] + [[0.5, 0.866]] * 9)
    labels = torch.tensor([1] + [0] * 9)
    query = torch.tensor([[1.0, 0.0]])
    assert knn_predict(query, bank, labels).item() == 1  # exp(1 / 0.07) against 9 exp(0.5 / 0.07)
    assert knn_predict(query, bank, labels, temperature=1e6).item() == 0
    assert knn_predict(query, bank, labels, temperature=1e-6).item() == 1
