"""The registry of backfilling orders."""

from typing import Any, get_args

import pytest
import torch

from evaluation.config import BackfillingOrder
from retrieval import ORDERS, backfilling_order
from tests.retrieval.oracle import seeded
from utils.errors import UserError

GENERATOR = seeded(0)
NEW, TRANSFORMED = torch.randn(2, 40, 6, generator=GENERATOR)
LOG_VARIANCE = torch.randn(40, generator=GENERATOR)


def order(name: str, **change: Any) -> torch.Tensor:
    known: dict[str, Any] = {"transformed": TRANSFORMED, "new": NEW, "log_variance": LOG_VARIANCE, **change}
    return backfilling_order(name, **known)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("name", get_args(BackfillingOrder))
def test_every_order_that_a_config_may_name_is_a_permutation(name: str, distance: str) -> None:
    classes = {"classifier": NEW[:5], "class_means": NEW[5:10], "labels": torch.arange(40) % 7}
    found = order(name, distance=distance, **classes)
    assert found.dtype == torch.int64
    assert sorted(found.tolist()) == list(range(40))
    assert set(get_args(BackfillingOrder)) == set(ORDERS)


def test_random_follows_the_seed_alone() -> None:
    first = order("random", seed=1)
    assert not torch.equal(first, order("random", seed=2))
    torch.manual_seed(5)
    assert torch.equal(first, order("random", seed=1))


def test_distance_takes_the_farthest_first() -> None:
    transformed, new = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([[1.0, 1.0], [9.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])
    assert order("distance", transformed=transformed, new=new).tolist() == [1, 3, 2, 0]
    assert order("distance", transformed=transformed, new=new, distance="cosine").tolist() == [3, 2, 0, 1]
    # In half precision their differences would overflow.
    new = torch.tensor([[60000.0], [-60000.0], [0.0]]).half()
    transformed = torch.tensor([[-60000.0], [0.0], [0.0]]).half()
    assert order("distance", transformed=transformed, new=new).tolist() == [0, 1, 2]


def test_sigma_takes_the_most_uncertain_first() -> None:
    expected = sorted(range(40), key=lambda item: -LOG_VARIANCE[item].item())
    assert order("sigma").tolist() == expected
    a_dimension_each = LOG_VARIANCE[:, None] + torch.tensor([-1.0, 0.0, 1.0])
    assert order("sigma", log_variance=a_dimension_each).tolist() == expected


@pytest.mark.parametrize("name", ["distance", "sigma"])
def test_ties_go_by_index(name: str) -> None:
    assert order(name, transformed=NEW, log_variance=torch.zeros(40)).tolist() == list(range(40))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "sigm"},
            r"order: unknown 'sigm'; did you mean sigma\? \(choices: random, distance, sigma, .*oracle\)",
        ),
        ({"log_variance": None}, r"order `sigma` needs a gallery with sigma \(log variance\); train with MLP_BN"),
        ({"log_variance": LOG_VARIANCE[:-1]}, "sigma: has 39 rows, but new 40"),
        ({"log_variance": LOG_VARIANCE.where(LOG_VARIANCE < 1, torch.nan)}, r"sigma: \d+ of 40 rows hold NaN"),
        ({"distance": "l1"}, r"distance: unknown 'l1'; .*\(choices: l2, cosine\)"),
        ({"transformed": TRANSFORMED[:-1]}, "transformed: has 39 rows, but new 40"),
        ({"transformed": TRANSFORMED[:, :-1]}, "transformed: embeddings are 5-dimensional, but those of new 6"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        order(**{"name": "sigma", **change})
