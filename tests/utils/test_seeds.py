"""Randomness is a function of the numbers it is named by."""

import itertools

import pytest
import torch

from utils.seeds import generator, seed_of


def draw(*numbers: int) -> list[float]:
    return torch.rand(4, generator=generator(*numbers)).tolist()


def test_the_same_numbers_draw_the_same_whatever_ran_before() -> None:
    first = draw(0, 3, 1)
    torch.manual_seed(5)
    torch.rand(10)
    draw(9)
    assert draw(0, 3, 1) == first


def test_drawing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draw(1, 2)
    assert torch.equal(torch.rand(3), expected)


def test_every_number_and_its_place_matter() -> None:
    seeds = {seed_of(*numbers) for numbers in itertools.product(range(8), repeat=3)}
    assert len(seeds) == 8**3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_negative_numbers_name_nothing() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        seed_of(0, -1)
