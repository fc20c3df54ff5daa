"""Splitting loses nothing and keeps the order; nor does sharing among processes."""

import re
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.batches import check_parts, share_of_batch, split_batch
from utils.distributed import World
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


def refused(items: int, batch_size: int, micro_batch: int | None, size: int, *, one: bool) -> str | None:
    try:
        check_parts(items, batch_size, micro_batch, World(0, size), key="batch_size", trains_on_one=lambda: one)
    except UserError as error:
        return str(error)
    return None


@given(
    items=st.integers(1, 30),
    local=st.integers(1, 8),
    micro_batch=st.none() | st.integers(1, 9),
    size=st.integers(1, 4),
    one=st.booleans(),
)
def test_a_part_that_is_too_small_is_refused_and_no_other(
    items: int, local: int, micro_batch: int | None, size: int, one: bool
) -> None:
    step = min(items, local * size)
    of_step = Rows(None, torch.zeros(step, 1), torch.arange(step))
    shares = [share_of_batch(of_step, World(rank, size)) for rank in range(size)]
    assert torch.equal(torch.cat([share.labels for share in shares]), of_step.labels)
    parts = [count for share in shares for _, count in split_batch(share, micro_batch)]
    assert (refused(items, local * size, micro_batch, size, one=one) is None) == (min(parts) >= (1 if one else 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((9, 2, None, 2), r"batch_size: 2 items a step over 2 processes leave one with 1, .*; take at least 4"),
        ((3, 4, None, 2), r"leave one with 1, .*; there are no more, so use fewer processes"),
        (
            (9, 5, 2, 1),
            r"parts of 2 of a process's 5 images leave one of a single image, .*; choose one that divides 5",
        ),
    ],
)
def test_the_refusal_says_what_to_do(arguments: tuple[int, int, int | None, int], message: str) -> None:
    assert re.search(message, refused(*arguments, one=False) or "")
