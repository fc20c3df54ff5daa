"""What a transformation is trained for: the equations of FCT (section 4.2) and FastFill (section 4)."""

import torch
from torch import nn
from torch.nn import functional as F

from models.transformed import Transformation, Transformed
from trainers.transformation.config import HowToFit, ObjectiveParams
from utils.errors import UserError

NO_LABEL = -1  # as every negative label


def squared_error(h: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """(h - n)^2 in each dimension: (B, d), (B, d) -> (B, d). Its mean over dimensions is L_sim."""
    return (h - new).square()


def absolute_error(h: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """|h - n| in each dimension: (B, d), (B, d) -> (B, d)."""
    return (h - new).abs()


def cosine_distance(h: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """1 - cos(h, n): (B, d), (B, d) -> (B, 1)."""
    return 1 - F.cosine_similarity(h, new, dim=1).unsqueeze(1)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """The label-smoothed cross-entropy of each item: logits (B, C), classes (B,) or shares of them (B, C) -> (B,).

    0 for an item without a label, which has a negative one or no shares; of a mixture with such an item, that of the
    labelled share, times the share.
    """
    if labels.dim() == 1:
        labels = labels.clamp(min=NO_LABEL)
        return F.cross_entropy(logits, labels, reduction="none", ignore_index=NO_LABEL, label_smoothing=label_smoothing)
    labelled = labels.sum(1, keepdim=True)  # 1, but for what is mixed with items without a label
    whole = labels / labelled.clamp_min(torch.finfo(labels.dtype).tiny)
    return labelled.squeeze(1) * F.cross_entropy(logits, whole, reduction="none", label_smoothing=label_smoothing)


def contrast(h: torch.Tensor, new: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """The contrast of the new embeddings of an item's label with the others: (B, d), (B, d), (B,) -> (B,).

    An item with a negative label is alike to itself alone.
    """
    labels = torch.where(labels < 0, -1 - torch.arange(len(labels), device=labels.device), labels)
    cosines = F.normalize(h, dim=1) @ F.normalize(new, dim=1).T  # (B, B)
    same = (labels[:, None] == labels).float()
    return -(same * (cosines / temperature).log_softmax(1)).sum(1) / same.sum(1)


SIMILARITIES = {"mse": squared_error, "l1": absolute_error, "cosine": cosine_distance}


class TransformationObjective(nn.Module):
    """L = mu_similarity L_sim + mu_disc L_disc, weighed by the uncertainty where that is part of the objective.

    L_disc is the label-smoothed cross-entropy of the new model's classifier on h; without a classifier it is InfoNCE
    (van den Oord et al., arXiv 1807.03748), which asks that h_i be nearer, by cosine, to its own n_i than to the new
    embeddings of the rest of this process's share of the batch:

        L_disc,i = -log( exp(cos(h_i, n_i) / temperature) / sum over j of exp(cos(h_i, n_j) / temperature) ),

    or SupCon, the mean of that over all n_k of the item's class (Khosla et al., arXiv 2004.11362, L_out). Of mixed
    items these look at the label of the larger share alone.

    With log variance s the objective is

        mean over i of  0.5 exp(-s_i) L_i  +  mu_uncertainty mean(s_i).

    Every mean is over all items of the batch. One without a label (a negative one) has L_disc 0 and all else as others;
    to SupCon it is a class of its own.

    A log variance for each dimension weighs each dimension's term of L_sim, and L_disc beside it; with one for the
    item that is the same equation.

    Args:
        params: which losses, and their weights.
        classifier: (C, d_new) weight of the new model's `fc`, frozen; None for a contrast or no L_disc.
        origin: (d_new,) from which the cosines of a contrast are taken; None: 0.
    """

    classifier: torch.Tensor | None
    origin: torch.Tensor | None

    def __init__(
        self, params: ObjectiveParams, classifier: torch.Tensor | None, origin: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.params = params
        self.register_buffer("origin", None if origin is None else origin.detach().clone())
        self.register_buffer("classifier", None if classifier is None else classifier.detach().clone())

    @property
    def num_classes(self) -> int | None:
        """Classes of the labels of which it takes shares; None where it takes them whole, or looks at none."""
        return None if self.classifier is None else len(self.classifier)

    def forward(self, transformed: Transformed, new: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """h (B, d) with log variance (B, 1 or d), new embeddings (B, d), labels -> the batch's objective.

        Labels are classes (B,), negative for none, or shares of classes (B, C) where items are mixed.
        """
        h = transformed.embedding.float()
        similarity = self.params.similarity_loss
        loss = similarity.mu_similarity * SIMILARITIES[similarity.name](h, new)  # (B, d or 1)
        if (disc := self.params.discriminative_loss) is not None:
            if self.classifier is not None:
                logits = F.linear(h, self.classifier)  # (B, d) -> (B, C)
                entropy = cross_entropy(logits, labels, disc.label_smoothing)
            else:
                alike = labels if disc.name == "SupCon" else torch.arange(len(h), device=h.device)  # each its own
                origin = 0.0 if self.origin is None else self.origin
                entropy = contrast(h - origin, new - origin, alike, disc.temperature)
            loss = loss + disc.mu_disc * entropy.unsqueeze(1)
        if (uncertainty := self.params.uncertainty_loss) is not None:
            assert transformed.log_variance is not None
            s = transformed.log_variance.float()
            return (0.5 * (-s).exp() * loss).mean() + uncertainty.mu_uncertainty * s.mean()
        return loss.mean()


def build_objective(
    params: ObjectiveParams,
    classifier: torch.Tensor | None,
    transformation: Transformation,
    origin: torch.Tensor | None = None,
) -> TransformationObjective:
    """The objective that `objective_params` describes, by the classifier (C, d_new) where L_disc has use for it.

    Args:
        classifier: the new model's, if it has one; without it L_disc is a contrast.
        origin: see `TransformationObjective`.

    Raises:
        UserError: uncertainty and transformation do not go together.
    """
    uncertain = transformation.has_uncertainty
    if params.uncertainty_loss is not None and not uncertain:
        raise UserError("objective_params.uncertainty_loss: needs a transformation with uncertainty, arch fastfill")
    if params.uncertainty_loss is None and uncertain:
        raise UserError("objective_params.uncertainty_loss: is missing, so fastfill's uncertainty would not be trained")
    return TransformationObjective(params, classifier if params.needs_classifier else None, origin)


def check_classifier(config: HowToFit, classifier: torch.Tensor | None) -> None:
    """Check, before anything is embedded, that the new model has a classifier (C, d_new) where one is needed.

    Raises:
        UserError: it has none.
    """
    if classifier is not None:
        return
    what = "needs a new model with a classifier, a backbone file that was not trained by SimCLR"
    if config.objective_params.needs_classifier:
        raise UserError(f"objective_params.discriminative_loss: {what}; SupCon and InfoNCE do without")
    if config.refinement_params is not None and config.refinement_params.clusters is None:
        raise UserError(f"refinement_params: {what}; or set refinement_params.clusters")


def check_classes(classifier: torch.Tensor | None, labels: torch.Tensor, *, needed_by: str) -> None:
    """Check that the classifier (C, d_new), if there is one, knows every label (n,) of the training set.

    Raises:
        UserError: it does not.
    """
    classes = int(labels.max()) + 1
    if classifier is not None and classes > len(classifier):
        raise UserError(
            f"new_model_path: the new model's classifier has {len(classifier)} classes, the training set {classes}; "
            f"{needed_by} needs them all"
        )
