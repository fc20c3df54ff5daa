"""The config of eval.py."""

from dataclasses import dataclass
from typing import Any, Literal

from data.config import DatasetParams
from utils.choices import PROCESSES_DOC, Precision, Processes
from utils.config import key, section

BackfillingOrder = Literal[
    "random",
    "distance",
    "sigma",
    "auto",
    "density",
    "confidence",
    "gain",
    "entropy",
    "class_distance",
    "knn_disagreement",
    "oracle",
]


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
class Groups:
    """`eval_params.groups`: which group each query is of."""

    classes: dict[str, list[Any]] | None = key(
        None,
        doc="name -> the labels from the first up to, but not including, the second, as [0, 20]; or a list of labels "
        "and such ranges, as [[0, 20], 35, 61]",
    )
    file: str | None = key(
        None,
        doc="`groups` (n,), texts or numbers, and perhaps the queries' `ids`, in any form of data.md, .csv or .json; "
        "without ids, row by row",
        path="input",
    )
    column: bool = key(False, doc="the column `group` of `dataset_params.list_path`")

    def __post_init__(self) -> None:
        if (self.classes is not None) + (self.file is not None) + self.column != 1:
            raise ValueError("classes, file, column: one of the three says which group a query is of")
        if self.classes is None:
            return
        if len(self.classes) < 2:
            raise ValueError(f"classes: a gap needs two groups, got {len(self.classes)}")
        taken: list[tuple[int, int, str]] = []
        for name in self.classes:
            for first, end in self.ranges(name):
                for other_first, other_end, other in taken:
                    if first < other_end and other_first < end:
                        raise ValueError(f"classes.{name}: label {max(first, other_first)} is in {other} already")
                taken.append((first, end, name))

    def ranges(self, name: str) -> list[tuple[int, int]]:
        """The labels of a group of classes, each range from its first up to, but not including, its second."""
        assert self.classes is not None
        items = self.classes[name]
        if len(items) == 2 and all(map(_is_label, items)):
            items = [items]
        ranges = [(item, item + 1) if _is_label(item) else item for item in items]
        for item in ranges:
            pair = isinstance(item, list | tuple) and len(item) == 2 and all(map(_is_label, item))
            if not (pair and 0 <= item[0] < item[1]):
                raise ValueError(
                    f"classes.{name}: should be two rising labels, as [0, 20], or a list of labels and such ranges, "
                    f"got {items}"
                )
        if not ranges:
            raise ValueError(f"classes.{name}: is empty")
        return [(first, end) for first, end in ranges]


def _is_label(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


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
    calibration: Literal["auto", "off"] | float = key(
        "auto",
        doc="by how much transformed items stand back where others are re-embedded, as a constant on their squared "
        "distances or a factor on their cosines; auto: as the transformation's file says, if it does",
    )
    two_fields: Literal["reciprocal_ranks", "standardised"] | None = key(
        None,
        doc="of a gallery of the old model, without a transformation: backfill into a second field, let each model's "
        "query rank its field, and merge by reciprocal rank fusion or by distances standardised in each field",
    )
    representatives: Literal["off", "auto", "on"] = key(
        "off",
        doc="move the clearest item of each class to the class's mean, once the orders have looked at the gallery; "
        "auto: unless the items are of few of the classes that the classifier knows, or of others",
    )
    query_split: str | None = key(
        None, doc="the split that the queries are; dataset_params.validation_split if left out"
    )
    gallery_split: str | None = key(
        None, doc="the split that the gallery is; if it is that of the queries, no query retrieves itself"
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
    groups: Groups | None = key(
        None,
        doc="the figures of each group of queries too, along the curves, and the gap between the best and the worst",
    )
    interval_level: float | None = key(
        None, doc="level, as 0.95, of bootstrap intervals over queries for every figure", alias="confidence"
    )
    per_query: str | None = key(
        None, doc="also write each query's average precision and hit ranks (.npz)", path="output"
    )

    def __post_init__(self) -> None:
        for name, ranks in (("recall_at", self.recall_at), ("precision_at", self.precision_at)):
            if any(k < 1 for k in ranks):
                raise ValueError(f"{name}: should be 1 or more each, got {ranks}")
        if isinstance(self.calibration, float):
            cosine = self.distance_metric_name == "cosine"
            if self.calibration < 0 or (cosine and not 0 < self.calibration <= 1):
                allowed = "a factor on cosines above 0 and at most 1" if cosine else "a constant of 0 or more"
                raise ValueError(f"calibration: should be auto, off or {allowed}, got {self.calibration}")
        if self.two_fields is not None:
            if self.backfilling is None or self.backfilling_list != ["random"]:
                raise ValueError("two_fields: needs `backfilling`, and a backfilling_list of `random` alone")
            if self.representatives != "off":
                raise ValueError("two_fields: goes without representatives")
            if self.per_class or self.per_query is not None or self.interval_level is not None:
                raise ValueError("two_fields: goes without per_class, per_query and interval_level")
        if self.interval_level is not None and not 0 < self.interval_level < 1:
            raise ValueError(f"interval_level: should be between 0 and 1, as 0.95, got {self.interval_level}")


@dataclass
class EmbeddingsParams:
    """`embeddings_params`: evaluate embedding files, all that `data.sources` opens, in place of models and images."""

    query: str = key(
        doc="embedding file of the queries, by the new model, in any form of data.md: `embeddings`, `labels` and "
        "perhaps `ids` (numbers or texts), `cameras` and `sigma`",
        path="input",
    )
    gallery: str = key(doc="embedding file of the gallery; its `sigma` serves the sigma order", path="input")
    new_gallery: str | None = key(
        None,
        doc="embedding file of the gallery's items by the new model, for backfilling where the queries are other "
        "items; joined by `ids`, in any order",
        path="input",
    )
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
class EarlierUpgrade:
    """`earlier_upgrade`: the gallery was upgraded before, to a model in between, which has re-embedded a part of it."""

    model_path: str = key(
        doc="the model in between, transformed into the space of the queries: of the items it has re-embedded",
        path="input",
    )
    re_embedded_share: float = key(0.0, doc="share of those, drawn by the seed", minimum=0.0, maximum=1.0)
    chained: bool = key(
        False,
        doc="whether the others, as `gallery_model_path` gives them, are in the space of the model in between and go "
        "through its transformation as well",
    )

    def __post_init__(self) -> None:
        if not self.chained and self.re_embedded_share == 0:
            raise ValueError("chained, re_embedded_share: without either, no item is of the model in between")


@dataclass
class EvalConfig:
    """eval.py: query and gallery models with images, or embedding files -> CMC, mAP, backfilling curves."""

    eval_params: EvalParams = section(EvalParams, doc="what to compute")
    query_model_path: str | None = key(None, doc="model of the queries (the new one)", path="model")
    gallery_model_path: str | None = key(None, doc="model of the gallery (transformed old, old or new)", path="model")
    dataset_params: DatasetParams | None = key(
        None, doc="images; the validation split is query set and gallery, unless eval_params name others"
    )
    embeddings_params: EmbeddingsParams | None = key(None, doc="embedding files in place of models and images")
    earlier_upgrade: EarlierUpgrade | None = key(None, doc="of models and images: what an upgrade before has left")
    output: str | None = key(None, doc="result file (JSON); also --output FILE", path="output")
    seed: int = key(0, doc="of the random order and the bootstrap", minimum=0)
    precision: Precision = key("fp32", doc="of the embedding models; bf16 moves a metric by up to 0.5 points")
    processes: Processes = key("auto", doc=PROCESSES_DOC, minimum=1)

    def __post_init__(self) -> None:
        if self.eval_params.two_fields and self.embeddings_params and self.embeddings_params.transformation:
            raise ValueError("eval_params.two_fields: is for the old embeddings as they are; without a transformation")
        from_models = [self.query_model_path, self.gallery_model_path, self.dataset_params]
        if self.embeddings_params is not None and any([*from_models, self.earlier_upgrade]):
            raise ValueError("embeddings_params: stands in place of model paths, dataset_params and earlier_upgrade")
        if self.embeddings_params is not None and (self.eval_params.query_split or self.eval_params.gallery_split):
            raise ValueError("eval_params.query_split, gallery_split: are of images; embeddings_params name files")
        if self.embeddings_params is None and self.eval_params.same_items is not None:
            raise ValueError("eval_params.same_items: is for embeddings_params; models embed the same images")
        if self.embeddings_params is None and not all(from_models):
            raise ValueError("query_model_path, gallery_model_path, dataset_params: all three, or embeddings_params")
