"""`auto`: what each transformation is trained for, and which is kept."""

from typing import Any
from unittest import mock

import pytest

from models.config import CLOSED_FORMS
from models.transformations import TRANSFORMATIONS
from trainers.transformation.config import DiscriminativeLoss, FitConfig, UncertaintyLoss
from trainers.transformation.fitting import Fitted, Trial
from trainers.transformation.selection import METHODS, choose, comparison, configs_of
from utils.config import build, parse_yaml

CONFIG = """
old: old.npz
new: new.npz
sigma_dim: 1
objective_params: {similarity_loss: {name: l1, mu_similarity: 2}, discriminative_loss: {mu_disc: 3}}
output: out/h.pt
"""


def config(**values: Any) -> FitConfig:
    return build(FitConfig, {**parse_yaml(CONFIG), **values}, source="auto")


def test_every_kind_is_tried_from_the_simplest_on() -> None:
    assert {TRANSFORMATIONS[arch] for arch in METHODS} == set(TRANSFORMATIONS.values())
    assert METHODS[: len(CLOSED_FORMS)] == CLOSED_FORMS
    assert tuple(configs_of(config())) == METHODS
    assert list(configs_of(config(side_info="side.npz"))) == [m for m in METHODS if m != "procrustes"]


def test_a_method_that_is_named_is_fitted_as_it_is_stated() -> None:
    own = config(method="fct", sigma_dim=None)
    assert configs_of(own) == {"fct": own}


@pytest.mark.parametrize("method", METHODS)
def test_each_gets_the_losses_that_it_can_use_and_files_of_its_own(method: str) -> None:
    own = configs_of(config())[method]
    losses = own.objective_params
    assert (own.method, own.output) == (method, f"out/h.{method}.pt")
    assert losses.similarity_loss.name == ("mse" if method in CLOSED_FORMS else "l1")
    if method == "fastfill":
        assert losses.discriminative_loss == DiscriminativeLoss(mu_disc=3)
        assert losses.uncertainty_loss == UncertaintyLoss()
    else:
        assert (losses.discriminative_loss, losses.uncertainty_loss) == (None, None)
    for output in ("out/fct_v1.0", "out/fct_v1.1"):  # which differ behind a dot
        assert configs_of(config(output=output))[method].output == f"{output}.{method}"


def test_the_best_score_wins_and_of_equal_ones_the_simplest() -> None:
    fitted = {
        method: Fitted({}, mock.Mock(), mock.Mock(), Trial("mAP", score, 0.25))
        for method, score in (("ridge", 0.5), ("fct", 0.625), ("fastfill", 0.625))
    }
    assert choose(fitted) is fitted["fct"]
    why = "auto: fct, whose mAP on held-out pairs, 62.5%, is the highest; the next is fastfill with 62.5%"
    assert comparison(fitted).splitlines()[-1] == why
    assert "auto" not in comparison({"fct": fitted["fct"]})
