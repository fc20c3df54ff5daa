"""Transformations that need no training: orthogonal Procrustes and ridge regression, from sums over the pairs.

Both are functions of a few sums alone, so the memory they need does not grow with the number of pairs, and over
several processes the sums are added. Everything is float64.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from models.baselines import AffineTransformation
from models.standardisation import CONSTANT
from models.transformed import joined
from trainers.transformation.pairs import PairBatch, Pairs
from utils.distributed import World
from utils.errors import UserError
from utils.runs import Run

# Strengths of the ridge, relative to the mean variance of an input dimension: four a decade.
STRENGTHS = tuple(10 ** (exponent / 4) for exponent in range(-32, 9))


@dataclass(frozen=True)
class Moments:
    """What n pairs of an input x (d_in) and a new embedding y (d_new) come down to, centred."""

    count: int
    mean_x: torch.Tensor  # (d_in,)
    mean_y: torch.Tensor  # (d_new,)
    xx: torch.Tensor  # (d_in, d_in): sum of (x - mean)(x - mean)^T
    xy: torch.Tensor  # (d_in, d_new)
    yy: float  # sum of |y - mean|^2

    @classmethod
    def of(cls, batches: Iterable[PairBatch], world: World) -> "Moments":
        """The moments of all processes' `batches`, x being old embedding and side-information side by side.

        Raises:
            UserError: an embedding is not finite, or the inputs are all the same.
        """
        sums: list[torch.Tensor] | None = None
        for batch in batches:
            x, y = joined(batch.old, batch.side_info).double(), batch.new.double()  # (B, d_in), (B, d_new)
            of_batch = [x.new_tensor(float(len(x))), x.sum(0), y.sum(0), x.T @ x, x.T @ y, y.square().sum()]
            sums = of_batch if sums is None else [total.add_(more) for total, more in zip(sums, of_batch, strict=True)]
        if sums is None:
            raise UserError("there is no pair of embeddings to fit a transformation to")
        count, x_sum, y_sum, xx, xy, yy = (world.sum(total).cpu() for total in sums)
        if not all(total.isfinite().all() for total in (xx, xy, yy)):
            raise UserError("the embeddings to fit a transformation to are not all finite")
        n = int(count)
        centred = xx - torch.outer(x_sum, x_sum) / n
        if centred.trace() <= CONSTANT * xx.trace():
            raise UserError(f"the old embeddings are the same for all {n} items, so there is nothing to fit")
        return cls(
            n,
            x_sum / n,
            y_sum / n,
            centred,
            xy - torch.outer(x_sum, y_sum) / n,
            float(yy - y_sum.square().sum() / n),
        )

    def towards(self, batches: Iterable[PairBatch], world: World) -> "Moments":
        """The moments of the same inputs with other targets, y (B, d_y) in place of the new embedding."""
        sums: list[torch.Tensor] | None = None
        for batch in batches:
            x, y = joined(batch.old, batch.side_info).double(), batch.new.double()
            of_batch = [y.sum(0), (x - self.mean_x.to(x.device)).T @ y, y.square().sum()]
            sums = of_batch if sums is None else [total.add_(more) for total, more in zip(sums, of_batch, strict=True)]
        assert sums is not None
        y_sum, xy, yy = (world.sum(total).cpu() for total in sums)
        return replace(self, mean_y=y_sum / self.count, xy=xy, yy=float(yy - y_sum.square().sum() / self.count))


class Affine(NamedTuple):
    """y = weight x + bias, and what there is to say about how it was found."""

    weight: torch.Tensor  # (d_new, d_in)
    bias: torch.Tensor  # (d_new,)
    found: dict[str, float]


def procrustes(moments: Moments) -> Affine:
    """The orthogonal W that minimises sum |W (x - mean_x) - (y - mean_y)|^2 (Schoenemann, 1966).

    With the singular value decomposition xy = U S V^T it is W = V U^T. Where the dimensions differ W is
    semi-orthogonal: the solution for the smaller space padded with zeros, less the rows or columns of the padding. Into
    a larger space that is the minimum over all maps that keep distances.
    """
    u, _, vh = torch.linalg.svd(moments.xy, full_matrices=False)
    weight = (u @ vh).T
    return Affine(weight, moments.mean_y - weight @ moments.mean_x, {})


class Spectrum(NamedTuple):
    """The eigenvalues and eigenvectors of `Moments.xx`, from which ridge regressions of any strength come."""

    values: torch.Tensor  # (d_in,)
    vectors: torch.Tensor  # (d_in, d_in), one a column

    @classmethod
    def of(cls, moments: Moments) -> "Spectrum":
        """The decomposition of sum (x - mean)(x - mean)^T."""
        values, vectors = torch.linalg.eigh(moments.xx)
        return cls(values.clamp(min=0), vectors)


def ridge(moments: Moments, spectrum: Spectrum | None = None, held_out: Moments | None = None) -> Affine:
    """W and b that minimise sum |W x + b - y|^2 + strength |W|^2, with the strength that validates best.

    The strength is one of `STRENGTHS`, times the mean variance of an input dimension: that of the least error on
    held-out pairs, if there are any, else of the least generalised cross-validation error (Golub, Heath and Wahba,
    1979), the closed form of leave-one-out with every item's leverage at its mean. With the eigenvalues e_j of xx and
    c_j the rows of xy in its eigenvectors, for n items

        GCV = (RSS / n) / (1 - (1 + sum_j e_j / (e_j + strength)) / n)^2,
        RSS = yy - sum_j |c_j|^2 (e_j + 2 strength) / (e_j + strength)^2,

    where the 1 is the intercept's degree of freedom; one decomposition serves all strengths.

    Args:
        spectrum: of these moments, if it is known already.
        held_out: the moments of other pairs of the same roles.
    """
    n = moments.count
    eigenvalues, vectors = spectrum or Spectrum.of(moments)
    projected = vectors.T @ moments.xy  # (d_in, d_new)
    unit = float(eigenvalues.mean())
    strengths = unit * torch.tensor(STRENGTHS, dtype=torch.float64)  # (G,)
    shifted = eigenvalues + strengths.unsqueeze(1)  # (G, d_in)
    if held_out is not None:
        errors = _held_out_errors(moments, held_out, vectors, projected, shifted)
    else:
        power = projected.square().sum(1)
        rss = (moments.yy - (power * (shifted + strengths.unsqueeze(1)) / shifted.square()).sum(1)).clamp(min=0)
        free = 1 - (1 + (eigenvalues / shifted).sum(1)) / n
        errors = torch.where(free > 0, rss / n / free.square(), torch.inf)
    best = int(errors.argmin())
    weight = (vectors @ (projected / shifted[best].unsqueeze(1))).T
    found = {"strength": float(strengths[best]), "relative_strength": STRENGTHS[best]}
    found["gcv" if held_out is None else "held_out_error"] = float(errors[best])
    return Affine(weight, moments.mean_y - weight @ moments.mean_x, found)


def _held_out_errors(
    moments: Moments, held_out: Moments, vectors: torch.Tensor, projected: torch.Tensor, shifted: torch.Tensor
) -> torch.Tensor:
    """The mean squared error of m held-out pairs at each strength, (G,).

    With a = V^T (x - mean_x) and C the projected xy, a pair's error is |y - mean_y - C^T (a / shifted)|^2: a quadratic
    form in 1 / shifted, whose coefficients are sums over the pairs.
    """
    m, shift_x = held_out.count, held_out.mean_x - moments.mean_x
    shift_y = held_out.mean_y - moments.mean_y
    xx = held_out.xx + m * torch.outer(shift_x, shift_x)  # about the means of the pairs that were fitted to
    xy = held_out.xy + m * torch.outer(shift_x, shift_y)
    yy = held_out.yy + m * float(shift_y.square().sum())
    linear = ((vectors.T @ xy) * projected).sum(1)  # (d_in,)
    quadratic = (vectors.T @ xx @ vectors) * (projected @ projected.T)  # (d_in, d_in)
    inverse = 1 / shifted
    return (yy - 2 * inverse @ linear + ((inverse @ quadratic) * inverse).sum(1)) / m


SOLVERS: dict[str, Callable[[Moments], Affine]] = {"procrustes": procrustes, "ridge": ridge}


def fit_closed_form(transformation: AffineTransformation, arch: str, pairs: Pairs, run: Run, world: World) -> None:
    """Set `transformation` to the closed form that `arch` names, over every view of every item once.

    Raises:
        UserError: see `Moments.of`.
    """
    moments = Moments.of(pairs.views_once(), world)
    take_closed_form(transformation, arch, SOLVERS[arch](moments), moments.count, run, world)


def take_closed_form(
    transformation: AffineTransformation, arch: str, solution: Affine, items: int, run: Run, world: World
) -> None:
    """Set `transformation` to a solution that was fitted to so many items, and log what there is to say about it."""
    with torch.no_grad():
        transformation.affine.weight.copy_(solution.weight)
        transformation.affine.bias.copy_(solution.bias)
    record: dict[str, Any] = {"items": items, **solution.found}
    run.log([record])
    if world.is_main:
        print(f"{arch}: " + ", ".join(f"{name} {value:.4g}" for name, value in record.items()), flush=True)
