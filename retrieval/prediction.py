"""What re-embedding a share of a gallery will bring, predicted from a sample of pairs of old and new embeddings.

The sample stands for the gallery: each of its m items is a query, and the others are its gallery. A budget is a share
of the items. So is the depth of a search: recall@k in a gallery of m items is about recall@(k n / m) in one of n items
that is as dense everywhere, because thinning a gallery evenly leaves as many of its items within any distance, in
proportion. The bands cover the choice of the sample, as queries and as gallery.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from retrieval import backfilling_curve
from utils.seeds import Stream, generator

RESAMPLES = 100
CHUNK_ELEMENTS = 2**22  # of distances, at a time


@dataclass(frozen=True)
class Curve:
    """A quality in [0, 1] at each share of the gallery that is re-embedded, and its band; all (P,)."""

    fractions: Sequence[float]
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    def relative(self) -> "Curve":
        """The same as shares of the quality when everything is re-embedded."""
        full = self.values[-1]
        values, low, high = ([value / full for value in part] for part in (self.values, self.low, self.high))
        return Curve(self.fractions, values, low, high)

    def reaching(self, target: float) -> float:
        """The share of the gallery at which the quality first is `target`, between the points linearly.

        >>> Curve([0, 0.5, 1], [0.6, 0.8, 1], [0.5, 0.7, 1], [0.7, 0.9, 1]).reaching(0.9)
        0.75
        """
        if self.values[0] >= target:
            return 0.0
        place = next(i for i, value in enumerate(self.values) if value >= target or i + 1 == len(self.values))
        before, after = self.values[place - 1], self.values[place]
        step = min(1.0, (target - before) / (after - before)) if after > before else 1.0
        return self.fractions[place - 1] + step * (self.fractions[place] - self.fractions[place - 1])

    def at(self, fraction: float) -> tuple[float, float, float]:
        """The quality at a share of the gallery, and its band: value, low, high."""
        place = max(1, next(i for i, known in enumerate(self.fractions) if known >= fraction))
        first, last = self.fractions[place - 1], self.fractions[place]
        step = (fraction - first) / (last - first)
        value, low, high = (
            part[place - 1] + step * (part[place] - part[place - 1]) for part in (self.values, self.low, self.high)
        )
        return value, low, high


@torch.no_grad()
def predict_recall(
    new: Tensor,
    transformed: Tensor,
    *,
    orders: Mapping[str, Tensor],
    cutoffs: Sequence[int],
    k: int,
    confidence: float,
    seed: int,
) -> dict[str, Curve]:
    """The share of what the new model retrieves, its k nearest, that is among the k nearest of a mixed gallery.

    No labels are needed: a query's right answers are the items that a gallery of new embeddings alone would give it.

    The band comes from a bootstrap of the items. A resample gives an item a weight, how often it was drawn, both as a
    query and as a gallery item; the k nearest are then as many as weigh k together. So an item that was drawn twice is
    not its own neighbour, as it would be in a gallery of drawn copies. A gallery that is thinned at random has both its
    k-th distances, of new and of mixed embeddings, blurred, which costs recall; a resample is thinned once more in the
    same way, so what it loses against the sample is added to the estimate. The band is that plus and minus as many
    standard deviations of the resamples as the level asks for.

    Args:
        new: (m, d) new embeddings of the sample, which are the queries too.
        transformed: (m, d) h(old) of the same items.
        orders: name -> permutation (m,), the first to re-embed first.
        cutoffs: rising numbers of re-embedded items, from 0 to m.
        k: depth, below m.
        confidence: level of the band.
        seed: of the resamples.
    """
    m, depth = len(new), min(len(new) - 1, max(3 * k, k + 20))  # so deep that the lists of any resample weigh k
    cuts = torch.tensor(cutoffs)
    masks = []  # of the re-embedded items at each point, (P, m)
    for order in orders.values():
        position = torch.empty_like(order)
        position[order] = torch.arange(m)
        masks.append(position < cuts[:, None])
    mask = torch.cat(masks)  # (orders * P, m)
    own, place = _neighbours(new.float(), transformed.float(), mask, depth)
    found = _overlap(own, place, torch.ones(m), k)  # (orders * P,)
    draws = torch.stack([_overlap(own, place, weights, k) for weights in _weights(m, seed)])
    values = (2 * found - draws.mean(0)).clamp(0, 1)
    spread = NormalDist().inv_cdf((1 + confidence) / 2) * draws.std(0)
    low, high = (values - spread).clamp(min=0), (values + spread).clamp(max=1)
    fractions = [cutoff / m for cutoff in cutoffs]
    parts = [part.split(len(cutoffs)) for part in (values, low, high)]
    return {name: Curve(fractions, *(part[number].tolist() for part in parts)) for number, name in enumerate(orders)}


def _weights(count: int, seed: int) -> list[Tensor]:
    """How often each of `count` items is drawn in each resample."""
    random = generator(seed, Stream.BOOTSTRAP)
    drawn = [torch.randint(count, (count,), generator=random) for _ in range(RESAMPLES)]
    return [torch.bincount(items, minlength=count).float() for items in drawn]


def _neighbours(new: Tensor, transformed: Tensor, mask: Tensor, depth: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Each item's neighbours among the others.

    Returns:
        The `depth` nearest in new embeddings (m, depth). And of each mixed gallery, (m, masks, depth) each: the
        nearest, and the place among them of each of the former, `depth` where it is not there.
    """
    m = len(new)
    own, mixed, places = [], [], []
    squares = [(rows * rows).sum(1) for rows in (new, transformed)]
    for queries in torch.arange(m).split(max(1, CHUNK_ELEMENTS // (m * 4))):
        to_new, to_transformed = (
            (square - 2 * new[queries] @ rows.T) for square, rows in zip(squares, (new, transformed), strict=True)
        )  # squared distances, less the query's own length: what ranks alike
        for distances in (to_new, to_transformed):
            distances[torch.arange(len(queries)), queries] = torch.inf
        nearest = to_new.topk(depth, largest=False).indices  # (c, depth)
        lists = torch.stack(
            [torch.where(row, to_new, to_transformed).topk(depth, largest=False).indices for row in mask], dim=1
        )  # (c, masks, depth)
        where = torch.full((len(queries), m + 1), depth, dtype=torch.int16)
        found = []
        for one in lists.unbind(1):
            where.scatter_(1, one, torch.arange(depth, dtype=torch.int16).expand_as(one))
            found.append(where.gather(1, nearest))
            where.scatter_(1, one, torch.full_like(one, depth, dtype=torch.int16))
        own.append(nearest)
        mixed.append(lists.int())
        places.append(torch.stack(found, dim=1))
    return torch.cat(own), (torch.cat(mixed), torch.cat(places))


def _overlap(own: Tensor, mixed: tuple[Tensor, Tensor], weights: Tensor, k: int) -> Tensor:
    """The mean share of the k nearest that a mixed gallery finds, items weighted (m,) -> (masks,)."""
    nearest, places = mixed
    taken = _taken(weights[own], k)  # (m, depth)
    shares = []
    for one, place in zip(nearest.unbind(1), places.unbind(1), strict=True):
        here = torch.nn.functional.pad(_taken(weights[one], k), (0, 1)).gather(1, place.long())  # (m, depth)
        shares.append(torch.minimum(taken, here).sum(1) / k)
    return (torch.stack(shares, dim=1) * weights[:, None]).sum(0) / weights.sum()


def _taken(weights: Tensor, k: int) -> Tensor:
    """How much of each item is among the nearest that weigh k together, (m, depth) -> (m, depth)."""
    before = weights.cumsum(1) - weights
    return torch.minimum((k - before).clamp(min=0), weights)


def predict_map(
    new: Tensor,
    transformed: Tensor,
    labels: Tensor,
    *,
    orders: Mapping[str, Tensor],
    cutoffs: Sequence[int],
    confidence: float,
    seed: int,
) -> dict[str, Curve]:
    """Mean average precision by labels (m,), with bootstrap bands over the queries; arguments as `predict_recall`."""
    curves = backfilling_curve(
        new, transformed, new, labels, orders=orders, cutoffs=cutoffs, top_k=(), interval_level=confidence, seed=seed
    )
    predicted = {}
    for name, curve in curves.items():
        values = [point.mean_average_precision or 0.0 for point in curve.points]
        low, high = zip(*(point.intervals["map"] for point in curve.points), strict=True)
        predicted[name] = Curve(curve.fractions, values, low, high)
    return predicted
