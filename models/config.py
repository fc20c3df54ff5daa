"""`arch_params`: which network, which transformation."""

from dataclasses import dataclass, fields
from typing import Literal

from utils.config import key
from utils.references import library_of

CLOSED_FORMS = ("procrustes", "ridge")
# What the classes of `models.transformations` say of themselves, for configs, which are read before torch is imported.
OLD_ALONE = ("procrustes",)  # take no side-information
UNCERTAIN = ("fastfill",)  # have a log variance of their own
ExportFormat = Literal["torchscript", "pt2", "onnx", "safetensors"]
OF_RESIDUAL_NETWORKS = ("last_nonlin", "stem", "width")


@dataclass
class BackboneArch:
    """`arch_params` of an embedding model."""

    arch: str = key(
        doc="ResNet18, ResNet50, ResNet101, WideResNet50_2 or WideResNet101_2; `torchvision/NAME` or `timm/NAME`"
    )
    num_classes: int = key(doc="outputs of the classifier `fc`", minimum=1)
    embedding_dim: int | None = key(
        128,
        doc="dimension of the embedding, to which a library's pooled features are projected; none: they are it",
        minimum=1,
    )
    last_nonlin: bool = key(True, doc="ReLU before the average pooling that makes the embedding")
    stem: Literal["imagenet", "cifar"] = key(
        "imagenet", doc="imagenet: 7x7 stride 2 and max-pool; cifar: 3x3 stride 1, no pool"
    )
    width: float = key(
        1.0, doc="factor on the channels of every layer but the embedding; at least 16 stay", minimum=1 / 64
    )
    weights: str | None = key(
        None,
        doc="what a library's network begins with: the name of weights of the library (`DEFAULT`: its choice), or a "
        "file, a state dict; none: random weights",
        path="weights",
    )

    def __post_init__(self) -> None:
        if self.weights == "none":
            self.weights = None
        if library_of(self.arch) is None:
            if self.weights is not None:
                raise ValueError("weights: is for the networks of a library, torchvision/NAME or timm/NAME")
            if self.embedding_dim is None:
                raise ValueError(f"embedding_dim: {self.arch} needs a number; none is for networks of a library")
            return
        for field in fields(self):
            if field.name in OF_RESIDUAL_NETWORKS and getattr(self, field.name) != field.default:
                raise ValueError(f"{field.name}: is not for {self.arch}; leave it out")


@dataclass
class TransformationArch:
    """`arch_params` of a transformation. Dimensions left out are those of the embeddings."""

    arch: str = key(
        doc="fct (MLP_BN_SIDE_PROJECTION) or fastfill (MLP_BN_SIDE_PROJECTION_SIGMA); the baselines residual_mlp and, "
        "in closed form, procrustes and ridge"
    )
    old_embedding_dim: int | None = key(None, doc="dimension of the old embedding", minimum=1)
    new_embedding_dim: int | None = key(None, doc="dimension of the new embedding", minimum=1)
    side_info_dim: int | None = key(None, doc="dimension of the side-information", minimum=1)
    inner_dim: int | None = key(
        None,
        doc="width of the hidden layers; fct and fastfill: 2048, residual_mlp: 256; closed forms have none",
        minimum=1,
    )
    sigma_dim: int | None = key(None, doc="fastfill: 1 log variance an item (default), or one a dimension", minimum=1)
