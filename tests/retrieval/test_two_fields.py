"""A gallery of two fields, merged, against a plain loop over queries and items."""

import numpy as np
import pytest
import torch

from retrieval import cutoffs, evaluate, two_field_curve
from retrieval.two_fields import MERGES
from tests.retrieval.oracle import distances, seeded
from utils.errors import UserError

N = 60
LABELS = torch.arange(N) % 6
NEW = torch.randn(6, 8, generator=seeded(0))[LABELS] + torch.randn(N, 8, generator=seeded(1))
OLD = 30 * torch.cat([NEW[:, :4], torch.randn(N, 1, generator=seeded(2))], dim=1)  # another dimension, other lengths
ORDER = torch.randperm(N, generator=seeded(3))


def merged_slowly(query: int, re_embedded: np.ndarray, merge: str, distance: str) -> list[int]:
    """The items that a query finds, the nearest first."""
    scores = {}
    for field, vectors in ((~re_embedded, OLD.numpy()), (re_embedded, NEW.numpy())):
        items = [item for item in np.flatnonzero(field) if item != query]
        if not items:
            continue
        found = np.sqrt(distances(vectors[query], vectors[items], distance).astype(float))
        for place, at in enumerate(np.argsort(found, kind="stable")):
            standard = (found[at] - found.mean()) / found.std() if len(items) > 1 else 0.0
            scores[items[at]] = -1 / (60 + place + 1) if merge == "reciprocal_ranks" else standard
    return sorted(scores, key=lambda item: (scores[item], not re_embedded[item]))


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("merge", MERGES)
def test_agrees_with_a_loop_at_every_point(merge: str, distance: str) -> None:
    points = cutoffs(N, 4)
    groups, half = LABELS // 3, LABELS >= 3
    curve = two_field_curve(
        NEW, OLD, LABELS, order=ORDER, cutoffs=points, merge=merge, distance=distance, groups=groups
    )
    for cutoff, point in zip(points, curve.points, strict=True):
        re_embedded = np.isin(np.arange(N), ORDER[:cutoff].numpy())
        found = [merged_slowly(query, re_embedded, merge, distance) for query in range(N)]
        for k in (1, 5):
            hits = [any(LABELS[item] == LABELS[query] for item in items[:k]) for query, items in enumerate(found)]
            assert point.cmc[k] == pytest.approx(np.mean(hits)), (cutoff, k)
            assert point.per_group[1].cmc[k] == pytest.approx(np.mean(np.array(hits)[half])), (cutoff, k)


@pytest.mark.parametrize("merge", MERGES)
def test_its_ends_are_the_two_models_alone(merge: str) -> None:
    curve = two_field_curve(NEW, OLD, LABELS, order=ORDER, cutoffs=[0, 7, N], merge=merge)
    old, new = (evaluate(vectors, vectors, LABELS).to_json() for vectors in (OLD, NEW))
    assert curve.points[0].to_json() == pytest.approx(old)
    assert curve.points[-1].to_json() == pytest.approx(new)


def test_bad_input_is_named() -> None:
    with pytest.raises(UserError, match="merge: unknown 'ranks'"):
        two_field_curve(NEW, OLD, LABELS, order=ORDER, cutoffs=[0, N], merge="ranks")
    with pytest.raises(UserError, match="old: has 59 rows"):
        two_field_curve(NEW, OLD[1:], LABELS, order=ORDER, cutoffs=[0, N], merge="standardised")
