"""Files of paired embeddings: the same items by the old and by the new model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch.nn import functional as F

from data.config import PairedFiles
from data.embeddings import EmbeddingSet, read_embeddings
from data.items import Items, matching_rows
from data.lengths import Lengths, about_zeros, lengths_of
from data.sources.arrays import read_arrays, read_matrix
from data.sources.formats import LONE
from data.sources.ids import checked_ids, checked_numbers
from data.sources.rows import check_finite, parts_of
from utils.distributed import World
from utils.errors import UserError

FEWEST = 20  # pairs to fit anything to and hold some out


@dataclass(frozen=True)
class PairedEmbeddings:
    """Embeddings of n items by each model, with what else is known of them."""

    embeddings: dict[str, torch.Tensor]  # role (old, new, perhaps side_info) -> (n, d) float16 or float32
    labels: torch.Tensor | None  # (n,) int64, from 0 on; -1 for an item of no class; None where no item has one
    classifier: torch.Tensor | None  # (C, d_new) float32, the new model's
    normalised: bool  # the new space is searched by cosine: its embeddings have length 1
    # role -> dimension of the file's embeddings, and whether these have length 1, where a prefix of them is taken
    wider: Mapping[str, tuple[int, bool]] = field(default_factory=dict)
    classes: torch.Tensor | None = None  # (C,) what the files call the classes 0, 1, ..., where it is something else

    @property
    def dims(self) -> dict[str, int]:
        """role -> dimension."""
        return {role: embeddings.shape[1] for role, embeddings in self.embeddings.items()}

    def __len__(self) -> int:
        return len(self.embeddings["new"])

    def rows(self, index: torch.Tensor) -> "PairedEmbeddings":
        """The items `index` (m,) alone."""
        embeddings = {role: table[index] for role, table in self.embeddings.items()}
        return replace(self, embeddings=embeddings, labels=None if self.labels is None else self.labels[index])

    def followed_by(self, others: "PairedEmbeddings") -> "PairedEmbeddings":
        """These items and then others, of the same roles; both have labels, of the same classes, or neither."""
        embeddings = {role: torch.cat([table, others.embeddings[role]]) for role, table in self.embeddings.items()}
        labels = None
        if self.labels is not None:
            assert others.labels is not None
            labels = torch.cat([self.labels, others.labels])
        return replace(self, embeddings=embeddings, labels=labels)


def read_paired_embeddings(files: PairedFiles, world: World = World()) -> PairedEmbeddings:  # noqa: B008
    """Read the embeddings of the same items by both models, and what else `files` name.

    Zero vectors stay zero, and do not count where the lengths of the new embeddings tell whether they are normalised.

    Raises:
        UserError: a file that is no embedding file, embeddings that are not finite or all zero, files of different
            items, too few items, or labels and a classifier that do not fit.
    """
    paths = {"old": files.old, "new": files.new, "side_info": files.side_info}
    sets: dict[str, EmbeddingSet] = {}
    lengths: dict[str, Lengths] = {}
    for role, path in paths.items():
        if path is not None:
            sets[role] = read_embeddings(path, where=role)
            for start, stop in parts_of(len(sets[role])):
                check_finite(sets[role].embeddings[start:stop].numpy(), f"{role}: {path}", start)
            lengths[role] = _look_at_lengths(sets[role].embeddings, f"{role}: {path}", world)
    as_read, old = dict(sets), sets["old"].named(f"old: {files.old}")
    for role, items in as_read.items():
        sets[role] = items.in_order_of(old, f"{role}: {paths[role]}")
    count = len(sets["old"])
    if count < FEWEST:
        raise UserError(f"old: {files.old} has {count} pairs; at least {FEWEST} are needed")
    normalised = _are_normalised(files, lengths["new"], world)
    embeddings = {role: items.embeddings for role, items in sets.items()}
    wider = {}
    for role, dim in (("old", files.old_dim), ("new", files.new_dim)):
        width, unit = embeddings[role].shape[1], lengths[role].are_one
        if dim is not None and dim > width:
            raise UserError(f"{role}_dim: is {dim}, but {role}: {paths[role]} is {width}-d")
        if dim is not None and dim < width:
            wider[role] = (width, unit)
            prefix = embeddings[role][:, :dim]
            embeddings[role] = F.normalize(prefix.float(), dim=1) if unit else prefix
    if normalised:
        embeddings["new"] = F.normalize(embeddings["new"].float(), dim=1)
    classifier = read_classifier(files, embeddings["new"].shape[1])
    labels = _read_labels(files, sets, old, reordered=any(sets[role] is not as_read[role] for role in sets))
    if labels is not None:
        labels = labels.clamp(min=-1) if (labels >= 0).any() else None
    classes = None
    if classifier is None and labels is not None:
        classes, labels = numbered(labels)  # a classifier for these classes is fitted
    _check_classes(files, labels, classifier)
    return PairedEmbeddings(embeddings, labels, classifier, normalised, wider, classes)


def numbered(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The classes (C,) that occur among labels (n,), rising, and each item's place among them (n,).

    A negative label is no class, and stays -1.
    """
    known = labels >= 0
    classes, places = labels[known].unique(return_inverse=True)
    return classes, torch.full_like(labels, -1).masked_scatter_(known, places)


def _look_at_lengths(embeddings: torch.Tensor, where: str, world: World) -> Lengths:
    """The lengths of embeddings (n, d); a line says how many of them are zero.

    Raises:
        UserError: all of them are.
    """
    found = lengths_of(embeddings)
    if found.zero == found.rows:
        raise UserError(f"{where}: all {found.rows} rows are zero vectors")
    if found.zero and world.is_main:
        print(about_zeros(where, found.zero, found.first_zero), flush=True)
    return found


def _are_normalised(files: PairedFiles, new: Lengths, world: World) -> bool:
    """Whether the new space is one of embeddings of length 1: as the config says, or as its own, but for zeros, are."""
    if files.normalised != "auto":
        return files.normalised == "on"
    if not new.are_one and new.unit > (new.rows - new.zero) / 2 and world.is_main:
        print(
            f"new: {files.new}: not normalised: {new.unit} of {new.rows - new.zero} embeddings have "
            f"length 1, but not that of row {new.first_other}; normalised=on declares it",
            flush=True,
        )
    return new.are_one


def _read_labels(
    files: PairedFiles, sets: dict[str, EmbeddingSet], old: Items, *, reordered: bool
) -> torch.Tensor | None:
    """The labels of the items of `old`, in its order; `reordered`: another file was in another order."""
    if files.labels is None:
        return next((sets[role].labels for role in ("new", "old") if sets[role].labels is not None), None)
    where = f"labels: {files.labels}"
    arrays = read_arrays(files.labels, ("labels", "ids"), where="labels")
    if LONE in arrays and reordered:
        raise UserError(
            f"{where}: holds labels alone, row by row, but the files of embeddings are not in one order; give a file "
            "with `labels` and `ids`"
        )
    name = LONE if LONE in arrays else "labels"
    if name not in arrays:
        raise UserError(f"{where} has no array `labels`")
    labels = torch.from_numpy(checked_numbers("labels", arrays[name], where))
    ids = checked_ids(arrays["ids"], where) if "ids" in arrays else None
    reference = Items(old.name, old.count, old.ids if name else None)  # a lone array has no place for ids
    rows = matching_rows(reference, Items(where, len(labels), ids))
    return labels if rows is None else labels[torch.from_numpy(rows)]


def read_classifier(files: PairedFiles, dim: int) -> torch.Tensor | None:
    """The new model's classifier (C, dim) float32 of `files`, if they name one.

    Raises:
        UserError: it cannot be read, is of another dimension or not finite.
    """
    if files.classifier is None:
        return None
    return read_matrix(files.classifier, "classifier", where="classifier", dim=dim)


def _check_classes(files: PairedFiles, labels: torch.Tensor | None, classifier: torch.Tensor | None) -> None:
    if classifier is None:
        return
    where = f"classifier: {files.classifier}"
    if labels is None:
        raise UserError(f"{where}: is of no use without labels; set labels=FILE")
    if labels.max() >= len(classifier):
        raise UserError(
            f"{where}: has {len(classifier)} classes, the labels go from {int(labels.min())} to {int(labels.max())}"
        )
