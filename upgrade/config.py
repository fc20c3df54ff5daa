"""The keys of an upgrade's YAML file: one file for all its steps."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from data.sources.lance_tables import is_table
from utils.choices import Precision
from utils.config import key, section

Step = Literal["transform", "plan", "apply", "status", "rollback", "push", "cutover", "export"]
Order = Literal["auto", "confidence", "sigma", "random"]


@dataclass
class PlanParams:
    """`plan_params`: the sample of pairs, and what to predict from it."""

    old: str | None = key(
        None,
        doc="old embeddings of a sample of items that the transformation was not trained on; null: the items of `new`, "
        "by their ids, are looked up in the table",
        path="any",
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
    output: str | None = key(
        None, doc="folder of plan.json and plan.png; else what `output` is called, with .plan behind it", path="any"
    )

    def __post_init__(self) -> None:
        if self.new is None and self.old is not None:
            raise ValueError("old: goes with new, of the same items")


@dataclass
class EarlierParams:
    """`earlier`: what the `gallery`, a table of an upgrade, was made from, for its rows that are not re-embedded."""

    transformation_path: str | None = key(
        None,
        doc="transformation of the model before the old one into the new space; null: rows that the old model has not "
        "re-embedded go through `transformation_path`, as the gallery has them",
        path="any",
    )
    gallery: str | None = key(None, doc="vectors of the model before, as in `gallery`", path="any")
    store: dict[str, Any] | None = key(None, doc="in place of that, as in `store`")
    ids: str | None = key(None, doc="as `ids`", path="any")
    side_info: str | None = key(None, doc="as `side_info`", path="any")

    def __post_init__(self) -> None:
        sources = (self.gallery is not None) + (self.store is not None)
        if sources != (self.transformation_path is not None):
            raise ValueError("transformation_path goes with one of gallery and store")


@dataclass
class UpgradeConfig:
    """upgrade_gallery.py: a gallery of old embeddings -> one of the new model's, a part at a time."""

    step: Step = key(doc="what to do, from the command line")
    transformation_path: str = key(doc="transformation, as fit_embeddings.py writes it", path="any")
    output: str = key(
        doc="Lance table of the upgrade, a folder (NAME.lance, for LanceDB to find it) or a place in an object store",
        path="any",
    )
    old_model: str = key(doc="name of the model of the old embeddings")
    new_model: str = key(doc="name of the model of the new embeddings")
    gallery: str | None = key(
        None,
        doc="old embeddings in files: .npy, .npz, .parquet, .safetensors, .pt, a folder of .npy or of shards, or a "
        "FAISS index; or the table of the upgrade to the old model, finished or in its middle",
        path="any",
    )
    store: dict[str, Any] | None = key(
        None,
        doc="in place of `gallery`: the store that holds them, by its `kind` (lance, pgvector, qdrant) and its keys; "
        "beside a table of an upgrade: the store to push to",
    )
    earlier: EarlierParams = section(
        EarlierParams, doc="of a gallery that is in the middle of an upgrade: what it is made from"
    )
    ids: str | None = key(
        None,
        doc=".npy of ids (n,), whole numbers or text, where the gallery has none; else they are 0, 1, ..., n - 1",
        path="any",
    )
    side_info: str | None = key(
        None,
        doc="side-information of the gallery's items, in any of its forms: told by their ids, in any order, or in the "
        "gallery's order where neither file has ids; not with `store`",
        path="any",
    )
    normalised: Literal["auto", "on", "off"] = key(
        "auto",
        doc="whether the new embeddings have length 1; auto: as the transformation records, which on and off must not "
        "contradict; off where it records nothing, being fitted to models and images",
    )
    dtype: Literal["float16", "float32"] = key("float16", doc="type in which the upgraded embeddings are kept")
    chunk_rows: int = key(16384, doc="rows that are read, transformed and written at a time", minimum=1)
    fragment_rows: int = key(
        2**19,
        doc="about so many rows a fragment of the table: what an interrupted transform repeats",
        minimum=1,
    )
    engine: Literal["process", "ray"] = key(
        "process",
        doc="transform: by this process, or by Ray's tasks on the cores and GPUs of one machine or many; a gallery in "
        "files that all of them have under the same names",
    )
    precision: Precision = key("auto", doc="of the transformation's hidden layers")
    order: Order = key(
        "auto",
        doc="plan: which items come first. confidence: those of unclear class, by `classifier`; sigma: the most "
        "uncertain; auto: confidence where the gallery spreads over the classifier's classes, else sigma, else random",
    )
    classifier: str | None = key(
        None, doc="plan: the new model's classifier (classes, dimension), `classifier` in .npz or an .npy", path="any"
    )
    plan_params: PlanParams = section(PlanParams, doc="plan: the sample, and what to predict from it")
    batch: str | None = key(
        None,
        doc="apply: new embeddings with their ids, in a form of `gallery`; no item, no change; also --batch",
        path="input",
    )
    insist: bool = key(False, doc="apply: also a batch that does not look like the new model's; also --insist")
    to: str | None = key(
        None,
        doc="rollback: transformed, a number of batches, a tag that `status` lists, or old; export: the file to write, "
        ".npz, .parquet or .faiss; also --to",
        path="any",
    )
    pairs: str | None = key(
        None,
        doc="export: NAME of NAME_old.npz and NAME_new.npz, pairs to fit a transformation to; also --pairs",
        path="any",
    )
    next: str | None = key(
        None,
        doc="export: .npy of the ids that are not re-embedded yet, the first of `plan` first; also --next",
        path="any",
    )
    limit: int | None = key(
        None, doc="export: so many pairs, drawn evenly (100,000 if not said), or ids at most; also --limit", minimum=1
    )
    index: str = key(
        "Flat",
        doc="export to .faiss: index factory string; Flat keeps the type of the embeddings, approximate ones are "
        "trained on a sample",
    )
    quantise: Literal["int8", "uint8", "binary", "ubinary"] | None = key(
        None, doc="export to .npz: as sentence-transformers' quantize_embeddings"
    )
    ranges: str | None = key(
        None,
        doc="quantise: `ranges` (2, dimension) in .npz or an .npy, by which the new model's int8 or uint8 embeddings "
        "are made; null: the least and largest values of the items that are re-embedded",
        path="any",
    )
    verify: bool = key(
        False, doc="status: also compare every row with the old gallery and the transformation; also --verify"
    )
    dry_run: bool = key(False, doc="push: only count what would be done; also --dry-run")
    undo: bool = key(False, doc="cutover: the way back; also --undo")
    seed: int = key(0, doc="of the random order, of the sample and of the bootstrap", minimum=0)

    MOVED: ClassVar[dict[str, str]] = {
        "refit": "there is no such step any more: export --pairs, fit_embeddings.py, transform again",
        "refit_pairs": "there is no such step any more: export --pairs, fit_embeddings.py, transform again",
        "faiss": "an index is written by `export --to FILE.faiss`",
        "rollback_to": "is called `to` now",
    }

    def __post_init__(self) -> None:
        if (self.gallery is None) == (self.store is None) and not (self.gallery and self.is_upgraded_again):
            raise ValueError("gallery, store: one of the two names the old embeddings")
        if self.gallery is None and (self.side_info is not None or self.ids is not None):
            raise ValueError("store: goes with neither ids nor side_info")
        if self.earlier.transformation_path is not None and not self.is_upgraded_again:
            raise ValueError("earlier: goes with a gallery that is a table of an upgrade")
        if self.engine == "ray" and (self.gallery is None or self.is_upgraded_again):
            raise ValueError("engine: ray reads galleries in files; those in a store or table go through one process")

    @property
    def is_upgraded_again(self) -> bool:
        """Whether the old gallery is itself a table of an upgrade."""
        return self.gallery is not None and is_table(self.gallery)
