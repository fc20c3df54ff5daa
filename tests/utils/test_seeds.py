"""Randomness is a function of what it is named by."""

import itertools

import numpy as np
import pytest
import torch

from utils.seeds import Stream, generator, seed_of


def draw(seed: int, stream: Stream, *numbers: int) -> list[float]:
    return torch.rand(4, generator=generator(seed, stream, *numbers)).tolist()


def test_the_same_numbers_draw_the_same_whatever_ran_before_and_leave_the_global_generator_alone() -> None:
    first = draw(0, Stream.AUGMENT, 3, 1)
    torch.manual_seed(5)
    expected = torch.rand(10)
    torch.manual_seed(5)
    draw(9, Stream.SHUFFLE)
    assert torch.equal(torch.rand(10), expected)
    assert draw(0, Stream.AUGMENT, 3, 1) == first


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_no_two_streams_of_a_run_are_one(seed: int) -> None:
    """Zeros too: what has no epochs against epoch 0, a stream of its own against that of image 0 or process 0 in it."""
    further = [(), *itertools.product(range(4)), *itertools.product(range(4), repeat=2)]
    named = list(itertools.product(Stream, range(6), further))
    seeds = {seed_of(seed, stream, epoch, *more) for stream, epoch, more in named}
    assert len(seeds) == len(named)
    assert all(0 <= value < 2**63 for value in seeds)


def test_what_published_figures_were_drawn_by_stays() -> None:
    """The order of an epoch, views and colours: the entropy is (seed, epoch, number of the stream)."""
    for number, stream in enumerate((Stream.SHUFFLE, Stream.AUGMENT, Stream.COLOURS)):
        expected = np.random.SeedSequence((3, 7, number)).generate_state(1, np.uint64)[0] >> np.uint64(1)
        assert seed_of(3, stream, 7) == int(expected)
    assert seed_of(0, Stream.SHUFFLE) == 7896617691693857887


def test_negative_numbers_name_nothing() -> None:
    for numbers in ((-1, 0), (0, -1), (0, 0, -1)):
        with pytest.raises(ValueError, match="non-negative"):
            seed_of(numbers[0], Stream.SHUFFLE, *numbers[1:])
