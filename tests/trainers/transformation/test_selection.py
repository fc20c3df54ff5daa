"""`auto`: what each transformation is trained for, and which is kept."""

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

from models.config import CLOSED_FORMS
from models.transformations import TRANSFORMATIONS
from trainers.transformation import selection
from trainers.transformation.config import TransformationConfig
from trainers.transformation.pairs import PairBatch, PairsInMemory
from trainers.transformation.sample import Fitted, Sample, Trial
from trainers.transformation.selection import METHODS, choose, comparison, config_of, fit_methods
from utils.config import build, parse_yaml
from utils.distributed import World
from utils.preemption import Preemption

CONFIG = """
embeddings_params: {old: old.npz, new: new.npz}
arch_params: {arch: auto, sigma_dim: 1}
objective_params: {similarity_loss: {name: l1, mu_similarity: 2}, discriminative_loss: {mu_disc: 3}}
output_transformation_path: out/h.pt
"""


def config() -> TransformationConfig:
    return build(TransformationConfig, parse_yaml(CONFIG), source="auto")


def with_score(score: float) -> Fitted:
    return Fitted({}, mock.Mock(), mock.Mock(), Trial("mAP", score, 0.25))


def test_every_kind_is_tried_from_the_simplest_on() -> None:
    assert {TRANSFORMATIONS[arch] for arch in METHODS} == set(TRANSFORMATIONS.values())
    assert METHODS[: len(CLOSED_FORMS)] == CLOSED_FORMS


@pytest.mark.parametrize("arch", METHODS)
def test_each_gets_the_losses_that_it_can_use(arch: str) -> None:
    own = config_of(config(), arch)
    losses = own.objective_params
    assert own.arch_params.arch == arch
    assert own.output_transformation_path == f"out/h.{arch}.pt"
    assert losses.similarity_loss.name == ("mse" if arch in CLOSED_FORMS else "l1")
    if arch == "fastfill":
        assert losses.discriminative_loss is not None
        assert losses.discriminative_loss.mu_disc == 3
        assert losses.uncertainty_loss is not None
        assert losses.uncertainty_loss.mu_uncertainty == 0.5
    else:
        assert (losses.discriminative_loss, losses.uncertainty_loss) == (None, None)


def test_of_outputs_that_differ_behind_a_dot_each_kind_has_files_of_its_own() -> None:
    outputs = ("out/fct_v1.0", "out/fct_v1.1")
    configs = [replace(config(), output_transformation_path=output) for output in outputs]
    assert [config_of(one, "fct").output_transformation_path for one in configs] == [f"{out}.fct" for out in outputs]


def test_the_best_score_wins_and_of_equal_ones_the_simplest() -> None:
    fitted = {"ridge": with_score(0.5), "fct": with_score(0.625), "fastfill": with_score(0.625)}
    assert choose(fitted) is fitted["fct"]
    table = comparison(fitted).splitlines()
    assert table[0].split() == ["held-out", "pairs", "mAP", "mse"]
    assert table[2].split() == ["fct", "62.5%", "0.25"]
    assert table[-1] == "auto: fct, whose mAP on held-out pairs, 62.5%, is the highest; the next is fastfill with 62.5%"
    assert len(comparison({"fct": with_score(0.625)}).splitlines()) == 2


@pytest.mark.parametrize("side_info", [False, True])
def test_with_side_information_those_are_left_out_that_take_none(side_info: bool) -> None:
    pairs = PairsInMemory([], batch_size=1, world=World(), seed=0)
    nothing = PairBatch(torch.empty(0), None, torch.empty(0), torch.empty(0))
    dims = {"old": 4, "new": 4} | ({"side_info": 2} if side_info else {})
    sample = Sample(pairs, nothing, dims, None, False)

    def fit(own: Any, *arguments: Any) -> Fitted:
        return with_score(float(len(own.arch_params.arch)))

    with mock.patch.object(selection, "fit_on_sample", fit), mock.patch.object(selection, "Run"):
        fitted = fit_methods(config(), sample, mock.Mock(), World(), Preemption())
    assert list(fitted) == [arch for arch in METHODS if not (side_info and arch == "procrustes")]
