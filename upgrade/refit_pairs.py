"""What a transformation is fitted again to: the sample that it was fitted to, and the gallery's re-embedded items."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from data.paired_embeddings import FEWEST, PairedEmbeddings, numbered, read_classifier, read_paired_embeddings
from models.model_files import read_description
from trainers.transformation.config import FitConfig, fit_values_of
from trainers.transformation.division import FEWEST_HELD_OUT, given_or_fitted_classifier, split
from upgrade.gallery import RE_EMBEDDED, Gallery
from upgrade.inputs import Inputs, read_checked
from upgrade.order import random_bits
from upgrade.rows import Array, parts_of
from utils.config import build
from utils.distributed import World
from utils.errors import UserError
from utils.files import sha256_of

HELD_OUT = 0.1  # of the re-embedded items, that no refit trains on
# Added to the first fit's seed, so that which items are used has nothing to do with a random order of re-embedding.
DRAW, HOLD = 1_000_003, 2_000_003


class UnfitPairs(UserError):
    """The pairs that there are will not do; those of another day may."""


@dataclass(frozen=True)
class FirstFit:
    """How a transformation was fitted."""

    config: FitConfig
    origin: dict[str, Any]  # what its file says of the embedding files
    lost: str | None  # which of them is no longer what it was, and how; None where all are


@dataclass(frozen=True)
class RefitPairs:
    """Pairs, divided."""

    config: FitConfig  # that of the first fit, for these pairs
    training: PairedEmbeddings
    held_out: PairedEmbeddings | None  # for early stopping and `auto`, if the first fit held any out
    compared: PairedEmbeddings  # seen by neither the present nor the next transformation
    from_gallery: int  # of those to train on


def read_first_fit(path: str) -> FirstFit:
    """How the transformation in a model file was fitted.

    Raises:
        UserError: not to embedding files, or the file does not say.
    """
    recorded = read_description(path, where="transformation_path", torchscript=False).get("provenance", {})
    values, origin = fit_values_of(recorded.get("config", {})), recorded.get("embeddings")
    if values is None or origin is None:
        raise UserError(
            f"transformation_path: {path} was not fitted to embedding files (fit_embeddings.py), so that it cannot be "
            "fitted again with embeddings alone"
        )
    config = build(FitConfig, values, f"transformation_path: {path}")
    return FirstFit(config, origin, next(filter(None, map(_lost, origin["files"].values())), None))


def _lost(file: dict[str, str]) -> str | None:
    if not Path(file["path"]).exists():
        return f"{file['path']} is gone"
    return None if sha256_of(file["path"]) == file["sha256"] else f"{file['path']} has changed"


def divided_pairs(first: FirstFit, inputs: Inputs, gallery: Gallery, limit: int, world: World) -> RefitPairs:
    """The pairs to fit to and to compare by.

    The sample is divided as it was at first: what is held out now was held out then. A share of the re-embedded items,
    told by their rows, is never trained on, by any refit. They are what is compared by where the sample is gone or none
    of it is held out; else they are not used, since they are the items that the transformation was least sure of.

    Args:
        limit: about how many of the re-embedded items to use.

    Raises:
        UnfitPairs: too few to train on or to compare by, or without labels that the first fit needs.
        UserError: the sample or the gallery's inputs cannot be read, or do not go together.
    """
    rows, own, labels = _re_embedded(inputs, gallery, first, limit)
    held = torch.from_numpy(random_bits(rows, first.config.seed + HOLD) < HELD_OUT * 2**32)
    if first.lost is None:
        sample = read_paired_embeddings(first.config)
        if sample.embeddings.keys() != own.embeddings.keys():
            raise UserError("side_info: should be given if, and only if, the transformation was fitted with it")
        training, held_out = split(sample, first.config)
        training = replace(training, classifier=given_or_fitted_classifier(training, held_out, first.config, world))
        own = _labelled(own, labels, training)
        further = ~held if held_out is None else ~held & ~_are_among(own, held_out)
        training = training.followed_by(own.rows(further))
        pairs = RefitPairs(first.config, training, held_out, held_out or own.rows(held), int(further.sum()))
    else:
        own = _alone(own, labels, first)
        config = replace(first.config, views=1)
        refinement = config.refinement_params
        if own.labels is None and refinement is not None and refinement.clusters is None:
            raise UnfitPairs(f"refit: {first.lost}, and the gallery has no labels, which refinement_params needs")
        disc = config.objective_params.discriminative_loss
        if disc is not None and own.labels is None:  # by contrast, then
            objective = replace(config.objective_params, discriminative_loss=replace(disc, name=None))
            config = replace(config, objective_params=objective)
        training, compared = own.rows(~held), own.rows(held)
        pairs = RefitPairs(config, training, compared if config.held_out else None, compared, len(training))
    if len(pairs.training) < FEWEST or len(pairs.compared) < FEWEST_HELD_OUT:
        raise UnfitPairs(
            f"output: {gallery.folder}: {len(rows):,} re-embedded items are too few to refit: they leave "
            f"{len(pairs.training)} pairs to train on and {len(pairs.compared)} to compare by, "
            f"not {FEWEST} and {FEWEST_HELD_OUT}"
        )
    return pairs


def _re_embedded(
    inputs: Inputs, gallery: Gallery, first: FirstFit, limit: int
) -> tuple[Array, PairedEmbeddings, torch.Tensor | None]:
    """Rows (m,) of re-embedded items, their embeddings, and the labels (m,) that the gallery has for them, if any."""
    manifest = gallery.manifest
    states, new = gallery.rows("state"), gallery.rows("embeddings")
    has_labels = (gallery.folder / "labels.npy").exists()
    share = min(1.0, limit / max(1, manifest.re_embedded))
    sources = {"old": inputs.old} | ({} if inputs.side_info is None else {"side_info": inputs.side_info})
    found: dict[str, list[Array]] = {name: [] for name in ("rows", "old", "side_info", "new", "labels")}
    with tqdm(total=manifest.rows, desc="gathering pairs", unit="row", unit_scale=True, leave=False, delay=1) as bar:
        for start, stop in parts_of(manifest.rows):
            bar.update(stop - start)
            rows = start + np.flatnonzero(states.read(start, stop) == RE_EMBEDDED)
            rows = rows[random_bits(rows, first.config.seed + DRAW) < share * 2**32]
            if not len(rows):
                continue
            found["rows"].append(rows)
            for role, source in sources.items():
                unit = role == "old" and manifest.origin.normalised
                where = "gallery" if role == "old" else role
                found[role].append(read_checked(source, where, start, stop, unit=unit)[rows - start])
            found["new"].append(new.read(start, stop)[rows - start])
            if has_labels:
                found["labels"].append(gallery.rows("labels").read(start, stop)[rows - start])
    if not found["rows"]:
        raise UnfitPairs(f"output: {gallery.folder}: no item is re-embedded, so that there is nothing to refit with")
    arrays = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in found.items() if parts}
    rows, labels = arrays.pop("rows").numpy(), arrays.pop("labels", None)
    if first.origin["normalised"]:
        arrays["new"] = F.normalize(arrays["new"].float(), dim=1)
    return rows, PairedEmbeddings(arrays, None, None, first.origin["normalised"]), labels


def _are_among(own: PairedEmbeddings, held_out: PairedEmbeddings) -> torch.Tensor:
    """Which of the re-embedded items (m,) are held out: a sample is often drawn from the gallery, under other ids.

    They are told by their old embeddings, which may be kept in another precision there.
    """
    known = {row.tobytes() for row in held_out.embeddings["old"].half().numpy()}
    return torch.tensor([row.tobytes() in known for row in own.embeddings["old"].half().numpy()])


def _labelled(own: PairedEmbeddings, labels: torch.Tensor | None, sample: PairedEmbeddings) -> PairedEmbeddings:
    """Re-embedded items with labels as the sample has them, if it has any.

    Where the gallery has no label for an item, or one that the classifier does not know, the item's class is the one
    that the classifier gives its new embedding.
    """
    if sample.labels is None or sample.classifier is None:
        return own
    given = _classified(own.embeddings["new"], sample.classifier)
    if labels is not None:
        classes = torch.arange(len(sample.classifier)) if sample.classes is None else sample.classes
        place = torch.searchsorted(classes, labels).clamp_max(len(classes) - 1)
        given = torch.where(classes[place] == labels, place, given)
    return replace(own, labels=given)


def _alone(own: PairedEmbeddings, labels: torch.Tensor | None, first: FirstFit) -> PairedEmbeddings:
    """Re-embedded items without the sample; labels are the gallery's, or a classifier's that is still there."""
    named = first.origin["files"].get("classifier")
    if named is not None and _lost(named) is None:
        own = replace(own, classifier=read_classifier(first.config, own.dims["new"]))
        assert own.classifier is not None
        return _labelled(own, labels, replace(own, labels=_classified(own.embeddings["new"], own.classifier)))
    if labels is None or not (labels >= 0).any():
        return own
    return replace(own, labels=numbered(labels)[1])


def _classified(new: torch.Tensor, classifier: torch.Tensor) -> torch.Tensor:
    """New embeddings (m, d) -> the classes (m,) that the classifier (C, d) gives them."""
    parts = [F.linear(part.float(), classifier.cpu()).argmax(1) for part in new.split(2**14)]
    return torch.cat(parts)
