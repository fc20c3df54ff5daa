"""Every config key, its type, default and meaning. The keys of ml-fct's files keep their names; ours are additions."""

from dataclasses import dataclass
from typing import Literal

from utils.config import key, section

Precision = Literal["auto", "bf16", "fp32"]
Compile = Literal["auto", "on", "off"]
AUTO = "auto"  # `arch_params.arch`: the transformation that does best on held-out pairs
BackfillingOrder = Literal[
    "random", "distance", "sigma", "confidence", "entropy", "class_distance", "knn_disagreement", "oracle"
]
CLOSED_FORMS = ("procrustes", "ridge")
COMPILE_DOC = "torch.compile; auto: on GPUs, for runs so long that it pays"


@dataclass
class BackboneArch:
    """`arch_params` of an embedding model."""

    arch: str = key(doc="ResNet18, ResNet50, ResNet101, WideResNet50_2 or WideResNet101_2")
    num_classes: int = key(doc="outputs of the classifier `fc`", minimum=1)
    embedding_dim: int = key(128, doc="dimension of the embedding", minimum=1)
    last_nonlin: bool = key(True, doc="ReLU before the average pooling that makes the embedding")
    stem: Literal["imagenet", "cifar"] = key(
        "imagenet", doc="imagenet: 7x7 stride 2 and max-pool; cifar: 3x3 stride 1, no pool"
    )
    width: float = key(
        1.0, doc="factor on the channels of every layer but the embedding; at least 16 stay", minimum=1 / 64
    )


@dataclass
class TransformationArch:
    """`arch_params` of a transformation. Dimensions left out are those of the models."""

    arch: str = key(
        doc="fct (MLP_BN_SIDE_PROJECTION) or fastfill (MLP_BN_SIDE_PROJECTION_SIGMA); the baselines residual_mlp and, "
        "in closed form, procrustes and ridge; auto, on embedding files: the best of all"
    )
    old_embedding_dim: int | None = key(None, doc="dimension of the old embedding", minimum=1)
    new_embedding_dim: int | None = key(None, doc="dimension of the new embedding", minimum=1)
    side_info_dim: int | None = key(None, doc="dimension of the side-information", minimum=1)
    inner_dim: int | None = key(
        None,
        doc="width of the hidden layers; fct and fastfill: 2048, residual_mlp: 256; closed forms have none",
        minimum=1,
    )
    sigma_dim: int | None = key(None, doc="fastfill: 1 log variance an item (default), or one a dimension", minimum=1)

    @property
    def is_closed_form(self) -> bool:
        """Whether the transformation is computed, not trained."""
        return self.arch in CLOSED_FORMS


@dataclass
class DatasetParams:
    """`dataset_params`: which images, and how they are fed."""

    name: Literal["cifar100", "imagenet", "glyphs"] = key(doc="the data set: its statistics, image size and transforms")
    data_root: str = key(doc="folder with training/CLASS/* and validation/CLASS/*")
    batch_size: int = key(doc="images a step, summed over all processes", minimum=1)
    num_classes: int | None = key(
        None, doc="train on the first so many class folders (sorted as strings); all if left out", minimum=1
    )
    num_workers: int = key(4, doc="processes that decode images; imagenet only, others fit in memory", minimum=0)
    packed: Literal["auto", "off"] = key(
        "auto", doc="auto: read the images that prepare_dataset.py --pack wrote, where there are such; off: never"
    )
    image_size: int | None = key(None, doc="pixels a side; cifar100 and imagenet: 224, glyphs: 32", minimum=1)
    augmentation: Literal["none", "flip", "crop", "crop_flip", "resized_crop_flip"] | None = key(
        None, doc="random training transform; cifar100: flip, imagenet: resized_crop_flip, glyphs: crop"
    )
    max_unreadable: float = key(
        0.001, doc="share of unreadable images above which the run stops", minimum=0.0, maximum=1.0
    )


@dataclass
class OptimizerParams:
    """`optimizer_params`."""

    algorithm: Literal["sgd", "adam"] = key(doc="the optimizer")
    lr: float = key(doc="peak learning rate", minimum=0.0)
    weight_decay: float = key(0.0, doc="L2 penalty on every parameter", minimum=0.0)
    momentum: float = key(0.9, doc="sgd: momentum", minimum=0.0)
    nesterov: bool = key(False, doc="sgd: Nesterov momentum")
    no_bn_decay: bool = key(False, doc="no weight decay on the parameters of batch normalisation")


@dataclass
class LrPolicyParams:
    """`lr_policy_params`: the learning rate, set once an epoch."""

    algorithm: Literal["cosine_lr", "constant_lr"] = key("cosine_lr", doc="shape of the schedule after the warm-up")
    warmup_length: int = key(5, doc="epochs of linear warm-up", minimum=0)
    epochs: int | None = key(None, doc="length of the schedule; the run's `epochs` if left out", minimum=1)
    lr: float | None = key(None, doc="peak; `optimizer_params.lr` if left out", minimum=0.0)

    def check_length(self, epochs: int) -> None:
        """Raise ValueError where the schedule ends before the run."""
        if self.epochs is not None and self.epochs < epochs:
            raise ValueError(f"lr_policy_params.epochs: is {self.epochs}, fewer than the {epochs} epochs of the run")


@dataclass
class SimCLRParams:
    """`simclr_params`: two views of each image, the projection head and NT-Xent."""

    temperature: float | None = key(None, doc="of the softmax over similarities; imagenet: 0.1, others: 0.5")
    projection_dim: int = key(128, doc="dimension in which views are compared", minimum=1)
    projection_hidden_dim: int = key(2048, doc="hidden width of the projection head", minimum=1)
    min_area: float = key(0.08, doc="smallest random crop, as a share of the image", minimum=0.0, maximum=1.0)
    jitter_strength: float | None = key(
        None, doc="of the colour jitter; imagenet: 1, others: 0.5", minimum=0.0, maximum=2.5
    )
    blur: bool | None = key(None, doc="Gaussian blur of every other view; imagenet: True, others: False")
    flip: bool | None = key(None, doc="mirror every other view; glyphs: False, others: True")
    knn_items: int = key(20_000, doc="training images, evenly spaced, among which the monitor looks", minimum=1)

    def __post_init__(self) -> None:
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"temperature: should be above 0, got {self.temperature}")


@dataclass
class BCTParams:
    """`bct_params`: the influence loss of an old model's frozen classifier on the new embedding."""

    old_model_path: str = key(doc="the old model, with embeddings of the same dimension", path="input")
    weight: float = key(1.0, doc="of the influence loss", minimum=0.0)
    old_classes: int | None = key(
        None, doc="the old model was trained on the first so many classes; as its file says if left out", minimum=1
    )


@dataclass
class SimilarityLoss:
    """`objective_params.similarity_loss`: L_sim."""

    name: Literal["mse", "l1", "cosine"] = key("mse", doc="distance between h(old) and new")
    mu_similarity: float = key(1.0, doc="weight of L_sim", minimum=0.0)


@dataclass
class DiscriminativeLoss:
    """`objective_params.discriminative_loss`: L_disc, through the new model's frozen classifier or by contrast."""

    name: Literal["LabelSmoothing", "InfoNCE"] | None = key(
        None,
        doc="cross-entropy of the new model's classifier with smoothed labels, or without labels the contrast of an "
        "item's new embedding with the batch's others; if left out, LabelSmoothing where there are labels",
    )
    label_smoothing: float = key(0.1, doc="share of the label spread over all classes", minimum=0.0, maximum=1.0)
    temperature: float = key(0.1, doc="InfoNCE: of the cosines", minimum=1e-3)
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
        return self.discriminative_loss is not None and self.discriminative_loss.name != "InfoNCE"

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
        doc="share of the training images kept from the training, on which it is chosen; of embedding files it is "
        "embeddings_params.held_out",
        minimum=0.01,
        maximum=0.5,
    )
    clusters: int | None = key(
        None, doc="so many k-means centroids of the new embeddings in place of classifier and class means", minimum=2
    )


@dataclass
class EvalParams:
    """`eval_params`."""

    distance_metric_name: Literal["l2", "cosine"] = key("l2", doc="distance on embeddings as the models give them")
    verbose: bool = key(True, doc="print the table and a progress bar")
    compute_map: bool = key(True, doc="mean average precision too")
    backfilling: int | None = key(None, doc="B: evaluate B + 2 points from 0 to all items backfilled", minimum=0)
    backfilling_list: list[BackfillingOrder] = key(["random"], doc="orders of backfilling to evaluate")
    backfilling_result_path: str | None = key(
        None, doc="also write the curves as .npy: (orders, points, 3) of CMC-1, CMC-5, mAP", path="output"
    )
    embeddings_output_dir: str | None = key(
        None, doc="also keep the embeddings: query.npz and gallery.npz in this folder", path="output"
    )
    recall_at: list[int] = key([], doc="the k of recall@k: share of a query's relevant items among its k nearest")
    precision_at: list[int] = key([], doc="the k of precision@k: share of a query's k nearest that are relevant")
    confidence: float | None = key(None, doc="level, as 0.95, of bootstrap intervals over queries for every figure")
    per_query: str | None = key(
        None, doc="also write each query's average precision and hit ranks (.npz)", path="output"
    )

    def __post_init__(self) -> None:
        for name, ranks in (("recall_at", self.recall_at), ("precision_at", self.precision_at)):
            if any(k < 1 for k in ranks):
                raise ValueError(f"{name}: should be 1 or more each, got {ranks}")
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise ValueError(f"confidence: should be between 0 and 1, as 0.95, got {self.confidence}")


@dataclass
class EmbeddingsParams:
    """`embeddings_params`: evaluate embedding files in place of models and images."""

    query: str = key(doc="embedding file (.npz, or a folder of .npy) of the queries, by the new model", path="input")
    gallery: str = key(doc="embedding file of the gallery; its `sigma` serves the sigma order", path="input")
    transformation: str | None = key(
        None, doc="transformation that the gallery's old embeddings go through first; it gives the sigma", path="input"
    )
    side_info: str | None = key(None, doc="embedding file of the gallery's side-information for it", path="input")
    classifier: str | None = key(
        None,
        doc="the new model's classifier, (classes, dimension) as `.npy`, for orders; a refinement has its own",
        path="input",
    )
    class_means: str | None = key(
        None,
        doc="mean new embedding of each class over the training set, as `.npy`; or k-means centroids",
        path="input",
    )

    def __post_init__(self) -> None:
        if self.side_info is not None and self.transformation is None:
            raise ValueError("side_info: is for a transformation; name one as embeddings_params.transformation")


@dataclass
class PairedEmbeddingsParams:
    """`embeddings_params` of a transformation: embeddings of the same items, row by row, by both models.

    An embedding file is an `.npz`, or a folder of `.npy`.
    """

    old: str = key(doc="embedding file of the items, by the old model", path="input")
    new: str = key(doc="embedding file of the same items in the same order, by the new model", path="input")
    side_info: str | None = key(None, doc="embedding file of their side-information", path="input")
    labels: str | None = key(
        None, doc="their classes: `.npy` (n,) or a file with `labels`; those of the new or old file", path="input"
    )
    classifier: str | None = key(
        None,
        doc="the new model's classifier, bias-free: `.npy` (classes, dimension) or a file with `classifier`; if there "
        "are labels alone, one is fitted",
        path="input",
    )
    views: int = key(
        1,
        doc="the files hold so many views of each item, one after another, as embed.py's views=all writes them; an "
        "item is held out in all of them",
        minimum=1,
    )
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
    batch_size: int = key(256, doc="pairs a step, summed over all processes", minimum=2)
    normalised: Literal["auto", "on", "off"] = key(
        "auto", doc="give transformed embeddings length 1, for search by cosine; auto: where the new ones have it"
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
    micro_batch: int | None = key(
        None, doc="images a process takes through the network at once; more accumulate their gradients", minimum=1
    )
    sync_bn: bool = key(False, doc="batch statistics over all processes (GPUs), not over each one's share")
    resume: bool = key(True, doc="go on from the last checkpoint of an interrupted run")
    export_formats: list[Literal["torchscript", "pt2", "onnx"]] = key([], doc="also write the model in these formats")

    def __post_init__(self) -> None:
        self.lr_policy_params.check_length(self.epochs)
        if self.objective == "simclr":
            if self.micro_batch is not None:
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
        None, doc="folder that keeps embeddings for other runs; `embeddings` beside the output if left out"
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
        if self.embeddings_params is None and not all(from_models):
            raise ValueError("query_model_path, gallery_model_path, dataset_params: all three, or embeddings_params")


@dataclass
class EmbedConfig:
    """embed.py: a model and images -> an embedding file."""

    model_path: str = key(doc="model that takes images: a backbone, a transformed old model, TorchScript", path="input")
    dataset_params: DatasetParams = key(doc="the images; `num_classes` chooses among the classes of either split")
    output_embeddings_path: str = key(
        doc="embedding file to write: `.npz`, or under another name a folder of `.npy`", path="output"
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
