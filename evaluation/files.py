"""The embedding files of an evaluation: queries, gallery, and what is known of the classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data.embeddings import EmbeddingSet, read_embeddings
from data.items import numbers_of_gallery
from data.sources.arrays import read_matrix
from data.sources.lance_tables import is_table, upgrade_in
from evaluation.config import EmbeddingsParams, EvalParams
from utils.errors import UserError

Calibrations = Mapping[str, Mapping[str, float]]  # of a transformation, by distance, as its file has them


class QueryAndGallery(NamedTuple):
    """What is compared, with the numbers that tell which items are the same."""

    query: EmbeddingSet
    gallery: EmbeddingSet  # for a backfilling in the order of the queries, where both are the same items
    side_info: torch.Tensor | None  # (n_g, d_side), of the gallery
    by_place: bool  # that row i of both is the same item is said by equal labels alone
    calibrations: Calibrations  # of a gallery in the middle of its upgrade
    wider_new: Mapping[str, Any] | None  # of such a gallery, as `models.model_files.wider_new` says it


@dataclass(frozen=True)
class ClassVectors:
    """What is known of C classes."""

    classifier: torch.Tensor | None = None  # (C, d) weight of the new model's classifier, in the new space
    bias: torch.Tensor | None = None  # (C,), if it has one
    means: torch.Tensor | None = None  # (C, d) mean new embedding of each class over the training set
    names: Sequence[str] = ()  # of the class folders, by label; empty where there are only embeddings


def read_query_and_gallery(files: EmbeddingsParams, params: EvalParams, device: torch.device) -> QueryAndGallery:
    """Read the embedding files of an evaluation onto the device; on a CPU, a mapped file stays mapped.

    Raises:
        UserError: as `read_embeddings` and `numbers_of_gallery`; a file without labels, or side-information or
            new embeddings of other items than the gallery.
    """
    upgrade = upgrade_of(files.gallery)
    query = read_embeddings(files.query, where="embeddings_params.query")
    gallery = read_embeddings(files.gallery, where="embeddings_params.gallery")
    for name, path, read in (("query", files.query, query), ("gallery", files.gallery, gallery)):
        if read.labels is None:
            raise UserError(f"embeddings_params.{name}: {path} has no array `labels`; the evaluation needs `labels`")
    queries = query.named(f"embeddings_params.query: {files.query}")
    items = gallery.named(f"embeddings_params.gallery: {files.gallery}")
    side_info = None
    if files.side_info is not None:
        where = "embeddings_params.side_info"
        of_gallery = read_embeddings(files.side_info, where=where)
        side_info = of_gallery.in_order_of(items, f"{where}: {files.side_info}").embeddings
    if files.new_gallery is not None:
        where = "embeddings_params.new_gallery"
        new = read_embeddings(files.new_gallery, where=where).in_order_of(items, f"{where}: {files.new_gallery}")
        gallery = replace(gallery, new=new.embeddings)
    numbers = torch.from_numpy(numbers_of_gallery(queries, items, params.same_items))
    query, gallery = replace(query, numbers=torch.arange(len(query))), replace(gallery, numbers=numbers)
    if params.backfilling is not None and not query.same_items(gallery):
        rows = numbers.argsort()
        in_order = gallery.take(rows)
        if query.same_items(in_order):
            gallery, side_info = in_order, None if side_info is None else side_info[rows]
    return QueryAndGallery(
        query.to(device),
        gallery.to(device),
        None if side_info is None else side_info.to(device),
        by_place=params.same_items is None and query.ids is None and files.query != files.gallery,
        calibrations=calibrations_of(upgrade),
        wider_new=upgrade.get("wider"),
    )


def upgrade_of(gallery: str) -> Mapping[str, Any]:
    """What the table of an upgrade says of itself; nothing where the gallery is none."""
    return (upgrade_in(Path(gallery), where="embeddings_params.gallery") or {}) if is_table(gallery) else {}


def calibrations_of(upgrade: Mapping[str, Any]) -> Calibrations:
    """The calibration of an upgrade, as a transformation's file has it."""
    calibration = upgrade.get("calibration")
    return {} if calibration is None else {str(calibration["distance"]): {"value": calibration["value"]}}


def read_class_vectors(files: EmbeddingsParams, device: torch.device) -> ClassVectors:
    """Read what an evaluation's files say of the classes, onto the device.

    Raises:
        UserError: as `read_matrix`.
    """
    matrices = [
        None if path is None else read_matrix(path, name, where=f"embeddings_params.{name}").to(device)
        for name, path in (("classifier", files.classifier), ("class_means", files.class_means))
    ]
    return ClassVectors(classifier=matrices[0], means=matrices[1])
