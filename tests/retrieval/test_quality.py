"""What of one gallery's results another finds too, against a plain loop."""

import pytest
import torch

from retrieval import backfilling_order, evaluate, order_gains, recall_of_nearest, retrieval_quality
from tests.retrieval.oracle import seeded
from utils.errors import UserError

N = 40
GENERATOR = seeded(0)
QUERY = torch.randn(N, 5, generator=GENERATOR)
GALLERY = QUERY + 0.8 * torch.randn(N, 5, generator=GENERATOR)


def naive(query: torch.Tensor, gallery: torch.Tensor, reference: torch.Tensor, k: int) -> float:
    found = 0
    for i in range(N):
        nearest = []
        for items in (gallery, reference):
            distances = {j: float((items[j] - query[i]).norm()) for j in range(N) if j != i}
            nearest.append(set(sorted(distances, key=lambda j: distances[j])[:k]))
        found += len(nearest[0] & nearest[1])
    return found / (k * N)


@pytest.mark.parametrize("k", [1, 7, N - 1])
def test_recall_is_the_naive_loops(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.quality.QUERIES", 16)
    assert recall_of_nearest(QUERY, GALLERY, QUERY, k=k) == pytest.approx(naive(QUERY, GALLERY, QUERY, k))


def test_a_rescaled_gallery_agrees_in_full_by_cosine() -> None:
    scaled = GALLERY * torch.rand(N, 1, generator=GENERATOR).add(0.5)
    assert recall_of_nearest(QUERY, scaled, GALLERY, distance="cosine") == 1
    assert recall_of_nearest(QUERY, scaled, GALLERY) < 1


def test_quality_is_map_where_labels_tell_what_is_relevant() -> None:
    labels = torch.arange(N) % 4
    expected = evaluate(QUERY, GALLERY, labels).mean_average_precision
    assert retrieval_quality(GALLERY, QUERY, labels) == ("mAP", expected)
    recall = ("recall@10", recall_of_nearest(QUERY, GALLERY, QUERY, k=10))
    unknown = torch.where(torch.arange(N) < 30, -1, torch.arange(N))  # -1 is no class that items share
    for of_no_use in (None, torch.arange(N), unknown):
        assert retrieval_quality(GALLERY, QUERY, of_no_use) == recall
    unknown[0] = N - 1
    assert retrieval_quality(GALLERY, QUERY, unknown)[0] == "mAP"
    assert retrieval_quality(GALLERY[:5], QUERY[:5], None)[0] == "recall@4"


def test_what_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="recall of the 40 nearest: needs more than 40 items"):
        recall_of_nearest(QUERY, GALLERY, QUERY, k=N)
    with pytest.raises(UserError, match="the same in all sets"):
        recall_of_nearest(QUERY[:30], GALLERY, QUERY)


def test_what_an_order_brings_is_what_the_naive_loop_finds() -> None:
    """Recall in the mixes of one order less that in those of random ones."""
    error = (QUERY - GALLERY).norm(dim=1)
    found = order_gains(GALLERY, QUERY, None, {"worst first": error, "worst last": -error})

    def recall(order: torch.Tensor) -> float:
        mixes = []
        for share in (0.25, 0.5, 0.75):
            mix = GALLERY.clone()
            mix[order[: round(share * N)]] = QUERY[order[: round(share * N)]]
            mixes.append(naive(QUERY, mix, QUERY, 10))
        return sum(mixes) / 3

    random = [recall(backfilling_order("random", transformed=GALLERY, new=QUERY, seed=seed)) for seed in range(5)]
    for name, score in (("worst first", error), ("worst last", -error)):
        expected = recall(score.argsort(descending=True)) - sum(random) / 5
        assert found[name]["gain"] == pytest.approx(expected)
        assert found[name]["measure"] == "recall@10"
        assert found[name]["beats_random"] == (expected > 2 * found[name]["error"])
    assert found["worst first"]["gain"] > found["worst last"]["gain"]


def test_an_order_by_nothing_does_not_beat_chance() -> None:
    scores = {str(seed): torch.rand(N, generator=seeded(seed)) for seed in range(2, 10)}
    helpful = [found["beats_random"] for found in order_gains(GALLERY, QUERY, None, scores).values()]
    assert sum(helpful) <= 1
