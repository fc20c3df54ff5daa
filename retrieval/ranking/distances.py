"""Distances from chunks of queries to the gallery: squared, in float32, without cancellation error."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.config import unknown_choice
from utils.errors import UserError

DISTANCES = ("l2", "cosine")
PART_ELEMENTS = 2**21  # of a pass over embeddings, or over pairs x dimensions, at a time

# |q|^2 + |g|^2 - 2qg in float64 is off by about 1e-15 of its terms. Where the result is under this share of them, less
# than half a float32 digit of it would be sure in the worst case, and it is computed again from the differences.
NEAR = 1e-6
# Unit vectors of the same direction differ by rounding in float64; squared, by less than this.
SAME_DIRECTION = 1e-28


def check_distance(distance: str) -> None:
    """Raise a UserError unless `distance` is one of DISTANCES."""
    if distance not in DISTANCES:
        raise UserError(unknown_choice("distance", distance, DISTANCES))


@dataclass(frozen=True)
class DistanceTable:
    """The distances from every query to every gallery item in each of its S embeddings, computed row by row.

    They are squared L2 distances up to one power of two, or 2 (1 - cosine): what ranks alike. Each is computed in
    float64 and rounded to float32 once, so distances that differ by less than that are ties, whichever device or chunk
    they come from. Equal embeddings are one column of the matrix product, so their distances are equal to the last bit.
    """

    query: Tensor  # (n_q, d) as it was given, perhaps a file that is mapped: only a chunk of it is looked at a time
    space: "Space"
    points: Tensor  # (d + 2, m) float64, columns (-2g, 1, |g|^2) of the gallery's distinct embeddings
    columns: Tensor | None  # (S * n_g,) the point of each embedding; None where that is the identity
    sources: int  # S

    def rows(self, index: Tensor, itself: Tensor) -> Tensor:
        """The distances of the queries `index` (c,) -> (c, S, n_g) float32, infinite to the item `itself` (c,).

        `itself` is -1 where the gallery does not hold the query.
        """
        # (q, |q|^2, 1), whose product with the points is |q|^2 - 2qg + |g|^2 without a pass over it for each term
        queries = self.space.augmented(self.space.placed(self.query[index].double()))
        (row,) = (itself >= 0).nonzero(as_tuple=True)
        item = itself[row]
        table = queries @ self.points  # (c, m); a CPU takes a fifth longer where the points are rows
        if self.columns is None:  # before what follows, which most queries then need not do
            table.view(len(index), self.sources, -1)[row, :, item] = torch.inf
        table = self._rounded(table, queries)
        if self.columns is not None:
            table = table.index_select(1, self.columns)
        table = table.view(len(index), self.sources, -1)
        table[row, :, item] = torch.inf
        return table

    def _rounded(self, table: Tensor, queries: Tensor) -> Tensor:
        """Distances (c, m) float64 -> float32; those that cancellation has spoilt are computed from the differences."""
        rounded = table.float()
        query_squares, point_squares = queries[:, -2], self.points[-1]
        # The bound of a row, which is cheap; where a distance is within it, the bound of the pair.
        bound = NEAR * (query_squares + point_squares.max())
        (near,) = (rounded.amin(1) <= bound.float()).nonzero(as_tuple=True)  # rounding keeps what is below
        row, column = (table[near] < bound[near, None]).nonzero(as_tuple=True)
        row = near[row]
        spoilt = table[row, column] < NEAR * (query_squares[row] + point_squares[column])
        pairs = torch.stack([row[spoilt], column[spoilt]], dim=1)
        vectors, minus_twice_points = queries[:, :-2], self.points[:-2]
        for part in pairs.split(max(1, PART_ELEMENTS // queries.shape[1])):
            row, column = part.unbind(1)
            difference = vectors[row] + minus_twice_points[:, column].T / 2
            rounded[row, column] = difference.square().sum(1).clamp_(min=self.space.floor).float()
        return rounded


@dataclass(frozen=True)
class Space:
    """Where distances are computed: about the gallery's mean and in a safe range, or for cosine on the unit sphere."""

    distance: str
    centre: Tensor  # (d,) float64
    exponent: Tensor  # () every coordinate is divided by this power of two (exact): squares stay in float32's range

    @property
    def floor(self) -> float:
        """Distances below are rounding only."""
        return SAME_DIRECTION if self.distance == "cosine" else 0.0

    def placed(self, vectors: Tensor) -> Tensor:
        """(n, d) float64 embeddings -> (n, d)."""
        return unit(vectors) if self.distance == "cosine" else torch.ldexp(vectors - self.centre, -self.exponent)

    def augmented(self, vectors: Tensor) -> Tensor:
        """(n, d) placed vectors v -> (n, d + 2): (v, |v|^2, 1), for cosine with 1 for |v|^2, also where v is zero."""
        one = torch.ones_like(vectors[:, :1])
        squares = one if self.distance == "cosine" else vectors.square().sum(1, keepdim=True)
        return torch.cat([vectors, squares, one], dim=1)


def distance_table(query: Tensor, galleries: Sequence[Tensor], distance: str) -> DistanceTable:
    """Prepare the distances from `query` (n_q, d) to S embeddings, each (n_g, d), of the same gallery items."""
    rows = torch.cat([gallery.double() for gallery in galleries])
    centre = rows.mean(0)
    largest = torch.stack([(part.double() - centre).abs().amax() for part in (*row_parts(query), *row_parts(rows))])
    space = Space(distance, centre, torch.frexp(largest.amax()).exponent)
    rows = space.placed(rows)
    points, columns = rows.unique(dim=0, return_inverse=True)
    if len(points) == len(rows):  # all distinct, as most galleries are: their own order needs no look-up
        points, columns = rows, None
    vectors, squares, one = space.augmented(points).T.split([rows.shape[1], 1, 1])
    points = torch.cat([-2 * vectors, one, squares])
    return DistanceTable(query, space, points, columns, len(galleries))


def row_parts(rows: Tensor) -> tuple[Tensor, ...]:
    """Views of at most PART_ELEMENTS of `rows` (n, d), for passes that should not copy all of it."""
    return rows.split(max(1, PART_ELEMENTS // max(1, rows.shape[1])))


def unit(vectors: Tensor) -> Tensor:
    """(n, d) -> (n, d) of length 1; a zero vector stays zero, and its cosine with anything is 0."""
    largest = vectors.abs().amax(1, keepdim=True)
    vectors = vectors / torch.where(largest > 0, largest, 1)  # or the squares of tiny values would vanish
    return torch.nn.functional.normalize(vectors, dim=1)
