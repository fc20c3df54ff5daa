"""`arch_params.arch: auto`: fit every transformation, and keep the one that retrieves best with held-out pairs."""

from dataclasses import replace

from models.config import AUTO, CLOSED_FORMS
from models.transformations import TRANSFORMATIONS
from trainers.transformation.config import DiscriminativeLoss, ObjectiveParams, TransformationConfig, UncertaintyLoss
from trainers.transformation.sample import Fitted, Sample, Score, fit_on_sample, output_of
from utils.distributed import World
from utils.preemption import Preemption
from utils.runs import Run

METHODS = ("procrustes", "ridge", "residual_mlp", "fct", "fastfill")  # from the simplest on


def fit_methods(
    config: TransformationConfig, sample: Sample, score: Score, world: World, preemption: Preemption
) -> dict[str, Fitted]:
    """The transformation that `config` names, by name; or every one that takes the sample's inputs.

    Of several, each has its own log and checkpoint, so that an interrupted run goes on.

    Raises:
        UserError, Preempted: see `fit_on_sample`.
    """
    if config.arch_params.arch == AUTO:
        has_side_info = "side_info" in sample.dims
        methods = [arch for arch in METHODS if TRANSFORMATIONS[arch].takes_side_info or not has_side_info]
        configs = {arch: config_of(config, arch) for arch in methods}
    else:
        configs = {config.arch_params.arch: config}
    fitted = {arch: fit_on_sample(own, sample, score, world, preemption) for arch, own in configs.items()}
    if config.arch_params.arch == AUTO:
        Run(config.output_transformation_path, config, world)  # the config beside the output
    return fitted


def config_of(config: TransformationConfig, arch: str) -> TransformationConfig:
    """`config` for one transformation: FastFill gets all losses, weighed as they are given, the others L_sim alone."""
    params = config.objective_params
    losses, uncertain = ObjectiveParams(params.similarity_loss), TRANSFORMATIONS[arch].has_uncertainty
    if uncertain:
        losses.discriminative_loss = params.discriminative_loss or DiscriminativeLoss()
        losses.uncertainty_loss = params.uncertainty_loss or UncertaintyLoss()
    elif arch in CLOSED_FORMS:
        losses = ObjectiveParams()
    return replace(
        config,
        arch_params=replace(
            config.arch_params, arch=arch, sigma_dim=config.arch_params.sigma_dim if uncertain else None
        ),
        objective_params=losses,
        mixup=None if arch in CLOSED_FORMS else config.mixup,
        output_transformation_path=output_of(config, arch),
    )


def choose(fitted: dict[str, Fitted]) -> Fitted:
    """The one with the best score; of equal ones, and where nothing is held out, the simplest."""
    return max(fitted.values(), key=lambda one: 0.0 if one.trial is None else one.trial.score)


def comparison(fitted: dict[str, Fitted]) -> str:
    """A table of what was fitted and, of several, a sentence that says why one was chosen; empty with none held out."""
    trials = {arch: one.trial for arch, one in fitted.items() if one.trial is not None}
    if not trials:
        return ""
    ranked = sorted(trials, key=lambda arch: trials[arch].score, reverse=True)
    measure = trials[ranked[0]].measure
    lines = [f"{'held-out pairs':14}  {measure:>10}  {'mse':>10}"]
    lines += [f"{arch:14}  {trial.score:>10.1%}  {trial.error:>10.4g}" for arch, trial in trials.items()]
    if len(ranked) > 1:
        best, second = ranked[:2]
        lines.append(
            f"auto: {best}, whose {measure} on held-out pairs, {trials[best].score:.1%}, is the highest; "
            f"the next is {second} with {trials[second].score:.1%}"
        )
    return "\n".join(lines) + "\n"
