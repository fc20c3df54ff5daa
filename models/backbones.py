"""Embedding models with a classifier, by name: our residual networks, and those of libraries."""

from typing import Any

import torch
from torch import nn

from models.config import OF_RESIDUAL_NETWORKS, BackboneArch
from models.libraries import PooledFeatures, library_features, library_preprocessing
from models.resnet import BACKBONES, ResNet
from utils.config import to_dict, unknown_choice
from utils.errors import UserError
from utils.references import LIBRARIES, library_of


class PooledBackbone(nn.Module):
    """The pooled features of a library's network, projected to an embedding, and a classifier behind it.

    Args:
        features: the network.
        num_classes: C, outputs of the classifier.
        embedding_dim: d of the bias-free projection; None: the pooled features are the embedding as they are.
    """

    def __init__(self, features: PooledFeatures, *, num_classes: int, embedding_dim: int | None) -> None:
        super().__init__()
        self.features = features.module
        self.projection = nn.Identity() if embedding_dim is None else nn.Linear(features.dim, embedding_dim, bias=False)
        self.fc = nn.Conv2d(embedding_dim or features.dim, num_classes, 1, bias=False)  # as `ResNet` has it

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, 3, H, W) -> logits (B, C), embedding (B, d, 1, 1)."""
        embedding = self.projection(self.features(images).flatten(1))[..., None, None]  # (B, d) -> (B, d, 1, 1)
        return self.fc(embedding).flatten(1), embedding


Backbone = ResNet | PooledBackbone


def build_backbone(arch: str, *, weights: str | None = None, **options: Any) -> Backbone:
    """Build a network by its name in the registry, or `torchvision/NAME` or `timm/NAME`.

    Args:
        weights: what a library's network begins with; see `models.libraries.library_features`.
        options: those of `ResNet`; or `num_classes`, `embedding_dim` and, where it is known, `image_size`.

    Raises:
        UserError: there is no network of this name, or as `library_features`.
    """
    if library_of(arch) is not None:
        features = library_features(arch, weights, options.pop("image_size", None), where="arch_params.arch")
        return PooledBackbone(features, **options)
    if arch not in BACKBONES:
        choices = [*BACKBONES, *(f"{library}/NAME" for library in LIBRARIES)]
        raise UserError(unknown_choice("arch_params.arch", arch, choices))
    return BACKBONES[arch](**options)


def backbone_arguments(arch: BackboneArch, image_size: int) -> dict[str, Any]:
    """The arguments of `build_backbone` by which the network can be built again, to hold its trained weights."""
    left_out = {"weights"} if library_of(arch.arch) is None else {"weights", *OF_RESIDUAL_NETWORKS}
    arguments = {name: value for name, value in to_dict(arch).items() if name not in left_out}
    return arguments if library_of(arch.arch) is None else {**arguments, "image_size": image_size}


def wanted_images(arch: BackboneArch) -> dict[str, Any]:
    """What images a library's network is made for, as `library_preprocessing` says it; nothing of ours."""
    if library_of(arch.arch) is None:
        return {}
    return library_preprocessing(arch.arch, arch.weights, where="arch_params.arch")
