"""Calibration of a mixed gallery: transformed items stand back, so that they compare with re-embedded ones.

h(x) is about the mean of the new embeddings n that items like x have, and what it lacks is noise to most queries: for
a query q that does not hang on the error, E|q - n|^2 = |q - h|^2 + e with e = E|n - h|^2. So a transformed item looks
nearer than it is by e on average, and by less among the nearest items, which are near because their noise is in their
favour. Of unit vectors, which h is made one of by lengthening it, cosines shrink: E cos(q, n) = |E n| cos(q, h).

One number mends it, which changes no ranking among items of one kind, and so neither end of a backfilling:

    l2      |q - h|^2 + c      transformed [h, sqrt(c)]              query and re-embedded [q, 0], [n, 0]
    cosine  f cos(q, h)        transformed [f h, sqrt(1 - f^2)]      query and re-embedded [q, 0], [n, 0], of length 1

so that one more coordinate serves it in any index.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from retrieval.ranking.distances import check_distance, unit
from retrieval.validation import check_embeddings, check_same_items
from utils.errors import UserError
from utils.seeds import Stream, generator

STEPS = 20  # of the values to choose among: shares of e up to all of it, and factors down to 1 / STEPS
SHARES = (0.25, 0.5, 0.75)  # of the gallery, re-embedded, in the mixes to choose by
MAX_ITEMS, MAX_QUERIES = 20_000, 1000  # to choose by
DEPTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
RELATIVE_DEPTH = 0.01  # the deepest counts this share of the items, or MIN_DEPTH: who searches, looks no deeper
MIN_DEPTH = 10
FEWEST = 100  # items to choose by: fewer show nothing but chance
QUERIES_AT_ONCE = 64


@dataclass(frozen=True)
class Calibration:
    """By how much transformed items stand back.

    Raises:
        UserError: an unknown distance, a constant below 0, or a factor that is not above 0 and at most 1.
    """

    distance: str  # l2 or cosine
    value: float  # l2: c, added to squared distances; cosine: f, by which cosines are multiplied

    def __post_init__(self) -> None:
        check_distance(self.distance)
        if self.distance == "cosine" and not 0 < self.value <= 1:
            raise UserError(f"calibration: a factor on cosines should be above 0 and at most 1, got {self.value}")
        if self.distance == "l2" and not 0 <= self.value < float("inf"):
            raise UserError(f"calibration: a constant on squared distances should be 0 or more, got {self.value}")

    def transformed(self, embeddings: Tensor, values: Tensor | None = None) -> Tensor:
        """Transformed items (n, d) -> (n, d + 1) float32, as an index holds them; of length 1 for cosine.

        `values` (n,) float32 are those of the items, where each has its own.
        """
        if values is None:
            values = torch.tensor([self.value], dtype=torch.float64, device=embeddings.device)
        value, vectors = values[:, None], embeddings.float()
        if self.distance == "cosine":
            vectors, value = value.float() * unit(vectors), 1 - value.square()
        return torch.cat([vectors, value.sqrt().float().expand(len(vectors), 1)], dim=1)

    def exact(self, embeddings: Tensor) -> Tensor:
        """Queries and re-embedded items (n, d) -> (n, d + 1), as an index holds and is asked for them."""
        return F.pad(embeddings, (0, 1))

    def stood_back(self, distances: Tensor) -> Tensor:
        """Squared L2 distances, or 2 (1 - cosine), to transformed items -> those that the coordinate makes of them."""
        return distances + self.value if self.distance == "l2" else 2 - self.value * (2 - distances)

    def mixed(self, embeddings: Tensor, re_embedded: Tensor, values: Tensor | None = None) -> Tensor:
        """A gallery (n, d) of which the items (n,) bool are re-embedded -> (n, d + 1); `values` as in `transformed`."""
        return torch.where(re_embedded[:, None], self.exact(embeddings), self.transformed(embeddings, values))

    def chained(self, before: Tensor, distance: str, gain: float) -> Tensor:
        """What items need that came here by way of another transformation, (n,) like `before`, what they needed there.

        Errors add: with m for h_12(x), n_3 - h_23(m) = n_3 - h_23(n_2) + h_23(n_2) - h_23(m), so that of independent
        errors E|n_3 - h_23(m)|^2 = e_23 + gain e_12, and constants are a share of e. A factor f does to the nearest
        items, whose cosine is about 1, what the constant 2 (1 - f) does to their squared distance.

        Args:
            before: constants or factors.
            distance: which of the two.
            gain: |h_23(n_2) - h_23(m)|^2 over |n_2 - m|^2.
        """
        error = gain * (before if distance == "l2" else 2 * (1 - before))
        return self.value + error if self.distance == "l2" else self.value * (1 - error / 2).clamp(min=1 / STEPS)


@torch.no_grad()
def choose_calibration(new: Tensor, transformed: Tensor, distance: str = "l2", *, seed: int = 0) -> dict[str, float]:
    """Choose the calibration with which random mixes agree best with a gallery of new embeddings alone, without labels.

    Agreement is the average overlap (Webber et al., ACM TOIS 2010) of the items that a query finds in the mix and among
    new embeddings: |both| / k, a mean over depths k that grow by a constant factor, up to 1 % of the items; over mixes
    of which a quarter, half and three quarters are re-embedded, drawn for each query anew; and over queries.

    Args:
        new: the new model's embeddings of m items that h was not trained on, (m, d); they are the queries too.
        transformed: h(old) of the same items, (m, d).
        distance: of the search.
        seed: of the queries, of the items where there are more than MAX_ITEMS, and of the mixes.

    Returns:
        `value`, as `Calibration` takes it; the `agreement` in [0, 1] that it reaches, and the `uncalibrated` one.

    Raises:
        UserError: embeddings that are not finite or do not fit together, or fewer than FEWEST items.
    """
    check_distance(distance)
    check_embeddings(new=new, transformed=transformed)
    check_same_items(new=new, transformed=transformed)
    if len(new) < FEWEST:
        raise UserError(f"calibration: needs {FEWEST} pairs of embeddings or more to choose by, got {len(new)}")
    random = generator(seed, Stream.CALIBRATION)
    items = torch.randperm(len(new), generator=random)[:MAX_ITEMS].to(new.device)
    new, transformed = new[items].float(), transformed[items].float()
    candidates = _candidates(new, transformed, distance)
    agreements = _agreements(new, transformed, candidates, distance, random)
    alike = _no_worse_than_the_best(agreements)
    chosen = 0 if alike[0] else int(alike.nonzero().double().mean().round())  # the middle one; none where that will do
    return {
        "value": candidates[chosen].value,
        "agreement": float(agreements[:, chosen].mean()),
        "uncalibrated": float(agreements[:, 0].mean()),
    }


def _candidates(new: Tensor, transformed: Tensor, distance: str) -> list[Calibration]:
    """From none on, milder ones first."""
    if distance == "cosine":
        return [Calibration(distance, 1 - step / STEPS) for step in range(STEPS)]
    error = float((new - transformed).double().square().sum(1).mean())
    return [Calibration(distance, error * step / STEPS) for step in range(STEPS + 1)]


def _agreements(
    new: Tensor, transformed: Tensor, candidates: list[Calibration], distance: str, random: torch.Generator
) -> Tensor:
    """The agreement of each query's mixes by each candidate, (queries, candidates) float64 on the CPU."""
    m = len(new)
    depths = [k for k in DEPTHS if k <= max(MIN_DEPTH, RELATIVE_DEPTH * m)]
    queries = torch.arange(min(m, MAX_QUERIES), device=new.device)
    agreements = torch.zeros(len(queries), len(candidates), dtype=torch.float64)
    for part in queries.split(QUERIES_AT_ONCE):
        exact, old = (_distances(new[part], gallery, distance) for gallery in (new, transformed))  # (c, m)
        for distances in (exact, old):
            distances[torch.arange(len(part)), part] = torch.inf
        order = torch.arange(depths[-1], device=new.device).expand(len(part), -1)
        places = torch.full_like(exact, depths[-1], dtype=torch.int64)
        places.scatter_(1, exact.topk(depths[-1], largest=False).indices, order)
        draws = torch.rand(len(part), m, generator=random).to(new.device)
        for share in SHARES:
            # Whatever the calibration, the first of a mix are among the first of either kind.
            re_embedded = exact.masked_fill(draws >= share, torch.inf).topk(depths[-1], largest=False)
            others = old.masked_fill(draws < share, torch.inf).topk(depths[-1], largest=False)
            items = torch.cat([re_embedded.indices, others.indices], dim=1)
            for number, calibration in enumerate(candidates):
                mix = torch.cat([re_embedded.values, calibration.stood_back(others.values)], dim=1)
                found = items.gather(1, mix.topk(depths[-1], largest=False).indices)
                agreements[part.cpu(), number] += average_overlap(found, places, depths).cpu() / len(SHARES)
    return agreements


def _no_worse_than_the_best(agreements: Tensor) -> Tensor:
    """Which candidates cannot be told from the best: by less than a standard error of the difference over queries.

    (queries, candidates) -> (candidates,) bool.
    """
    behind = agreements[:, [int(agreements.mean(0).argmax())]] - agreements
    return behind.mean(0) <= behind.std(0) / len(behind) ** 0.5


def _distances(query: Tensor, gallery: Tensor, distance: str) -> Tensor:
    """Squared L2 distances, or 2 (1 - cosine), (c, d), (m, d) -> (c, m): to rank candidates by, rounding and all."""
    if distance == "cosine":
        return 2 - 2 * unit(query) @ unit(gallery).T
    return torch.cdist(query, gallery).square()


def average_overlap(found: Tensor, places: Tensor, depths: list[int]) -> Tensor:
    """The mean over `depths` k of |first k of found, first k of another list| / k, (c,).

    Args:
        found: lists (c, D) of items below m.
        places: the place of every item in the other list, (c, m); D or more where it is not there.
    """
    order = torch.arange(found.shape[1], device=found.device)
    needed = torch.maximum(places.gather(1, found), order)  # an item is in both lists from the depth after this on
    return torch.stack([(needed < k).double().sum(1) / k for k in depths]).mean(0)
