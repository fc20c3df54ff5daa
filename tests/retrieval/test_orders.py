"""Backfilling orders, against one item at a time in numpy and scikit-learn."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from evaluation.config import BackfillingOrder
from retrieval import ORDERS, backfilling_order
from retrieval.orders import neighbours
from tests.retrieval.oracle import seeded
from utils.errors import UserError

CLASSES, N = 4, 41
GENERATOR = seeded(3)
MEANS, CLASSIFIER = torch.randn(2, CLASSES, 6, generator=GENERATOR)
BIAS, LOG_VARIANCE = torch.randn(CLASSES, generator=GENERATOR), torch.randn(N, generator=GENERATOR)
LABELS = torch.randint(CLASSES, (N,), generator=GENERATOR)
NEW, TRANSFORMED = torch.randn(2, N, 6, generator=GENERATOR) + MEANS[LABELS]
KNOWN: dict[str, Any] = {
    "transformed": TRANSFORMED,
    "new": NEW,
    "log_variance": LOG_VARIANCE,
    "classifier": CLASSIFIER,
    "class_means": MEANS,
    "labels": LABELS,
}
of_both_distances = pytest.mark.parametrize("distance", ["l2", "cosine"])
with_and_without_classifier = pytest.mark.parametrize("classifier", [None, CLASSIFIER])


def order(name: str, **change: Any) -> Tensor:
    return backfilling_order(name, **{**KNOWN, **change})


def by_score(score: list[float]) -> list[int]:
    """Items by falling score, ties by index."""
    return sorted(range(len(score)), key=lambda item: (-score[item], item))


def probabilities(bias: Tensor | None = None) -> np.ndarray:
    logits = TRANSFORMED.double().numpy() @ CLASSIFIER.double().numpy().T + (0 if bias is None else bias.numpy())
    odds = np.exp(logits)
    return odds / odds.sum(1, keepdims=True)


def placed(vectors: Tensor, distance: str) -> np.ndarray:
    array = vectors.double().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True) if distance == "cosine" else array


def predicted(h: np.ndarray, means: np.ndarray, classifier: Tensor | None) -> list[int]:
    if classifier is not None:
        return [int(p.argmax()) for p in probabilities()]
    return [int(((means - item) ** 2).sum(1).argmin()) for item in h]


def test_configs_name_every_order_and_random_is_a_function_of_the_seed() -> None:
    assert set(get_args(BackfillingOrder)) == set(ORDERS)
    first = order("random", seed=1)
    assert sorted(first.tolist()) == list(range(N))
    assert not torch.equal(first, order("random", seed=2))
    torch.manual_seed(5)
    assert torch.equal(first, order("random", seed=1))


def test_distance_takes_the_farthest_first() -> None:
    transformed, new = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([[1.0, 1.0], [9.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])
    known: dict[str, Any] = {"transformed": transformed, "new": new}
    assert backfilling_order("distance", **known).tolist() == [1, 3, 2, 0]
    assert backfilling_order("distance", **known, distance="cosine").tolist() == [3, 2, 0, 1]
    # In half precision their differences would overflow.
    new = torch.tensor([[-60000.0], [60000.0], [0.0]]).half()
    transformed = torch.tensor([[0.0], [-60000.0], [0.0]]).half()
    assert backfilling_order("distance", transformed=transformed, new=new).tolist() == [1, 0, 2]


def test_sigma_takes_the_most_uncertain_first_and_ties_go_by_index() -> None:
    expected = by_score(LOG_VARIANCE.tolist())
    assert order("sigma").tolist() == expected
    assert order("sigma", log_variance=LOG_VARIANCE[:, None] + torch.tensor([-1.0, 0.0, 1.0])).tolist() == expected
    assert order("sigma", log_variance=torch.zeros(N)).tolist() == list(range(N))


@pytest.mark.parametrize("bias", [None, BIAS])
def test_confidence_gain_and_entropy(bias: Tensor | None) -> None:
    p = probabilities(bias)
    assert order("confidence", classifier_bias=bias).tolist() == by_score([-max(row) for row in p])
    assert order("gain", classifier_bias=bias).tolist() == by_score([max(row) * (1 - max(row)) for row in p])
    of_items = [-sum(x * np.log(x) for x in row) for row in p]
    assert order("entropy", classifier_bias=bias).tolist() == by_score(of_items)


@of_both_distances
@with_and_without_classifier
def test_class_distance(classifier: Tensor | None, distance: str) -> None:
    h, means = placed(TRANSFORMED, distance), placed(MEANS, distance)
    own = predicted(h, means, classifier)
    score = [float(((h[item] - means[own[item]]) ** 2).sum()) for item in range(N)]
    assert order("class_distance", classifier=classifier, distance=distance).tolist() == by_score(score)


@of_both_distances
@with_and_without_classifier
@pytest.mark.parametrize("sampled", [N, 25])
def test_knn_disagreement(
    monkeypatch: pytest.MonkeyPatch, classifier: Tensor | None, distance: str, sampled: int
) -> None:
    monkeypatch.setattr(neighbours, "SAMPLE", sampled)
    h, p, score = placed(TRANSFORMED, distance), probabilities(), []
    own = predicted(h, placed(MEANS, distance), classifier)
    sample = torch.randperm(N, generator=seeded(7))[:sampled].tolist()
    for item in range(N):
        others = sorted((i for i in sample if i != item), key=lambda i: ((h[i] - h[item]) ** 2).sum())
        theirs = [own[i] for i in others[: neighbours.NEIGHBOURS]]
        agreement = [float(c == own[item]) if classifier is None else p[item, c] for c in theirs]
        score.append(1 - float(np.mean(agreement)))
    found = order("knn_disagreement", classifier=classifier, distance=distance, seed=7).tolist()
    assert [round(score[i], 4) for i in found] == [round(score[i], 4) for i in by_score(score)]


@of_both_distances
@pytest.mark.parametrize("sampled", [N, 25])
def test_density(monkeypatch: pytest.MonkeyPatch, distance: str, sampled: int) -> None:
    monkeypatch.setattr(neighbours, "SAMPLE", sampled)
    h = placed(TRANSFORMED, distance)
    sample = torch.randperm(N, generator=seeded(7))[:sampled].tolist()
    far = [sorted(np.linalg.norm(h[i] - h[item]) for i in sample if i != item)[:10] for item in range(N)]
    assert order("density", distance=distance, seed=7).tolist() == by_score([-float(np.mean(d)) for d in far])


@of_both_distances
def test_the_oracle_loses_the_most_average_precision_first(distance: str) -> None:
    labels = LABELS.where(torch.arange(N) >= 9, -1).numpy()
    h, new, score = placed(TRANSFORMED, distance), placed(NEW, distance), []
    for item in range(N):
        others = np.arange(N) != item
        if labels[item] < 0:  # nothing is relevant to it
            score.append(0.0)
            continue
        relevant = labels[others] == labels[item]
        by_new, by_h = (
            average_precision_score(relevant, -((new[others] - query) ** 2).sum(1)) for query in (new[item], h[item])
        )
        score.append(float(by_new - by_h))
    assert order("oracle", distance=distance, labels=torch.from_numpy(labels)).tolist() == by_score(score)


@pytest.mark.parametrize(
    "name", ["density", "confidence", "gain", "entropy", "class_distance", "knn_disagreement", "oracle"]
)
def test_chunks_change_nothing_and_only_the_oracle_knows_new_embeddings_and_labels(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = order(name)
    for module in ("orders.neighbours", "orders.oracle", "representatives"):
        monkeypatch.setattr(f"retrieval.{module}.PART_ELEMENTS", 3 * N)
    assert torch.equal(order(name), whole)
    assert (name == "oracle") != torch.equal(order(name, new=NEW.flip(0), labels=LABELS.flip(0)), whole)


def test_auto_asks_the_classifier_where_the_gallery_is_of_its_classes() -> None:
    sure, noise = 30 * torch.eye(CLASSES, 6), torch.rand(N, 6, generator=GENERATOR)
    for classes, expected in ((CLASSES, "confidence"), (2, "sigma")):
        h = sure[torch.arange(N) % classes] + noise
        known = {"transformed": h, "classifier": torch.eye(CLASSES, 6)}
        assert torch.equal(order("auto", **known), order(expected, **known))
    assert torch.equal(order("auto", classifier=None), order("sigma"))
    assert torch.equal(order("auto", log_variance=None), order("confidence"))


def test_auto_leaves_out_what_did_not_help() -> None:
    assert torch.equal(order("auto", unhelpful=["sigma"]), order("confidence"))
    assert torch.equal(order("auto", unhelpful=["confidence"]), order("sigma"))
    assert torch.equal(order("auto", unhelpful=["sigma", "confidence"], seed=3), order("random", seed=3))
    assert torch.equal(order("sigma", unhelpful=["sigma"]), order("sigma"))  # who names it, gets it


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sigm", {}, r"order: unknown 'sigm'; did you mean sigma\? \(choices: random, distance, sigma, .*oracle\)"),
        ("sigma", {"log_variance": None}, r"order `sigma` needs a gallery with sigma \(log variance\); train with"),
        ("sigma", {"log_variance": LOG_VARIANCE[:-1]}, "sigma: has 40 rows, but new 41"),
        ("sigma", {"log_variance": LOG_VARIANCE * torch.nan}, "sigma: 41 of 41 rows hold NaN"),
        ("sigma", {"transformed": TRANSFORMED[:-1]}, "transformed: has 40 rows, but new 41"),
        ("distance", {"distance": "l1"}, r"distance: unknown 'l1'; .*\(choices: l2, cosine\)"),
        ("auto", {"classifier": None, "log_variance": None}, "order `auto` needs a classifier of the new model, or"),
        ("entropy", {"classifier": None}, r"order `entropy` needs a .*, or give embeddings_params.classifier"),
        ("class_distance", {"class_means": None}, r"order `class_distance` needs class means; .*params.class_means"),
        ("knn_disagreement", {"classifier": None, "class_means": None}, "needs a classifier or class means"),
        ("oracle", {"labels": None}, "order `oracle` needs the labels of the gallery items"),
        ("oracle", {"labels": LABELS[1:]}, r"labels: should be \(41,\), one an embedding, got \(40,\)"),
        ("confidence", {"classifier": CLASSIFIER[:, 1:]}, "classifier: embeddings are 5-dimensional, but those of new"),
        ("entropy", {"class_means": MEANS[1:]}, "class_means: are of 3 classes, but the classifier knows 4"),
        ("entropy", {"classifier_bias": BIAS[1:]}, r"classifier_bias: should be \(4,\), got \(3,\)"),
    ],
)
def test_what_is_missing_or_does_not_fit(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        order(name, **change)
