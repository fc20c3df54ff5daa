"""The config of train_transformation.py."""

from dataclasses import dataclass
from typing import Literal

from data.config import DatasetParams, PairedEmbeddingsParams
from models.config import AUTO, TransformationArch
from trainers.config import COMPILE_DOC, Compile, LrPolicyParams, OptimizerParams
from utils.config import key, section
from utils.precision import Precision

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

    def check_closed_form(self, arch: str) -> None:
        """Raise ValueError where the objective is not the mean squared error, which alone has a closed form."""
        for name in ("discriminative_loss", "uncertainty_loss"):
            if getattr(self, name) is not None:
                raise ValueError(f"objective_params.{name}: {arch} is a closed form and cannot use it; leave it out")
        if self.similarity_loss.name != "mse":
            raise ValueError(
                f"objective_params.similarity_loss.name: {arch} minimises mse in closed form, not "
                f"{self.similarity_loss.name}"
            )


@dataclass
class RefinementParams:
    """`refinement_params`: a head on h, chosen by retrieval among held-out training items."""

    held_out: float = key(
        0.1,
        doc="share of the training images kept from the training, on which it is chosen; of embedding files only "
        "where embeddings_params.held_out, which it is otherwise, is 0",
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
class TransformationConfig:
    """train_transformation.py: a config -> a transformation from old embeddings to the new space."""

    old_model_path: str | None = key(None, doc="the old model", path="input")
    new_model_path: str | None = key(None, doc="the new model", path="input")
    arch_params: TransformationArch = key(doc="the transformation")
    optimizer_params: OptimizerParams | None = key(None, doc="the optimizer; closed forms have none")
    dataset_params: DatasetParams | None = key(None, doc="the training images")
    embeddings_params: PairedEmbeddingsParams | None = key(
        None, doc="embedding files in place of models and images; then `optimizer_params` and `epochs` have defaults"
    )
    epochs: int | None = key(None, doc="passes over the training set; closed forms take one", minimum=1)
    output_transformation_path: str = key(doc="file for the transformation alone", path="output")
    output_transformed_old_model_path: str | None = key(
        None,
        doc="file for images -> transformed embedding: old model, side-information model and transformation",
        path="output",
    )
    side_info_model_path: str | None = key(
        None, doc="side-information model (ours or TorchScript); none: the old embedding takes its place", path="input"
    )
    objective_params: ObjectiveParams = section(
        ObjectiveParams, doc="the losses; L_sim alone (FCT) if left out; closed forms minimise mse"
    )
    refinement_params: RefinementParams | None = key(
        None,
        doc="pull h towards class means, by a strength chosen on held-out training items; none: h as it is",
    )
    mixup: float | None = key(
        None,
        doc="mix each item with another of its batch, by a share drawn from Beta(mixup, mixup); none: as they are",
        minimum=0.01,
    )
    lr_policy_params: LrPolicyParams = section(LrPolicyParams, doc="the learning-rate schedule")
    switch_mode_to_eval: bool = key(False, doc="freeze the BN statistics from half of the epochs on")
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
    seed: int = key(0, doc="of the initial weights, the shuffling and the augmentation", minimum=0)
    precision: Precision = key("auto", doc="bf16 autocast where the machine computes it fast, or fp32")
    compile: Compile = key("auto", doc=COMPILE_DOC)
    resume: bool = key(True, doc="go on from the last checkpoint of an interrupted run")
    export_formats: list[Literal["torchscript", "pt2", "onnx"]] = key([], doc="also write the model in these formats")

    def __post_init__(self) -> None:
        arch = self.arch_params.arch
        self._check_sources()
        if self.arch_params.is_closed_form:
            self.objective_params.check_closed_form(arch)
            if self.mixup is not None:
                raise ValueError(f"mixup: {arch} is a closed form and cannot use it; leave it out")
            return
        if self.embeddings_params is not None:  # FCT's recipe, which early stopping cuts short
            self.optimizer_params = self.optimizer_params or OptimizerParams("adam", lr=5e-4, weight_decay=2.0**-15)
            self.epochs = self.epochs or 80
        for name in ("optimizer_params", "epochs"):
            if getattr(self, name) is None:
                raise ValueError(f"{name}: is missing, and {arch} needs training")
        assert self.epochs is not None
        self.lr_policy_params.check_length(self.epochs)

    def _check_sources(self) -> None:
        """Raise ValueError unless there are either models and images or embedding files."""
        of_models = ("old_model_path", "new_model_path", "dataset_params", "output_transformed_old_model_path")
        if self.embeddings_params is None:
            for name in of_models:
                if getattr(self, name) is None:
                    raise ValueError(f"{name}: is missing; or name embedding files in embeddings_params")
            if self.arch_params.arch == AUTO:
                raise ValueError("arch_params.arch: auto chooses among transformations of embeddings_params; name one")
            return
        if self.arch_params.arch == AUTO and not self.embeddings_params.held_out:
            raise ValueError("embeddings_params.held_out: is 0, and auto chooses by held-out pairs")
        for name in (*of_models, "side_info_model_path"):
            if getattr(self, name) is not None:
                raise ValueError(f"embeddings_params: stands in place of models and images; leave out {name}")

    @property
    def batch_size(self) -> int:
        """Pairs a step, summed over all processes."""
        if self.embeddings_params is not None:
            return self.embeddings_params.batch_size
        assert self.dataset_params is not None
        return self.dataset_params.batch_size
