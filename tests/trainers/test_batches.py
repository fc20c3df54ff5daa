"""Splitting loses nothing and keeps the order; a killed worker is a user's error, with what to do."""

import os
import signal
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from trainers.batches import split_batch, watch_workers
from utils.errors import UserError


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


class Deadly(Dataset[int]):
    """Item 3 kills the worker that is asked for it."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> int:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_worker_that_is_killed_is_named_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"decodes images died \(DataLoader worker .*\n.*lower dataset_params.num_work"):
        list(watch_workers(DataLoader(Deadly(), num_workers=1)))


def test_other_faults_pass_as_they_are() -> None:
    def faulty() -> object:
        yield 1
        raise RuntimeError("out of cheese")

    with pytest.raises(RuntimeError, match="out of cheese"):
        list(watch_workers(faulty()))  # type: ignore[arg-type]
