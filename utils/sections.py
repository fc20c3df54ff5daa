"""The sections of configs, which scripts share: every key, its type, default and meaning."""

from dataclasses import dataclass
from typing import Literal

from utils.config import key, section

Precision = Literal["auto", "bf16", "fp32"]
Compile = Literal["auto", "on", "off"]
AUTO = "auto"  # `arch_params.arch`: the transformation that does best on held-out pairs
BackfillingOrder = Literal[
    "random", "distance", "sigma", "auto", "confidence", "entropy", "class_distance", "knn_disagreement", "oracle"
]
CONTRASTS = ("SupCon", "InfoNCE")  # of `discriminative_loss.name`: those that look at no classifier
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
    data_root: str = key(
        doc="folder with training/CLASS/* and validation/CLASS/*; the classes are those of training", path="any"
    )
    batch_size: int = key(doc="images a step, summed over all processes", minimum=1)
    num_classes: int | None = key(
        None, doc="train on the first so many class folders (sorted as strings); all if left out", minimum=1
    )
    held_out: float | None = key(
        None,
        doc="share of each class's training images that stands in for the validation split, to choose by: it is not "
        "trained on, and the validation images are not looked at",
        minimum=0.01,
        maximum=0.5,
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


@dataclass
class Subset:
    """`eval_params.subset`: the gallery, and the queries, of a system that holds other classes or other numbers."""

    classes: list[int] | None = key(
        None,
        doc="the labels from the first up to, but not including, the second, as [80, 100]; all if left out, negative "
        "ones too",
    )
    imbalance: float = key(
        1.0,
        doc="a long tail: so many times more items stay of the largest class than of the smallest, and at least two",
        minimum=1.0,
    )

    def __post_init__(self) -> None:
        if self.classes is not None and not (len(self.classes) == 2 and 0 <= self.classes[0] < self.classes[1]):
            raise ValueError(f"classes: should be two rising labels, as [80, 100], got {self.classes}")


@dataclass
class EvalParams:
    """`eval_params`."""

    distance_metric_name: Literal["l2", "cosine"] = key(
        "l2", doc="distance on embeddings as the models give them", alias="distance_metric"
    )
    verbose: bool = key(True, doc="print a progress bar and the table; without `output`, the table in any case")
    compute_map: bool = key(True, doc="mean average precision too")
    backfilling: int | None = key(None, doc="B: evaluate B + 2 points from 0 to all items backfilled", minimum=0)
    backfilling_list: list[BackfillingOrder] = key(["random"], doc="orders of backfilling to evaluate")
    backfilling_result_path: str | None = key(
        None, doc="also write the curves as .npy: (orders, points, 3) of CMC-1, CMC-5, mAP", path="output"
    )
    embeddings_output_dir: str | None = key(
        None, doc="also keep the embeddings: query.npz and gallery.npz in this folder", path="output"
    )
    representatives: Literal["off", "auto", "on"] = key(
        "off",
        doc="move the clearest item of each class to the class's mean, once the orders have looked at the gallery; "
        "auto: unless the items are of few of the classes that the classifier knows, or of others",
    )
    subset: Subset | None = key(None, doc="evaluate on a part of the items alone")
    same_items: bool | None = key(
        None,
        doc="of embedding files: True: row i of both is the same item, and no query retrieves itself; False: no query "
        "is an item of the gallery; if left out, `ids` say which are, and of files without ids equal labels",
    )
    recall_at: list[int] = key([], doc="the k of recall@k: share of a query's relevant items among its k nearest")
    precision_at: list[int] = key([], doc="the k of precision@k: share of a query's k nearest that are relevant")
    per_class: bool = key(False, doc="the figures of each class too, and of the worst and best on screen")
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
    """`embeddings_params`: evaluate embedding files in place of models and images.

    An embedding file is an `.npz`, a folder of `.npy`, a `.parquet` or a folder of such, a `.safetensors` or a `.pt`.
    """

    query: str = key(
        doc="embedding file of the queries, by the new model: `.npz`, a folder of `.npy`, `.parquet` or a folder of "
        "it, `.safetensors` or `.pt`, with `embeddings`, `labels` and perhaps `ids` (numbers or texts) and `sigma`",
        path="input",
    )
    gallery: str = key(doc="embedding file of the gallery; its `sigma` serves the sigma order", path="input")
    transformation: str | None = key(
        None, doc="transformation that the gallery's old embeddings go through first; it gives the sigma", path="input"
    )
    side_info: str | None = key(
        None, doc="embedding file of the gallery's side-information for it; joined by `ids`, in any order", path="input"
    )
    classifier: str | None = key(
        None,
        doc="the new model's classifier, (classes, dimension), for orders: `.npy`, or a file with `classifier` as that "
        "of the queries; a refinement has its own",
        path="input",
    )
    class_means: str | None = key(
        None,
        doc="mean new embedding of each class over the training set, or k-means centroids: `.npy` or a file with "
        "`class_means`",
        path="input",
    )

    def __post_init__(self) -> None:
        if self.side_info is not None and self.transformation is None:
            raise ValueError("side_info: is for a transformation; name one as embeddings_params.transformation")


@dataclass
class PairedEmbeddingsParams:
    """`embeddings_params` of a transformation: embeddings of the same items by both models.

    An embedding file is an `.npz`, a folder of `.npy`, a `.parquet` or a folder of such, a `.safetensors` or a `.pt`.
    Files with ids are joined by these, in any order; without ids, row i of all is the same item.
    """

    old: str = key(
        doc="embedding file of the items, by the old model: `.npz`, a folder of `.npy`, `.parquet` or a folder of it, "
        "`.safetensors` or `.pt`, with `embeddings` and perhaps `ids` (numbers or texts) and `labels`",
        path="input",
    )
    new: str = key(
        doc="embedding file of the same items, by the new model; joined by `ids`, or row by row if neither has any",
        path="input",
    )
    side_info: str | None = key(None, doc="embedding file of their side-information; likewise", path="input")
    labels: str | None = key(
        None,
        doc="their classes, negative for an item of none: a file with `labels` and, if the others have them, `ids`, or "
        "`.npy` (n,), row by row; else those of the new or old file",
        path="input",
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
        "auto",
        doc="give transformed embeddings length 1, for search by cosine; auto: where the new ones, but for zero "
        "vectors, have it",
    )
