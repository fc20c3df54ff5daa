"""Which queries show what an upgrade does: their nearest gallery items before, during and after."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

CANDIDATES = 1000  # queries among which examples are looked for
CHUNK = 256  # queries whose distances to the whole gallery are in memory at a time


@dataclass(frozen=True)
class Embeddings:
    """Embeddings with the ids and class labels of their items."""

    rows: np.ndarray  # (n, d) float32
    ids: np.ndarray  # (n,)
    labels: np.ndarray  # (n,)
    log_variance: np.ndarray | None = None  # (n,)


@dataclass(frozen=True)
class Hits:
    """The items that a query found, nearest first, and which of them are of its class."""

    ids: list[int]
    right: list[bool]


@dataclass(frozen=True)
class Example:
    """A query with what it finds at each step of the upgrade."""

    query_id: int
    steps: list[Hits]


def nearest(queries: Embeddings, gallery: Embeddings, k: int, metric: str = "l2") -> np.ndarray:
    """Positions in `gallery` of the k items nearest to each query, itself excepted -> (q, k).

    `metric` is l2, or cosine for embeddings of length one.
    """
    q, g = queries.rows, gallery.rows
    if metric == "cosine":
        q, g = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (q, g))
    lengths = np.square(g).sum(axis=1)
    found = []
    for start in range(0, len(q), CHUNK):
        chunk = slice(start, start + CHUNK)
        distances = lengths - 2 * q[chunk] @ g.T  # (chunk, n); |q|^2 does not change a query's ranking
        distances[queries.ids[chunk, None] == gallery.ids] = np.inf
        closest = np.argpartition(distances, k, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(distances, closest, axis=1), axis=1, kind="stable")
        found.append(np.take_along_axis(closest, order, axis=1))
    return np.concatenate(found)


def choose_examples(
    steps: list[tuple[Embeddings, Embeddings]], count: int, k: int = 5, metric: str = "l2", seed: int = 0
) -> list[Example]:
    """Pick queries that show the effect of an upgrade, of different classes as far as there are enough.

    Of a random sample (`seed`) those come first whose nearest item was wrong before the upgrade, is right ever after,
    and who find more of their class at every step.

    Args:
        steps: (queries, gallery) before the upgrade, after the transformation and after backfilling.
        count: how many; fewer where there are fewer queries.
        k: items a query finds.
    """
    first = steps[0][0]
    ids = np.random.default_rng(seed).permutation(first.ids)[:CANDIDATES]
    k = min(k, *(len(gallery.ids) - 1 for _, gallery in steps))
    # A step each: (q, k) positions in its gallery, and whether these are of the query's class.
    positions, rights = [], []
    for queries, gallery in steps:
        queries = _select(queries, ids)
        found = nearest(queries, gallery, k, metric)
        positions.append(found)
        rights.append(gallery.labels[found] == queries.labels[:, None])
    top = [right[:, 0].astype(int) for right in rights]
    counts = [right.sum(axis=1) for right in rights]
    effect = 1 - top[0] + sum(top[1:]) + sum(b > a for a, b in pairwise(counts))
    labels = _select(first, ids).labels
    ranked = np.argsort(-effect, kind="stable").tolist()
    _, first_of_class = np.unique(labels[ranked], return_index=True)
    ranked = [ranked[i] for i in sorted(first_of_class)] + [q for i, q in enumerate(ranked) if i not in first_of_class]
    return [
        Example(
            query_id=int(ids[q]),
            steps=[
                Hits(gallery.ids[found[q]].tolist(), right[q].tolist())
                for (_, gallery), found, right in zip(steps, positions, rights, strict=True)
            ],
        )
        for q in ranked[:count]
    ]


def _select(embeddings: Embeddings, ids: np.ndarray) -> Embeddings:
    """The items with these ids, in this order."""
    order = np.argsort(embeddings.ids, kind="stable")
    chosen = order[np.searchsorted(embeddings.ids, ids, sorter=order)]
    return Embeddings(embeddings.rows[chosen], ids, embeddings.labels[chosen])
