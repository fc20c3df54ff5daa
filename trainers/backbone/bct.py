"""Backward-compatible training: a new model whose embeddings the old gallery understands (BCT, arXiv 2003.11942).

To the new model's own cross-entropy comes the influence loss: the cross-entropy of the old model's classifier, frozen,
on the new embedding. So new queries are compared with old embeddings as they are, without a transformation, at a price
in new/new.

The old classifier knows only the classes that the old model was trained on. For the others a row is synthesised from
the mean old embedding of the class, as in the paper: without them nothing would tie these classes' new embeddings to
their old ones. In the paper, on faces, classifiers compare directions; ours are plain dot products, so a mean is
brought to the form of a learned row. Learned rows are centred about zero (what all share cancels in the softmax, and
weight decay removes it), while embeddings after a ReLU share a large positive part, which would draw every image to the
synthesised classes. Hence the mean over classes is taken out, and the length is the mean length of the learned rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from data.images import Batch, ImageSet
from embedding.extraction import freeze
from embedding.memory import in_parts_that_fit
from models.backbones import Backbone
from models.embedding import embed, renormalised
from models.model_files import build_model, read_description
from trainers.backbone.classification import Classification
from trainers.backbone.config import BCTParams
from trainers.loop import Loss
from utils.distributed import World
from utils.errors import UserError
from utils.precision import Resolved, autocast

WHERE = "bct_params.old_model_path"


@dataclass(frozen=True)
class OldModel:
    """The model that the new one is to be compatible with."""

    backbone: Backbone  # frozen, on the device
    classes: int  # it was trained on the first so many
    embedder: nn.Module | None = None  # the backbone, given images of the new model's; None: it takes them as they are


def load_old_model(params: BCTParams, embedding_dim: int, seen: dict[str, Any], world: World) -> OldModel:
    """Load the old model, and find out which classes it was trained on.

    Args:
        embedding_dim: of the new model.
        seen: `mean` and `std` by which its images are normalised.

    Raises:
        UserError: it has no classifier, its embeddings have another dimension, or its classes are not known.
    """
    description = read_description(params.old_model_path, where=WHERE, foreign=False)
    if description["kind"] != "backbone":
        raise UserError(f"{WHERE}: {params.old_model_path} has no classifier of its own; BCT needs a backbone file")
    model = build_model(description, where=WHERE)
    assert isinstance(model, Backbone)
    if (old_dim := model.fc.in_channels) != embedding_dim:
        raise UserError(
            f"{WHERE}: {params.old_model_path} has embeddings of {old_dim} dimensions, the new model of "
            f"{embedding_dim};\nBCT compares them as they are: set arch_params.embedding_dim={old_dim}"
        )
    trained_with = description["provenance"]["config"]
    if trained_with.get("objective") == "simclr":
        raise UserError(f"{WHERE}: {params.old_model_path} was trained without labels; its classifier knows nothing")
    outputs, classes = model.fc.out_channels, params.old_classes
    if classes is None and "dataset_params" in trained_with:
        classes = trained_with["dataset_params"]["num_classes"] or outputs
    if classes is None or classes > outputs:
        raise UserError(
            f"bct_params.old_classes: needs the number of classes that {params.old_model_path} was trained on, at most "
            f"the {outputs} outputs of its classifier"
        )
    embedder = freeze(renormalised(model, seen, description.get("preprocessing")), world)
    return OldModel(model, classes, embedder)


@dataclass
class Compatible(Classification):
    """Predict the labels, and let the old classifier predict them from the new embedding too."""

    old_classifier: torch.Tensor  # (C, d), a row for every class of the training set
    weight: float  # of the influence loss

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        with autocast(self.precision, self.world.device):
            logits, embedding = model(batch.images)
        own = self.classify(logits.float(), batch.labels)
        old_logits = F.linear(embedding.flatten(1).float(), self.old_classifier)  # (B, d, 1, 1) -> (B, C)
        influence = F.cross_entropy(old_logits, batch.labels, label_smoothing=self.config.label_smoothing)
        return own._replace(mean=own.mean + self.weight * influence)


def completed_classifier(
    old: OldModel, training: ImageSet, batch_size: int, precision: Resolved, world: World
) -> torch.Tensor:
    """The old classifier (C, d) with a row for every class of the training set.

    Args:
        batch_size: of the images by which missing rows are found, over all processes.
    """
    rows = old.backbone.fc.weight.flatten(1)[: old.classes]  # (C_old, d)
    classes = int(training.labels.max()) + 1
    if classes <= old.classes:
        return rows
    batches, embedder = training.view_batches(0, world.local_batch(batch_size)), old.embedder or old.backbone
    return torch.cat([rows, synthesised_rows(rows, mean_embeddings(embedder, batches, classes, precision, world))])


def mean_embeddings(
    model: nn.Module, batches: Iterable[Batch], classes: int, precision: Resolved, world: World
) -> torch.Tensor:
    """The mean embedding of each class over the images of all processes, (C, d); zero for a class without images."""
    sums: torch.Tensor | None = None
    counts = torch.zeros(classes, dtype=torch.float64, device=world.device)
    with torch.inference_mode(), autocast(precision, world.device):
        for batch in in_parts_that_fit(batches, model, [model], world):
            embeddings = embed(model, batch.images).embedding.double()
            if sums is None:
                sums = embeddings.new_zeros(classes, embeddings.shape[1])
            sums.index_add_(0, batch.labels, embeddings)
            counts += torch.bincount(batch.labels, minlength=classes)
    assert sums is not None
    means = world.sum(sums) / world.sum(counts).clamp(min=1).unsqueeze(1)
    return means.float().clone()  # a tensor of inference mode could not take part in training


def synthesised_rows(learned: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Rows of the old classifier for the classes that it lacks.

    Args:
        learned: (C_old, d), its rows.
        means: (C, d), the mean old embedding of every class, the old ones first.

    Returns:
        (C - C_old, d): the means, less what all classes have in common, at the mean length of the learned rows.
    """
    directions = F.normalize(means[len(learned) :] - means.mean(0), dim=1)
    return directions * learned.norm(dim=1).mean()
