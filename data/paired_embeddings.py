"""Files of paired embeddings: the same items by the old and by the new model, row by row."""

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from data.embeddings import EmbeddingSet, as_labels, read_embeddings
from data.lengths import CHUNK, Lengths, about_zeros, lengths_of
from utils.distributed import World
from utils.errors import UserError
from utils.sections import PairedEmbeddingsParams

FEWEST = 20  # pairs to fit anything to and hold some out


@dataclass(frozen=True)
class PairedEmbeddings:
    """Embeddings of n items by each model, with what else is known of them."""

    embeddings: dict[str, torch.Tensor]  # role (old, new, perhaps side_info) -> (n, d) float16 or float32
    labels: torch.Tensor | None  # (n,) int64, from 0 on; -1 for an item of no class; None where no item has one
    classifier: torch.Tensor | None  # (C, d_new) float32, the new model's
    normalised: bool  # the new space is searched by cosine: its embeddings have length 1
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


def read_paired_embeddings(params: PairedEmbeddingsParams, world: World = World()) -> PairedEmbeddings:  # noqa: B008
    """Read what `embeddings_params` of a transformation names.

    Zero vectors stay zero, and do not count where the lengths of the new embeddings tell whether they are normalised.

    Raises:
        UserError: a file that is no embedding file, embeddings that are not finite or all zero, files of different
            items, too few items, or labels and a classifier that do not fit.
    """
    paths = {"old": params.old, "new": params.new, "side_info": params.side_info}
    sets: dict[str, EmbeddingSet] = {}
    lengths: dict[str, Lengths] = {}
    for role, path in paths.items():
        if path is not None:
            sets[role] = read_embeddings(path, where=f"embeddings_params.{role}")
            _check_finite(sets[role].embeddings, f"embeddings_params.{role}: {path}")
            lengths[role] = _look_at_lengths(sets[role].embeddings, f"embeddings_params.{role}: {path}", world)
    for role, items in sets.items():
        _check_same_items(items, sets["old"], f"embeddings_params.{role}: {paths[role]}", params.old)
    count = len(sets["old"])
    if count < FEWEST:
        raise UserError(f"embeddings_params.old: {params.old} has {count} pairs; at least {FEWEST} are needed")
    new = sets["new"].embeddings
    normalised = _are_normalised(params, lengths["new"], world)
    embeddings = {role: items.embeddings for role, items in sets.items()}
    if normalised:
        embeddings["new"] = F.normalize(new.float(), dim=1)
    classifier = read_classifier(params, new.shape[1])
    labels = _read_labels(params, sets, count)
    classes = None
    if classifier is None and labels is not None:
        classes, labels = numbered(labels)  # a classifier for these classes is fitted
    _check_classes(params, labels, classifier)
    return PairedEmbeddings(embeddings, labels, classifier, normalised, classes)


def numbered(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The classes (C,) that occur among labels (n,), rising, and each item's place among them (n,).

    A negative label is no class, and stays -1.
    """
    known = labels >= 0
    classes, places = labels[known].unique(return_inverse=True)
    return classes, torch.full_like(labels, -1).masked_scatter_(known, places)


def _check_finite(embeddings: torch.Tensor, where: str) -> None:
    for start in range(0, len(embeddings), CHUNK):
        bad = (~embeddings[start : start + CHUNK].isfinite()).any(1).nonzero()
        if len(bad):
            raise UserError(f"{where}: row {start + int(bad[0])} is not finite")


def _check_same_items(items: EmbeddingSet, old: EmbeddingSet, where: str, old_path: str) -> None:
    if len(items) != len(old):
        raise UserError(f"{where} has {len(items)} items, {old_path} {len(old)}; they should be the same")
    different = (items.ids != old.ids).nonzero()
    if len(different):
        row = int(different[0])
        raise UserError(
            f"{where} and {old_path} are not of the same items in the same order: row {row} has the ids "
            f"{int(items.ids[row])} and {int(old.ids[row])} (a file without `ids` has 0, 1, ...)"
        )


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


def _are_normalised(params: PairedEmbeddingsParams, new: Lengths, world: World) -> bool:
    """Whether the new space is one of embeddings of length 1: as the config says, or as its own, but for zeros, are."""
    if params.normalised != "auto":
        return params.normalised == "on"
    if not new.are_one and new.unit > (new.rows - new.zero) / 2 and world.is_main:
        print(
            f"embeddings_params.new: {params.new}: not normalised: {new.unit} of {new.rows - new.zero} embeddings have "
            f"length 1, but not that of row {new.first_other}; embeddings_params.normalised=on declares it",
            flush=True,
        )
    return new.are_one


def _read_labels(params: PairedEmbeddingsParams, sets: dict[str, EmbeddingSet], count: int) -> torch.Tensor | None:
    if params.labels is None:
        labels = next((sets[role].labels for role in ("new", "old") if sets[role].labels is not None), None)
    else:
        where = f"embeddings_params.labels: {params.labels}"
        array = _read_array(params.labels, "labels", where)
        if array.shape != (count,) or array.dtype.kind not in "iu":
            raise UserError(f"{where}: should hold ({count},) whole numbers, got {array.shape} {array.dtype}")
        labels = as_labels(array, where)
    if labels is None or not (labels >= 0).any():
        return None
    return labels.clamp(min=-1)


def read_classifier(params: PairedEmbeddingsParams, dim: int) -> torch.Tensor | None:
    """The new model's classifier (C, dim) float32 of `embeddings_params`, if it names one.

    Raises:
        UserError: it cannot be read, is of another dimension or not finite.
    """
    if params.classifier is None:
        return None
    where = f"embeddings_params.classifier: {params.classifier}"
    classifier = _read_array(params.classifier, "classifier", where)
    if classifier.ndim != 2 or classifier.shape[1] != dim or classifier.dtype.kind != "f":
        raise UserError(
            f"{where}: should be (classes, {dim}) floating point, got {classifier.shape} {classifier.dtype}"
        )
    if not np.isfinite(classifier).all():
        raise UserError(f"{where}: is not finite")
    return torch.from_numpy(classifier.astype(np.float32))


def _check_classes(
    params: PairedEmbeddingsParams, labels: torch.Tensor | None, classifier: torch.Tensor | None
) -> None:
    if classifier is None:
        return
    where = f"embeddings_params.classifier: {params.classifier}"
    if labels is None:
        raise UserError(f"{where}: is of no use without labels; name them as embeddings_params.labels")
    if labels.max() >= len(classifier):
        raise UserError(
            f"{where}: has {len(classifier)} classes, the labels go from {int(labels.min())} to {int(labels.max())}"
        )


def _read_array(path: str, name: str, where: str) -> np.ndarray:
    """An array from a `.npy`, or the one of that name from an `.npz` or a folder of `.npy`."""
    file = Path(path) / f"{name}.npy" if Path(path).is_dir() else Path(path)
    try:
        content = np.load(file, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            return content
        with content:
            if name in content:
                return content[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{where}: is no .npy or .npz file with `{name}` ({error})") from None
    raise UserError(f"{where}: has no array `{name}`")
