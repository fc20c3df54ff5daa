"""The configs of train_transformation.py and fit_embeddings.py, and what they share."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from data.config import DatasetParams, PairedFiles
from models.config import CLOSED_FORMS, OLD_ALONE, UNCERTAIN, ExportFormat, TransformationArch
from trainers.budget import seconds_of
from trainers.config import COMPILE_DOC, TENSORBOARD_DOC, Compile, LoopParams, LrPolicyParams, OptimizerParams
from utils.choices import PROCESSES_DOC, Precision, Processes
from utils.config import key, section

PAPERS_EPOCHS = 80
AUTO = "auto"  # `method`: the one that does best on held-out pairs
Method = Literal["auto", "procrustes", "ridge", "residual_mlp", "fct", "fastfill"]
CONTRASTS = ("SupCon", "InfoNCE")  # of `discriminative_loss.name`: those that look at no classifier


@dataclass
class SimilarityLoss:
    """`objective_params.similarity_loss`: L_sim."""

    name: Literal["mse", "l1", "cosine"] = key("mse", doc="distance between h(old) and new")
    mu_similarity: float = key(1.0, doc="weight of L_sim", minimum=0.0)


@dataclass
class DiscriminativeLoss:
    """`objective_params.discriminative_loss`: L_disc, through the new model's frozen classifier or by contrast."""

    name: Literal["LabelSmoothing", "SupCon", "InfoNCE"] | None = key(
        None,
        doc="cross-entropy of the new model's classifier with smoothed labels; without a classifier, the contrast of "
        "the new embeddings of the item's class (SupCon) or of its own (InfoNCE, without labels) with the batch's "
        "others; if left out, LabelSmoothing where there are labels",
    )
    label_smoothing: float = key(0.1, doc="share of the label spread over all classes", minimum=0.0, maximum=1.0)
    temperature: float = key(0.1, doc="SupCon, InfoNCE: of the cosines", minimum=1e-3)
    mu_disc: float = key(1.0, doc="weight of L_disc", minimum=0.0)


@dataclass
class UncertaintyLoss:
    """`objective_params.uncertainty_loss`: the log variance s weighs each item's loss."""

    mu_uncertainty: float = key(0.5, doc="weight of the mean log variance", minimum=0.0)


@dataclass
class ObjectiveParams:
    """`objective_params`: a loss whose section is left out is not part of the objective."""

    similarity_loss: SimilarityLoss = section(SimilarityLoss, doc="L_sim; always part of the objective")
    discriminative_loss: DiscriminativeLoss | None = key(None, doc="L_disc; FastFill")
    uncertainty_loss: UncertaintyLoss | None = key(None, doc="uncertainty; FastFill")

    @property
    def needs_classifier(self) -> bool:
        """Whether, of models, the new one's classifier is part of the objective."""
        return self.discriminative_loss is not None and self.discriminative_loss.name not in CONTRASTS


@dataclass
class RefinementParams:
    """`refinement_params`: a head on h, chosen by retrieval among held-out training items."""

    held_out: float = key(
        0.1,
        doc="share of the training items kept from the training, on which it is chosen; fit_embeddings.py has its own "
        "`held_out` for that, but where it is 0",
        minimum=0.01,
        maximum=0.5,
    )
    strengths: list[float] = key(  # no stronger ones: items that the new model was trained on would choose them
        [0.0, 0.15], doc="of the pull, from 0 to 1, to choose among; of equally good ones the first"
    )
    clusters: int | None = key(
        None, doc="so many k-means centroids of the new embeddings in place of classifier and class means", minimum=2
    )

    def __post_init__(self) -> None:
        if not self.strengths or not all(0 <= strength <= 1 for strength in self.strengths):
            raise ValueError(f"strengths: should be one or more from 0 to 1, got {self.strengths}")


@dataclass(kw_only=True)
class HowToFit:
    """Keys of both configs: what h is trained for, and how."""

    objective_params: ObjectiveParams = section(
        ObjectiveParams, doc="the losses; L_sim alone (FCT) if left out; closed forms minimise mse"
    )
    refinement_params: RefinementParams | None = key(
        None,
        doc="pull h towards class means, by a strength chosen on held-out training items; none: h as it is",
    )
    calibration_held_out: float = key(
        0.0,
        doc="calibrate h for mixed galleries, on so large a share of the training items, kept from the training; "
        "on those of a refinement where there is one; 0: no calibration, but of fit_embeddings.py on its `held_out`",
        minimum=0.0,
        maximum=0.5,
    )
    mixup: float | None = key(
        None,
        doc="mix each item with another of its batch, by a share drawn from Beta(mixup, mixup); none: as they are",
        minimum=0.01,
    )
    lr_policy_params: LrPolicyParams = section(LrPolicyParams, doc="the learning-rate schedule")
    switch_mode_to_eval: bool = key(False, doc="freeze the BN statistics from half of the epochs on")
    seed: int = key(0, doc="of the initial weights, the shuffling, the augmentation and what is held out", minimum=0)
    precision: Precision = key("auto", doc="bf16 autocast where the machine computes it fast, or fp32")
    compile: Compile = key("auto", doc=COMPILE_DOC)
    resume: bool = key(True, doc="go on from the last checkpoint of an interrupted run")
    tensorboard: bool = key(False, doc=TENSORBOARD_DOC)
    export_formats: list[ExportFormat] = key([], doc="also write the model in these formats")

    @property
    def calibrates(self) -> bool:
        """Whether h is calibrated."""
        return self.calibration_held_out > 0

    @property
    def kept_from_training(self) -> float:
        """The share of the training items that a refinement and a calibration are chosen on."""
        params = self.refinement_params
        return self.calibration_held_out if params is None else params.held_out

    def _check_losses(self, arch: str) -> None:
        """Raise ValueError where `arch` is a closed form, and more than the mean squared error is asked of it."""
        if arch not in CLOSED_FORMS:
            return
        params = self.objective_params
        losses = {"discriminative_loss": params.discriminative_loss, "uncertainty_loss": params.uncertainty_loss}
        asked = {**{f"objective_params.{name}": loss for name, loss in losses.items()}, "mixup": self.mixup}
        for name, value in asked.items():
            if value is not None:
                raise ValueError(f"{name}: {arch} is a closed form and cannot use it; leave it out")
        if (similarity := params.similarity_loss.name) != "mse":
            raise ValueError(
                f"objective_params.similarity_loss.name: {arch} minimises mse in closed form, not {similarity}"
            )


@dataclass(kw_only=True)
class TransformationConfig(HowToFit):
    """train_transformation.py: two models and images -> a transformation from old embeddings to the new space."""

    MOVED: ClassVar[dict[str, str]] = {
        "embeddings_params": "embedding files have a script of their own now: python fit_embeddings.py --config "
        "configs/fit_embeddings.yaml old=FILE new=FILE output=FILE.pt"
    }
    BATCH_SIZE: ClassVar[str] = "dataset_params.batch_size"

    old_model_path: str = key(doc="the old model, of any kind that models.md names", path="model")
    new_model_path: str = key(
        doc="the new model; likewise, but of ours where its classifier is asked for", path="model"
    )
    arch_params: TransformationArch = key(doc="the transformation")
    optimizer_params: OptimizerParams | None = key(None, doc="the optimizer; closed forms have none")
    dataset_params: DatasetParams = key(doc="the training images")
    epochs: int | None = key(None, doc="passes over the training set; closed forms take one", minimum=1)
    output_transformation_path: str = key(doc="file for the transformation alone", path="output")
    output_transformed_old_model_path: str = key(
        doc="file for images -> transformed embedding: old model, side-information model and transformation",
        path="output",
    )
    side_info_model_path: str | None = key(
        None, doc="side-information model, of any kind; none: the old embedding takes its place", path="model"
    )
    cache_embeddings: Literal["auto", "memory", "off"] = key(
        "auto",
        doc="auto: embed each view once where the transform has few views, and keep that on disk; "
        "memory: the same, for this run alone; off: embed every epoch",
    )
    cached_views: int | None = key(
        None,
        doc="random crops too: draw so many views of each image and embed them once; none: embed every epoch",
        minimum=1,
    )
    embeddings_dir: str | None = key(
        None, doc="folder that keeps embeddings for other runs; `embeddings` beside the output if left out", path="any"
    )
    processes: Processes = key("auto", doc=PROCESSES_DOC, minimum=1)

    def __post_init__(self) -> None:
        self._check_losses(self.arch_params.arch)
        if self.arch_params.arch not in CLOSED_FORMS:
            self.lr_policy_params.check_length(self.loop.epochs)

    @property
    def model_paths(self) -> dict[str, str]:
        """The frozen models, by role: old, new and, if there is one, side_info."""
        paths = {"old": self.old_model_path, "new": self.new_model_path}
        return paths if self.side_info_model_path is None else {**paths, "side_info": self.side_info_model_path}

    @property
    def loop(self) -> LoopParams:
        """What the training loop takes from it.

        Raises:
            ValueError: there is no optimizer or number of epochs; closed forms need none.
        """
        if self.optimizer_params is None or self.epochs is None:
            missing = "optimizer_params" if self.optimizer_params is None else "epochs"
            raise ValueError(f"{missing}: is missing, and {self.arch_params.arch} needs training")
        batch_size = self.dataset_params.batch_size
        return LoopParams(self.optimizer_params, self.lr_policy_params, self.epochs, batch_size, self.compile)


def fct_optimizer() -> OptimizerParams:
    """That of the papers, for which 80 epochs are meant: more than enough where early stopping cuts them short."""
    return OptimizerParams("adam", lr=5e-4, weight_decay=2.0**-15)


@dataclass(kw_only=True)
class FitConfig(HowToFit, PairedFiles):
    """fit_embeddings.py: a sample of paired embeddings -> a transformation from old embeddings to the new space."""

    BATCH_SIZE: ClassVar[str] = "batch_size"

    output: str = key(doc="file for the transformation", path="output")
    method: Method = key(
        "auto", doc="the transformation; auto: fit each that takes these files, and keep the best on held-out pairs"
    )
    inner_dim: int | None = key(
        None,
        doc="width of the hidden layers; residual_mlp: 256; fct and fastfill: 2048 where nothing is held out, else by "
        "the number of pairs and their dimensions",
        minimum=1,
    )
    sigma_dim: int | None = key(None, doc="fastfill: 1 log variance an item (default), or one a dimension", minimum=1)
    held_out: float = key(
        0.1,
        doc="share of the items kept for early stopping and the choice of `auto`; 0: the papers' recipe, every epoch "
        "on all items, the losses weighed as given",
        minimum=0.0,
        maximum=0.5,
    )
    patience: int = key(
        10, doc="stop after so many epochs without a smaller held-out loss; the best is kept", minimum=1
    )
    budget: str | None = key(
        None,
        doc="how long the fit may take, as `90 s` or `10 min`: then the best so far is kept; none: every epoch that is "
        "of use, and the same numbers on every run",
    )
    batch_size: int = key(256, doc="pairs a step, summed over all processes", minimum=2)
    epochs: int | None = key(
        None,
        doc="passes over the sample, at most; if left out, as many as make 1,500 steps, from 20 to 80, and 80 where "
        "nothing is held out",
        minimum=1,
    )
    optimizer_params: OptimizerParams = section(
        fct_optimizer, doc="the optimizer; if left out, adam with lr 5e-4 and weight decay 2^-15; closed forms use none"
    )
    processes: int = key(1, doc="processes to run in, on as many GPUs where there are GPUs", minimum=1)

    def __post_init__(self) -> None:
        self._check_losses(self.method)
        self.lr_policy_params.check_length(self.epochs or PAPERS_EPOCHS)
        if self.budget is not None:
            seconds_of(self.budget)
            if not self.held_out:
                raise ValueError("budget: needs held-out pairs, which show the best so far; but held_out is 0")
        if self.method == AUTO and not self.held_out:
            raise ValueError("held_out: is 0, and auto chooses by held-out pairs; name a method")
        if self.side_info is not None and self.method in OLD_ALONE:
            raise ValueError(f"side_info: {self.method} maps the old embedding alone; leave it out, or use ridge")
        if self.sigma_dim is not None and self.method not in (AUTO, *UNCERTAIN):
            raise ValueError(f"sigma_dim: {self.method} has no uncertainty; use fastfill or leave it out")

    @property
    def calibrates(self) -> bool:
        """Whether h is calibrated: wherever pairs are held out."""
        return self.held_out > 0 or super().calibrates

    @property
    def arch_params(self) -> TransformationArch:
        """The transformation, whose dimensions are those of the files."""
        return TransformationArch(self.method, inner_dim=self.inner_dim, sigma_dim=self.sigma_dim)

    @property
    def loop(self) -> LoopParams:
        """What the training loop takes from it."""
        patience, epochs = self.patience if self.held_out else None, self.epochs or PAPERS_EPOCHS
        return LoopParams(
            self.optimizer_params, self.lr_policy_params, epochs, self.batch_size, self.compile, patience=patience
        )


def fit_values_of(recorded: dict[str, Any]) -> dict[str, Any] | None:
    """The values of a `FitConfig` that a model file recorded; None where it was not fitted to embedding files.

    Before fit_embeddings.py there was train_transformation.py with a section `embeddings_params`.
    """
    if recorded.get("embeddings_params") is None:
        return recorded if "method" in recorded else None
    arch = recorded["arch_params"]
    kept = [*(field.name for field in fields(HowToFit)), "epochs", "optimizer_params"]
    values = {name: recorded[name] for name in kept if recorded.get(name) is not None}
    values |= {name: arch[name] for name in ("inner_dim", "sigma_dim") if name in arch}
    names = {"MLP_BN_SIDE_PROJECTION": "fct", "MLP_BN_SIDE_PROJECTION_SIGMA": "fastfill"}  # of ml-fct
    values |= {"method": names.get(arch["arch"], arch["arch"]), "output": recorded["output_transformation_path"]}
    return values | recorded["embeddings_params"]
