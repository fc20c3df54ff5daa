"""The keys of an upgrade's YAML file: one file for all its steps."""

from dataclasses import dataclass
from typing import Literal

from utils.config import key, section
from utils.precision import Precision


@dataclass
class PlanParams:
    """`plan_params`: the sample of pairs, and what to predict from it."""

    old: str | None = key(
        None, doc="old embeddings of a sample of items that the transformation was not trained on", path="any"
    )
    new: str | None = key(
        None,
        doc="new embeddings of the same items, told by their ids or, without any, in order; with `labels` for mAP",
        path="any",
    )
    side_info: str | None = key(None, doc="side-information of the same items, likewise", path="any")
    metric: Literal["recall", "map"] = key(
        "recall", doc="recall: of what the new model retrieves, without labels; map: mean average precision, by labels"
    )
    k: int = key(10, doc="recall: the depth, in a gallery of the sample's size", minimum=1)
    target: float = key(0.9, doc="share of the full upgrade's quality to ask the price of", minimum=0.0, maximum=1.0)
    confidence: float = key(0.95, doc="level of the bands", minimum=0.5, maximum=0.999)
    points: int = key(20, doc="points of the curves between none and all re-embedded", minimum=1)
    max_pairs: int = key(5000, doc="pairs to use, drawn from the sample", minimum=10)
    items_per_second: float | None = key(
        None, doc="items that the new model embeds a second, for the time", minimum=0.0
    )

    def __post_init__(self) -> None:
        if (self.old is None) != (self.new is None):
            raise ValueError("old, new: both or none")


@dataclass
class UpgradeConfig:
    """upgrade_gallery.py: a gallery of old embeddings -> one of the new model's, a part at a time."""

    step: Literal["transform", "plan", "apply", "refit", "status", "rollback"] = key(
        doc="what to do, from the command line"
    )
    gallery: str = key(
        doc="old embeddings: .npy, .npz, .parquet, .safetensors, .pt, a folder of .npy or of shards, or a FAISS index",
        path="any",
    )
    transformation_path: str = key(doc="transformation, as fit_embeddings.py writes it", path="any")
    output: str = key(doc="folder of the upgraded gallery", path="any")
    old_model: str = key(doc="name of the model of the old embeddings, for the manifest")
    new_model: str = key(doc="name of the model of the new embeddings, for the manifest")
    ids: str | None = key(
        None,
        doc=".npy of ids (n,), whole numbers or text, where the gallery has none; else they are 0, 1, ..., n - 1",
        path="any",
    )
    side_info: str | None = key(
        None,
        doc="side-information of the gallery's items, in any of its forms: told by their ids, in any order, or in the "
        "gallery's order where neither file has ids",
        path="any",
    )
    normalised: Literal["auto", "on", "off"] = key(
        "auto",
        doc="whether the new embeddings have length 1; auto: as the transformation records, which on and off must not "
        "contradict; off where it records nothing, being fitted to models and images",
    )
    dtype: Literal["float16", "float32"] = key("float16", doc="type in which the upgraded embeddings are kept")
    faiss: bool = key(
        False,
        doc="also keep gallery.faiss, an IndexIDMap2 of exact search (pip install faiss-cpu); not with text as ids",
    )
    chunk_rows: int = key(65536, doc="rows a chunk: what an interrupted transform repeats at most", minimum=1)
    precision: Precision = key("auto", doc="of the transformation's hidden layers")
    plan_params: PlanParams = section(PlanParams, doc="the prediction")
    batch: str | None = key(
        None,
        doc="apply: new embeddings with their ids, from the command line; one of no item changes nothing",
        path="input",
    )
    refit: bool = key(
        False, doc="apply: also fit the transformation again, with the re-embedded items, as the step refit does"
    )
    refit_pairs: int = key(
        100_000, doc="refit: about so many of the re-embedded items at most, drawn evenly, beside the sample", minimum=1
    )
    rollback_to: str = key("transformed", doc="rollback: transformed, a number of batches, or old; also --to")
    verify: bool = key(False, doc="status: also check every byte against the hashes and the journal; also --verify")
    seed: int = key(0, doc="of the random order and of the bootstrap", minimum=0)
