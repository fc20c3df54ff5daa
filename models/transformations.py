"""Transformations h(old embedding, side-information) -> new embedding (FCT, figure 3; FastFill, section 4) by name.

The published networks are 1x1 convolutions on (N, C, 1, 1); here they are linear layers on (N, C), which is the same
function and many times faster.
"""

from typing import Any, ClassVar, cast

import torch
from torch import nn

from models.baselines import ProcrustesTransformation, ResidualMLP, RidgeTransformation
from models.config import TransformationArch
from models.standardisation import Standardisation
from models.transformed import Network, Prefix, Transformation, Transformed
from utils.config import unknown_choice
from utils.errors import UserError


def linear_bn_relu(inputs: int, outputs: int) -> nn.Sequential:
    """Linear without bias, batch normalisation, ReLU."""
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True))


class FCTTransformation(Network):
    """The transformation of FCT: a projection of each input, then a mixer (`MLP_BN_SIDE_PROJECTION`).

    Without side-information the old embedding takes its place. The branches have the papers' widths, twice their input
    and twice the new embedding, but where `branch_dim` says another.
    """

    inner_dim: ClassVar[int | None] = 2048
    old_stands_in = True

    def __init__(
        self,
        *,
        old_embedding_dim: int,
        new_embedding_dim: int,
        side_info_dim: int,
        inner_dim: int = 2048,
        branch_dim: int | None = None,
    ) -> None:
        super().__init__()
        outputs = branch_dim or 2 * new_embedding_dim
        self.p1 = self._branch(old_embedding_dim, branch_dim or 2 * old_embedding_dim, outputs)
        self.p2 = self._branch(side_info_dim, branch_dim or 2 * side_info_dim, outputs)
        self.mixer = nn.Sequential(
            linear_bn_relu(2 * outputs, inner_dim),
            linear_bn_relu(inner_dim, inner_dim),
            nn.Linear(inner_dim, new_embedding_dim),
        )

    @staticmethod
    def _branch(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(linear_bn_relu(inputs, hidden), linear_bn_relu(hidden, outputs))

    def last_layer(self) -> nn.Linear:
        return cast(nn.Linear, self.mixer[-1])

    def transform(self, old: torch.Tensor, side_info: torch.Tensor | None) -> Transformed:
        beside = old if side_info is None else side_info
        h = self.mixer(torch.cat([self.p1(old), self.p2(beside)], dim=1))
        return Transformed(self.added_to_start(h, old, side_info), None)


class FastFillTransformation(FCTTransformation):
    """FCT's transformation with an uncertainty head on h (`MLP_BN_SIDE_PROJECTION_SIGMA`).

    The head gives the log variance s: one number an item (`sigma_dim` 1), or one a dimension (`sigma_dim` d_new).
    """

    has_uncertainty = True

    def __init__(
        self,
        *,
        old_embedding_dim: int,
        new_embedding_dim: int,
        side_info_dim: int,
        inner_dim: int = 2048,
        branch_dim: int | None = None,
        sigma_dim: int = 1,
    ) -> None:
        super().__init__(
            old_embedding_dim=old_embedding_dim,
            new_embedding_dim=new_embedding_dim,
            side_info_dim=side_info_dim,
            inner_dim=inner_dim,
            branch_dim=branch_dim,
        )
        if sigma_dim not in (1, new_embedding_dim):
            raise UserError(
                f"arch_params.sigma_dim: should be 1 or new_embedding_dim {new_embedding_dim}, got {sigma_dim}"
            )
        self.uncertainty_head = nn.Linear(new_embedding_dim, sigma_dim)

    def transform(self, old: torch.Tensor, side_info: torch.Tensor | None) -> Transformed:
        h = super().transform(old, side_info).embedding
        return Transformed(h, self.uncertainty_head(h))


TRANSFORMATIONS: dict[str, type[Transformation]] = {
    "fct": FCTTransformation,
    "fastfill": FastFillTransformation,
    "MLP_BN_SIDE_PROJECTION": FCTTransformation,
    "MLP_BN_SIDE_PROJECTION_SIGMA": FastFillTransformation,
    "procrustes": ProcrustesTransformation,
    "ridge": RidgeTransformation,
    "residual_mlp": ResidualMLP,
}


DIMENSIONS = {"old": "old_embedding_dim", "side_info": "side_info_dim", "new": "new_embedding_dim"}  # by role


def build_transformation(
    arch: str,
    *,
    normalised: bool | int = False,
    standardised: bool | int = False,
    residual_inputs: int = 0,
    wider_old_dim: int = 0,
    unit_prefix: bool | int = False,
    start_inputs: int = 0,
    relative: bool | int = False,
    **options: int,
) -> Transformation:
    """Build the transformation that the registry knows as `arch`, by its own name or ml-fct's.

    Args:
        normalised: give h the length 1.
        standardised: make room for the means and scales of the embeddings.
        residual_inputs: dimension of what a residual head takes, old embedding and side-information; 0 for no head.
        wider_old_dim: dimension of old embeddings whose first ones it takes; 0 where it takes all.
        unit_prefix: give these the length 1.
        start_inputs: the same of an affine map that h starts from; 0 for none.
        relative: make room for the centre from which the log variance is relative.
        options: of the transformation's own: dimensions and widths.

    Raises:
        UserError: the name is not in the registry, or it has no uncertainty and `sigma_dim` is given.
    """
    kind = _kind(arch)
    if "sigma_dim" in options and not kind.has_uncertainty:
        raise UserError(f"arch_params.sigma_dim: {arch} has no uncertainty; use fastfill or leave the key out")
    transformation = kind(**options)
    transformation.normalised = bool(normalised)
    if standardised:
        dims = {role: options[name] for role, name in DIMENSIONS.items()}
        transformation.standards = nn.ModuleDict({role: Standardisation(dim) for role, dim in dims.items()})
    if wider_old_dim:
        transformation.prefix = Prefix(options["old_embedding_dim"], wider_old_dim, bool(unit_prefix))
    if start_inputs:
        assert isinstance(transformation, Network)
        transformation.begin_at(nn.Linear(start_inputs, options["new_embedding_dim"]))
    if relative:
        transformation.centre = Standardisation(options["new_embedding_dim"])
    if residual_inputs:
        transformation.residual_head = nn.Linear(residual_inputs, 1)
    return transformation


def _kind(arch: str) -> type[Transformation]:
    if arch not in TRANSFORMATIONS:
        raise UserError(unknown_choice("arch_params.arch", arch, TRANSFORMATIONS))
    return TRANSFORMATIONS[arch]


def transformation_arguments(arch: TransformationArch, dims: dict[str, int]) -> dict[str, Any]:
    """The arguments of `build_transformation`: what `arch_params` says, completed by the models' dimensions.

    Args:
        dims: embedding dimension of each frozen model: old, new and, if there is one, side_info.

    Raises:
        UserError: the name is not in the registry, `arch_params` says another dimension than a model has, or there is
            side-information and the transformation takes none.
    """
    kind = _kind(arch.arch)
    if "side_info" in dims:
        side_info = (dims["side_info"], "the side-information model has")
    elif kind.old_stands_in:
        side_info = (dims["old"], "the old embedding that stands in for it has")
    else:
        side_info = (0, "there is no side-information, which is")
    if "side_info" in dims and not kind.takes_side_info:
        raise UserError(
            f"arch_params.arch: {arch.arch} maps the old embedding alone; leave side-information out, or use ridge"
        )
    actual = {
        "old_embedding_dim": (dims["old"], "the old model has"),
        "new_embedding_dim": (dims["new"], "the new model has"),
        "side_info_dim": side_info,
    }
    for name, (dim, source) in actual.items():
        stated = getattr(arch, name)
        if stated is not None and stated != dim:
            raise UserError(f"arch_params.{name}: says {stated}, {source} {dim}")
    arguments: dict[str, Any] = {"arch": arch.arch, **{name: dim for name, (dim, _) in actual.items()}}
    if kind.inner_dim is not None:
        arguments["inner_dim"] = arch.inner_dim or kind.inner_dim
    if arch.sigma_dim is not None:
        arguments["sigma_dim"] = arch.sigma_dim
    return arguments
