"""`method: auto`: fit every transformation, and keep the one that retrieves best with held-out pairs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from models.config import CLOSED_FORMS
from models.transformations import TRANSFORMATIONS
from trainers.budget import Clock, in_words
from trainers.transformation.config import AUTO, DiscriminativeLoss, FitConfig, Method, ObjectiveParams, UncertaintyLoss
from trainers.transformation.division import FittingData
from trainers.transformation.fitting import Allowance, Fitted, Score, Trial, fit
from trainers.transformation.residuals import Regression
from utils.distributed import World
from utils.paths import without_suffix
from utils.preemption import Preemption

METHODS: tuple[Method, ...] = ("procrustes", "ridge", "residual_mlp", "fct", "fastfill")  # from the simplest on
ERRORS = 2  # standard errors, beyond which one is better than another by more than chance


def fit_methods(
    config: FitConfig,
    data: FittingData,
    regression: Regression | None,
    score: Score,
    world: World,
    preemption: Preemption,
    clock: Clock,
) -> dict[str, Fitted]:
    """Fit what `method` names, each in its share of what is left of the budget.

    Methods that cannot beat the others any more are dropped, and those for which there is no time are left out.

    Raises:
        UserError, Preempted: see `fit`.
    """
    configs, fitted = configs_of(config), dict[str, Fitted]()
    for place, (method, own) in enumerate(configs.items()):
        trained = [other for other in list(configs)[place:] if other not in CLOSED_FORMS]
        until = clock.until(len(trained)) if trained else float("inf")
        if method in trained and fitted and world.any(clock.spent() >= until):
            if world.is_main:
                print(f"budget: spent after {in_words(clock.spent())}; not tried: {', '.join(trained)}", flush=True)
            break
        to_beat = max((one.trial.score for one in fitted.values() if one.trial), default=float("-inf"))
        allowance = Allowance(clock, until if method in trained else float("inf"), to_beat)
        fitted[method] = fit(own, data, regression, score, world, preemption, allowance)
        if world.is_main and (trial := fitted[method].trial) is not None and len(configs) > 1:
            what = f"{method}, {place + 1} of {len(configs)}: held-out {trial.measure} {trial.score:.1%}"
            print(f"{what}, {in_words(clock.spent())} so far", flush=True)
    return fitted


def configs_of(config: FitConfig) -> dict[str, FitConfig]:
    """The method that `config` names, with its config; with `auto`, every one that takes these files.

    Of several, each has its own log and checkpoint, so that an interrupted run goes on.
    """
    if config.method != AUTO:
        return {config.method: config}
    takes = [method for method in METHODS if TRANSFORMATIONS[method].takes_side_info or config.side_info is None]
    return {method: _config_of(config, method) for method in takes}


def _config_of(config: FitConfig, method: Method) -> FitConfig:
    """`config` for one method: FastFill gets all losses, weighed as they are given, the others L_sim alone."""
    params = config.objective_params
    losses, uncertain = ObjectiveParams(params.similarity_loss), TRANSFORMATIONS[method].has_uncertainty
    if uncertain:
        losses.discriminative_loss = params.discriminative_loss or DiscriminativeLoss()
        losses.uncertainty_loss = params.uncertainty_loss or UncertaintyLoss()
    elif method in CLOSED_FORMS:
        losses = ObjectiveParams()
    path, name = Path(config.output), without_suffix(config.output).name
    return replace(
        config,
        method=method,
        sigma_dim=config.sigma_dim if uncertain else None,
        objective_params=losses,
        mixup=None if method in CLOSED_FORMS else config.mixup,
        output=str(path.with_name(f"{name}.{method}{path.name.removeprefix(name)}")),
    )


def choose(fitted: Mapping[str, Fitted]) -> Fitted:
    """Ridge, unless another retrieves better by more than chance; then the simplest that does as well as the best.

    Chance is `ERRORS` standard errors of the difference over the held-out queries: of few, the best is a matter of
    luck, and a network that has picked its epoch by them looks better than it is.
    """
    trials = {method: one.trial for method, one in fitted.items() if one.trial is not None}
    if not trials:
        (one,) = fitted.values()
        return one
    best = max(trials.values(), key=lambda trial: trial.score)
    least = trials["ridge"].score if "ridge" in trials else float("-inf")
    ranked = sorted(trials, key=lambda method: method != "ridge")  # the others from the simplest on
    return fitted[next(name for name in ranked if trials[name].score >= least and _alike(trials[name], best))]


def _alike(trial: Trial, best: Trial) -> bool:
    behind = best.of_queries - trial.of_queries
    return bool(behind.mean() <= ERRORS * behind.std() / len(behind) ** 0.5)


def comparison(fitted: Mapping[str, Fitted]) -> str:
    """A table of what was fitted and, of several, a sentence that says why one was chosen; empty with none held out."""
    trials = {method: one.trial for method, one in fitted.items() if one.trial is not None}
    if not trials:
        return ""
    ranked = sorted(trials, key=lambda method: trials[method].score, reverse=True)
    measure = trials[ranked[0]].measure
    lines = [f"{'held-out pairs':14}  {measure:>10}  {'mse':>10}  {'seconds':>8}"]
    for method, trial in trials.items():
        row = f"{method:14}  {trial.score:>10.1%}  {trial.error:>10.4g}  {fitted[method].seconds:>8.1f}"
        lines.append(f"{row}  {fitted[method].ending}".rstrip())
    if len(ranked) > 1:
        best, second = ranked[:2]
        (chosen,) = (method for method, one in fitted.items() if one is choose(fitted))
        why = f"the next is {second} with {trials[second].score:.1%}"
        if chosen != best:
            why = f"{chosen} with {trials[chosen].score:.1%} is behind by no more than chance, and taken before it"
        lines.append(
            f"auto: {chosen}; the highest {measure} on held-out pairs is {best}'s, {trials[best].score:.1%}; {why}"
        )
    return "\n".join(lines) + "\n"
