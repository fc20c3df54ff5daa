"""The metric formulas against scikit-learn and hand-made rankings; their doctests are hand-made ones too."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from retrieval.metrics import average_precision, first_relevant_rank


def test_average_precision_groups_ties_as_scikit_learn_does() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        distances, relevance = generator.integers(8, size=20), generator.integers(2, size=20)
        relevance[0] = 1
        relevant = torch.from_numpy(np.bincount(distances, weights=relevance, minlength=8).cumsum())
        retrieved = torch.from_numpy(np.bincount(distances, minlength=8).cumsum())
        expected = average_precision_score(relevance, -distances)
        assert average_precision(relevant, retrieved).item() == pytest.approx(expected, abs=1e-12)


def test_entries_without_a_relevant_item_carry_nothing() -> None:
    relevant, retrieved = torch.tensor([0, 0, 1, 1, 3, 3]), torch.tensor([0, 1, 2, 4, 8, 9])
    kept = torch.tensor([2, 4])
    assert average_precision(relevant, retrieved) == average_precision(relevant[kept], retrieved[kept])
    assert first_relevant_rank(relevant, retrieved) == first_relevant_rank(relevant[kept], retrieved[kept]) == 2


@pytest.mark.parametrize(
    ("relevant", "retrieved", "rank"),
    [([1, 1], [1, 2], 1), ([0, 0, 1], [1, 2, 3], 3), ([2, 2], [2, 5], 1), ([2, 3], [5, 6], 4), ([0, 3], [2, 6], 4)],
)
def test_first_relevant_rank_is_the_worst_of_its_ties(relevant: list[int], retrieved: list[int], rank: int) -> None:
    assert first_relevant_rank(torch.tensor(relevant), torch.tensor(retrieved)).item() == rank
