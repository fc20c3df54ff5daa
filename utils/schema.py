"""The config of each script. The keys of ml-fct's files keep their names; ours are additions."""

from dataclasses import dataclass
from typing import Literal

from utils.config import key, section
from utils.sections import (
    AUTO,
    COMPILE_DOC,
    BackboneArch,
    BCTParams,
    Compile,
    DatasetParams,
    EmbeddingsParams,
    EvalParams,
    LrPolicyParams,
    ObjectiveParams,
    OptimizerParams,
    PairedEmbeddingsParams,
    Precision,
    RefinementParams,
    SimCLRParams,
    TransformationArch,
)


@dataclass
class BackboneConfig:
    """train_backbone.py: a config -> an embedding model."""

    arch_params: BackboneArch = key(doc="the network")
    optimizer_params: OptimizerParams = key(doc="the optimizer")
    dataset_params: DatasetParams = key(doc="the training images")
    epochs: int = key(doc="passes over the training set", minimum=1)
    output_model_path: str = key(doc="model file to write", path="output")
    objective: Literal["classification", "simclr"] = key(
        "classification", doc="classification by labels, or simclr: side-information, without labels"
    )
    simclr_params: SimCLRParams = section(SimCLRParams, doc="self-supervised training; objective simclr")
    bct_params: BCTParams | None = key(None, doc="backward-compatible training; objective classification")
    lr_policy_params: LrPolicyParams = section(LrPolicyParams, doc="the learning-rate schedule")
    label_smoothing: float = key(0.0, doc="share of the label spread over all classes", minimum=0.0, maximum=1.0)
    validate_every: int = key(
        10, doc="epochs between accuracies on the validation split (simclr: of nearest neighbours); 0: never", minimum=0
    )
    seed: int = key(0, doc="of the initial weights, the shuffling and the augmentation", minimum=0)
    precision: Precision = key("auto", doc="bf16 autocast where the machine computes it fast, or fp32")
    compile: Compile = key("auto", doc=COMPILE_DOC)
    micro_batch: int | Literal["auto"] | None = key(
        "auto",
        doc="images a process takes through the network at once, whose batch statistics it uses; more accumulate their "
        "gradients; auto: all of its share of a batch, or as many as fit into the memory; none: all",
        minimum=1,
    )
    sync_bn: bool = key(False, doc="batch statistics over all processes (GPUs), not over each one's share")
    resume: bool = key(True, doc="go on from the last checkpoint of an interrupted run")
    export_formats: list[Literal["torchscript", "pt2", "onnx"]] = key([], doc="also write the model in these formats")

    def __post_init__(self) -> None:
        self.lr_policy_params.check_length(self.epochs)
        if self.objective == "simclr":
            if isinstance(self.micro_batch, int):
                raise ValueError("micro_batch: does not go with simclr, which compares all images of a batch")
            if self.dataset_params.augmentation is not None:
                raise ValueError("dataset_params.augmentation: simclr has its own (simclr_params); leave this one out")
            if self.label_smoothing:
                raise ValueError("label_smoothing: simclr has no labels; leave it out")
            if self.bct_params is not None:
                raise ValueError("bct_params: is for objective classification; simclr has no classifier")
        elif self.simclr_params != SimCLRParams():
            raise ValueError("simclr_params: is for objective simclr")


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


@dataclass
class EvalConfig:
    """eval.py: query and gallery models with images, or embedding files -> CMC, mAP, backfilling curves."""

    eval_params: EvalParams = section(EvalParams, doc="what to compute")
    query_model_path: str | None = key(None, doc="model of the queries (the new one)", path="input")
    gallery_model_path: str | None = key(None, doc="model of the gallery (transformed old, old or new)", path="input")
    dataset_params: DatasetParams | None = key(None, doc="images; the validation split is query set and gallery")
    embeddings_params: EmbeddingsParams | None = key(None, doc="embedding files in place of models and images")
    output: str | None = key(None, doc="result file (JSON); also --output FILE", path="output")
    seed: int = key(0, doc="of the random order and the bootstrap", minimum=0)
    precision: Precision = key("fp32", doc="of the embedding models; bf16 moves a metric by up to 0.3 points")

    def __post_init__(self) -> None:
        from_models = [self.query_model_path, self.gallery_model_path, self.dataset_params]
        if self.embeddings_params is not None and any(from_models):
            raise ValueError("embeddings_params: stands in place of the model paths and dataset_params")
        if self.embeddings_params is None and self.eval_params.same_items is not None:
            raise ValueError("eval_params.same_items: is for embeddings_params; models embed the same images")
        if self.embeddings_params is None and not all(from_models):
            raise ValueError("query_model_path, gallery_model_path, dataset_params: all three, or embeddings_params")


@dataclass
class EmbedConfig:
    """embed.py: a model and images -> an embedding file."""

    model_path: str = key(doc="model that takes images: a backbone, a transformed old model, TorchScript", path="input")
    dataset_params: DatasetParams = key(doc="the images; `num_classes` chooses among the classes of either split")
    output_embeddings_path: str = key(
        doc="embedding file to write: `.npz`, `.parquet`, `.safetensors`, or under another name a folder of `.npy`",
        path="output",
    )
    output_classifier_path: str | None = key(
        None, doc="also write the backbone's classifier, (classes, dimension), as `.npy`", path="output"
    )
    split: Literal["training", "validation"] = key("validation", doc="which images")
    views: Literal["first", "all"] = key(
        "first", doc="the image as in evaluation, or every view that the training transform can draw, one after another"
    )
    embedding_dtype: Literal["float32", "float16"] = key("float32", doc="of the numbers in the file")
    precision: Precision = key("fp32", doc="of the model; bf16 moves a metric by up to 0.3 points")


SCHEMAS = {
    "train_backbone.py": BackboneConfig,
    "train_transformation.py": TransformationConfig,
    "embed.py": EmbedConfig,
    "eval.py": EvalConfig,
}
