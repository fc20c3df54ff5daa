"""Lengths of embeddings against one row at a time, and zero vectors, which stay what they are."""

import numpy as np
import pytest
import torch

from data.lengths import Lengths, are_zero, lengths_of, zeros_kept

RNG = np.random.default_rng(0)
UNIT = RNG.normal(size=(50, 6))
UNIT /= np.linalg.norm(UNIT, axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("zeros", [(), (0,), (49,), (0, 7, 30)])
@pytest.mark.parametrize("others", [(), (0,), (12, 40)])
def test_lengths_row_by_row(
    dtype: type, zeros: tuple[int, ...], others: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.lengths.CHUNK", 8)
    rows = UNIT.copy()
    rows[list(others)] *= 1.02
    rows[list(zeros)] = 0
    remaining = sorted(set(others) - set(zeros))
    found = lengths_of(torch.from_numpy(rows.astype(dtype)))
    assert found == Lengths(
        50, len(zeros), min(zeros, default=None), 50 - len(zeros) - len(remaining), min(remaining, default=None)
    )
    assert found.are_one == (not remaining)


def test_zero_vectors_alone_have_no_length_one() -> None:
    assert not lengths_of(torch.zeros(4, 3)).are_one


def test_what_is_zero_stays_zero() -> None:
    old, transformed = torch.randn(5, 3), torch.randn(5, 4)
    old[1], old[3, 0] = 0, 0
    old[4] = torch.tensor([0.0, -0.0, 0.0])
    assert are_zero(old).tolist() == [False, True, False, False, True]
    kept = zeros_kept(transformed, old)
    for row in range(5):
        assert torch.equal(kept[row], torch.zeros(4) if row in (1, 4) else transformed[row])
