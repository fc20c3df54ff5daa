"""The registry of backfilling orders."""

from typing import Any, get_args

import pytest
import torch

from evaluation.config import BackfillingOrder
from retrieval import ORDERS, backfilling_order
from utils.errors import UserError

GENERATOR = torch.Generator().manual_seed(0)
NEW, TRANSFORMED = torch.randn(2, 40, 6, generator=GENERATOR)
LOG_VARIANCE = torch.randn(40, generator=GENERATOR)
LABELS = torch.arange(40) % 7


def test_configs_name_every_order() -> None:
    assert set(get_args(BackfillingOrder)) == set(ORDERS)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("name", ORDERS)
def test_every_order_is_a_permutation(name: str, distance: str) -> None:
    known = {"log_variance": LOG_VARIANCE, "classifier": NEW[:5], "class_means": NEW[5:10], "labels": LABELS}
    order = backfilling_order(name, transformed=TRANSFORMED, new=NEW, distance=distance, **known)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(40))


def test_random_follows_the_seed() -> None:
    first, again, other = (
        backfilling_order("random", transformed=TRANSFORMED, new=NEW, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(5)
    assert torch.equal(first, backfilling_order("random", transformed=TRANSFORMED, new=NEW, seed=1))


def test_distance_takes_the_farthest_first() -> None:
    transformed, new = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([[1.0, 1.0], [9.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])
    assert backfilling_order("distance", transformed=transformed, new=new).tolist() == [1, 3, 2, 0]
    by_cosine = backfilling_order("distance", transformed=transformed, new=new, distance="cosine")
    assert by_cosine.tolist() == [3, 2, 0, 1]


def test_sigma_takes_the_most_uncertain_first() -> None:
    order = backfilling_order("sigma", transformed=TRANSFORMED, new=NEW, log_variance=LOG_VARIANCE)
    assert order.tolist() == sorted(range(40), key=lambda item: -LOG_VARIANCE[item].item())
    a_dimension_each = LOG_VARIANCE[:, None] + torch.tensor([-1.0, 0.0, 1.0])
    assert torch.equal(
        order, backfilling_order("sigma", transformed=TRANSFORMED, new=NEW, log_variance=a_dimension_each)
    )


@pytest.mark.parametrize("name", ["distance", "sigma"])
def test_ties_go_by_index(name: str) -> None:
    order = backfilling_order(name, transformed=NEW, new=NEW, log_variance=torch.zeros(40))
    assert order.tolist() == list(range(40))


def test_half_precision_differences_do_not_overflow() -> None:
    new = torch.tensor([[60000.0], [-60000.0], [0.0]]).half()
    transformed = torch.tensor([[-60000.0], [0.0], [0.0]]).half()
    assert backfilling_order("distance", transformed=transformed, new=new).tolist() == [0, 1, 2]


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
    arguments = {"name": "sigma", "transformed": TRANSFORMED, "new": NEW, "log_variance": LOG_VARIANCE, **change}
    with pytest.raises(UserError, match=message) as error:
        backfilling_order(**arguments)
    assert "\n" not in str(error.value)
