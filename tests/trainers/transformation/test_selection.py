"""`auto`: what each transformation is trained for, and which is kept."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from data.paired_embeddings import PairedEmbeddings
from models.config import CLOSED_FORMS
from models.transformations import TRANSFORMATIONS
from retrieval import retrieval_qualities, retrieval_quality
from trainers.budget import Clock
from trainers.config import OptimizerParams
from trainers.loop import Loss
from trainers.transformation.config import DiscriminativeLoss, FitConfig, UncertaintyLoss
from trainers.transformation.division import FittingData, divide, split
from trainers.transformation.fitting import Allowance, Fitted, Trial, arguments_of, fit, width_for
from trainers.transformation.pairs import PairBatch
from trainers.transformation.residuals import Regression, regression_of
from trainers.transformation.selection import METHODS, choose, comparison, configs_of, fit_methods
from trainers.transformation.task import TransformationTask
from utils.config import build, parse_yaml
from utils.distributed import World
from utils.preemption import Preemption
from utils.seeds import Stream, generator

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


def made_up(of_queries: torch.Tensor) -> Fitted:
    return Fitted({}, mock.Mock(), mock.Mock(), Trial("mAP", of_queries, 0.25))


def test_the_best_score_wins_and_of_equal_ones_the_simplest() -> None:
    scores = {"ridge": 0.5, "fct": 0.625, "fastfill": 0.625}
    fitted = {method: made_up(torch.full((100,), score)) for method, score in scores.items()}
    assert choose(fitted) is fitted["fct"]
    why = "auto: fct; the highest mAP on held-out pairs is fct's, 62.5%; the next is fastfill with 62.5%"
    assert comparison(fitted).splitlines()[-1] == why
    assert "auto" not in comparison({"fct": fitted["fct"]})


def test_what_is_better_by_chance_alone_does_not_win() -> None:
    """Differences of +-0.1 over 100 queries: the standard error of their mean is 0.01."""
    noise = 0.1 * torch.tensor([1.0, -1.0]).repeat(50)
    fitted = {
        "procrustes": made_up(torch.full((100,), 0.4999)),  # behind the best by no more than chance, and behind ridge
        "ridge": made_up(torch.full((100,), 0.5)),
        "fct": made_up(0.519 + noise),
    }
    assert choose(fitted) is fitted["ridge"]
    assert comparison(fitted).endswith("ridge with 50.0% is behind by no more than chance, and taken before it\n")
    fitted["fct"] = made_up(0.521 + noise)
    assert choose(fitted) is fitted["fct"]
    fitted["procrustes"] = made_up(0.519 + noise)  # better than ridge by chance, as in fits to a hundred held-out pairs
    del fitted["fct"]
    assert choose(fitted) is fitted["ridge"]


DATA = "old: old.npz\nnew: new.npz\nlr_policy_params: {warmup_length: 0}\ninner_dim: 8\nbatch_size: 16\nepochs: 30\n"


def curved_pairs(noise: float, seed: int, count: int = 160) -> PairedEmbeddings:
    """New embeddings that are a curved function of the old ones, and noise."""
    g = torch.Generator().manual_seed(seed)
    old = torch.randn(count, 5, generator=g)
    new = torch.cat([old[:, :2], old[:, 2:4].square(), old[:, 4:].sin()], 1) + noise * torch.randn(
        count, 5, generator=g
    )
    return PairedEmbeddings({"old": old, "new": new}, None, None, normalised=False)


def fit_made_up(
    folder: Path, pairs: PairedEmbeddings, clock: Clock | None = None, **values: Any
) -> tuple[dict[str, Fitted], FittingData, Regression]:
    own = build(FitConfig, {**parse_yaml(DATA), "output": str(folder / "h.pt"), **values}, source="made up")
    data = divide(pairs, own, World())
    regression = regression_of(data, own, World())
    assert regression is not None
    clock = clock or Clock(None)
    return fit_methods(own, data, regression, retrieval_qualities, World(), Preemption(), clock), data, regression


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 999), noise=st.floats(0.01, 3))
def test_no_network_is_worse_than_ridge_with_the_held_out_pairs(tmp_path: Path, seed: int, noise: float) -> None:
    """Even where it trains far too fast, and a network whose epochs are all worse is the ridge regression itself."""
    fast: dict[str, Any] = {"optimizer_params": {"algorithm": "adam", "lr": 0.3}, "epochs": 2}
    fitted, data, _ = fit_made_up(tmp_path, curved_pairs(noise, seed), resume=False, **fast)
    assert data.held_out is not None
    oracle = Ridge(alpha=strength_of(fitted["ridge"])).fit(data.training.views[0].embeddings["old"], new_of(data))
    predicted = torch.from_numpy(oracle.predict(data.held_out.old)).float()
    _, by_ridge = retrieval_quality(predicted, data.held_out.new, None)
    for method in ("residual_mlp", "fct", "fastfill"):
        trial = fitted[method].trial
        assert trial is not None
        assert trial.score >= by_ridge
        if trial.score == by_ridge:
            with torch.no_grad():
                h = fitted[method].transformation(data.held_out.old).embedding
            torch.testing.assert_close(h, predicted, rtol=1e-4, atol=1e-4)


def strength_of(fitted: Fitted) -> float:
    return float(json.loads(fitted.run.log_path.read_text())["strength"])


def new_of(data: FittingData) -> torch.Tensor:
    return data.training.views[0].embeddings["new"]


def test_what_ridge_leaves_over_is_learnt(tmp_path: Path) -> None:
    fast = {"algorithm": "adam", "lr": 0.02}
    fitted, *_ = fit_made_up(tmp_path, curved_pairs(0.05, 0, 240), method="residual_mlp", optimizer_params=fast)
    ridge, *_ = fit_made_up(tmp_path, curved_pairs(0.05, 0, 240), method="ridge", resume=False)
    (network,), (plain,) = fitted.values(), ridge.values()
    assert network.trial is not None
    assert plain.trial is not None
    assert network.trial.error < 0.5 * plain.trial.error
    assert network.trial.score > plain.trial.score


def test_a_budget_that_is_spent_leaves_the_closed_forms_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(60)
    clock.went_on(59)
    fitted, *_ = fit_made_up(tmp_path, curved_pairs(0.1, 0), clock)
    assert list(fitted) == ["procrustes", "ridge"]
    assert "; not tried: residual_mlp, fct, fastfill\n" in capsys.readouterr().out


@pytest.mark.parametrize("before", [0.0, 1000.0])
def test_steps_that_are_slow_end_in_time_with_the_best_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: float
) -> None:
    """Each of the three networks gets its share; what an earlier part of the run has spent counts."""
    plain_loss = TransformationTask.loss

    def slow_loss(task: TransformationTask, model: torch.nn.Module, batch: PairBatch) -> Loss:
        time.sleep(0.05 if model.training else 0)
        return plain_loss(task, model, batch)

    monkeypatch.setattr(TransformationTask, "loss", slow_loss)
    clock = Clock(before + 2.5)
    clock.went_on(before)
    started = time.monotonic()
    fitted, *_ = fit_made_up(tmp_path, curved_pairs(0.1, 0), clock, epochs=500, patience=500)
    assert time.monotonic() - started < 4 + before / 1000
    assert list(fitted)[-1] == "fastfill" or before
    for method in list(fitted)[2:]:
        assert "out of time after " in fitted[method].ending
        trial, ridge = fitted[method].trial, fitted["ridge"].trial
        assert trial is not None
        assert ridge is not None
        assert trial.score >= ridge.score


def test_a_method_that_cannot_win_any_more_is_dropped_and_named(tmp_path: Path) -> None:
    fitted = {
        "ridge": made_up(torch.full((10,), 0.9)),
        "fct": replace(made_up(torch.full((10,), 0.5)), seconds=12.34, ending="dropped after 6 epochs: 90.0%"),
    }
    assert "fct                  50.0%        0.25      12.3  dropped after 6 epochs: 90.0%" in comparison(fitted)
    still = {"algorithm": "sgd", "lr": 0.0}
    own = build(FitConfig, {**parse_yaml(DATA), "output": str(tmp_path / "h.pt"), "method": "fct"}, source="made up")
    own = replace(own, optimizer_params=build(OptimizerParams, still, source="made up"))
    data = divide(curved_pairs(0.1, 0), own, World())
    allowance = Allowance(Clock(None), to_beat=1.0)
    found = fit(own, data, regression_of(data, own, World()), retrieval_qualities, World(), Preemption(), allowance)
    assert found.ending == "dropped after 6 epochs: 100.0% is out of reach"


def test_duplicates_are_held_out_or_trained_on_together() -> None:
    g = torch.Generator().manual_seed(0)
    different = torch.randn(60, 5, generator=g)
    old = torch.cat([different, different[:30], different[:1].expand(40, 5)])
    pairs = PairedEmbeddings({"old": old, "new": old}, None, None, normalised=False)
    for seed in range(5):
        training, held_out = split(pairs, config(seed=seed, held_out=0.2))
        assert held_out is not None
        assert 20 <= len(held_out) <= 26
        assert len(training) + len(held_out) == len(pairs)
        assert not (training.embeddings["old"].unsqueeze(1) == held_out.embeddings["old"]).all(2).any()
    same = PairedEmbeddings({"old": old[:1].expand(30, 5), "new": old[:30]}, None, None, normalised=False)
    held_out = split(same, config(held_out=0.5))[1]
    assert held_out is not None
    assert len(held_out) == 15  # nothing could be held out else


def test_without_duplicates_the_pairs_held_out_are_those_that_were_before() -> None:
    old = torch.arange(100.0).unsqueeze(1)
    held_out = split(PairedEmbeddings({"old": old, "new": old}, None, None, normalised=False), config(seed=3))[1]
    assert held_out is not None
    expected = torch.randperm(100, generator=generator(3, Stream.HELD_OUT))[:10].sort().values
    assert held_out.embeddings["old"][:, 0].long().tolist() == expected.tolist()


def test_widths_follow_the_pairs_and_the_dimensions_and_the_papers_keep_theirs(tmp_path: Path) -> None:
    many = {pairs: width_for(pairs, 20, {"old": 1280, "new": 1280}) for pairs in (100, 1000, 10_000)}
    assert many[100] < many[1000]
    assert width_for(100_000, 20, {"old": 1280, "new": 1280}) < many[10_000]  # or it would take too long
    wide = [width_for(10_000, 20, {"old": dim, "new": dim}) for dim in (128, 1024, 3072)]
    assert wide == sorted(wide, reverse=True)
    papers = build(FitConfig, {**parse_yaml(DATA), "method": "fct", "held_out": 0, "output": "h.pt"}, source="papers")
    data = divide(curved_pairs(0.1, 0), replace(papers, inner_dim=None), World())
    arguments = arguments_of(replace(papers, inner_dim=None), data)
    assert arguments["inner_dim"] == 2048
    assert not {"branch_dim", "start_inputs", "standardised"} & set(arguments)
