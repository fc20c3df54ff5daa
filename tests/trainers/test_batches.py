"""Splitting loses nothing and keeps the order; nor does sharing among processes."""

from typing import NamedTuple

import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.batches import share_of_batch, split_batch
from utils.distributed import World


class Rows(NamedTuple):
    absent: torch.Tensor | None
    values: torch.Tensor
    labels: torch.Tensor


@given(rows=st.integers(1, 40), size=st.none() | st.integers(1, 45))
def test_the_parts_are_the_batch_and_none_is_larger_than_asked_for(rows: int, size: int | None) -> None:
    batch = Rows(None, torch.arange(2.0 * rows).view(rows, 2), torch.arange(rows))
    parts = split_batch(batch, size)
    assert all(isinstance(part, Rows) and part.absent is None for part, _ in parts)
    assert torch.equal(torch.cat([part.values for part, _ in parts]), batch.values)
    assert torch.equal(torch.cat([part.labels for part, _ in parts]), batch.labels)
    assert [count for _, count in parts] == [len(part.labels) for part, _ in parts]
    assert max(count for _, count in parts) <= (size or rows)
    assert len(parts) == -(-rows // (size or rows))


@given(rows=st.integers(1, 9), size=st.integers(1, 12))
def test_the_shares_of_all_processes_are_the_batch(rows: int, size: int) -> None:
    batch = Rows(None, torch.arange(2.0 * rows).view(rows, 2), torch.arange(rows))
    shares = [share_of_batch(batch, World(rank, size)) for rank in range(size)]
    assert all(isinstance(share, Rows) and share.absent is None for share in shares)
    assert torch.equal(torch.cat([share.values for share in shares]), batch.values)
    assert torch.equal(torch.cat([share.labels for share in shares]), batch.labels)
