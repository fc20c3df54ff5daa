"""Orders that look at classes, and the oracle, against one item at a time in numpy and scikit-learn."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from retrieval import backfilling_order
from retrieval.orders import by_class as class_orders
from tests.retrieval.oracle import seeded
from utils.errors import UserError

CLASSES, N = 4, 41
GENERATOR = seeded(3)
MEANS, CLASSIFIER = torch.randn(2, CLASSES, 6, generator=GENERATOR)
BIAS = torch.randn(CLASSES, generator=GENERATOR)
LABELS = torch.randint(CLASSES, (N,), generator=GENERATOR)
NEW, TRANSFORMED = torch.randn(2, N, 6, generator=GENERATOR) + MEANS[LABELS]
of_both_distances = pytest.mark.parametrize("distance", ["l2", "cosine"])
with_and_without_classifier = pytest.mark.parametrize("classifier", [None, CLASSIFIER])


def order(name: str, **change: Any) -> Tensor:
    known: dict[str, Any] = {"transformed": TRANSFORMED, "new": NEW, "classifier": CLASSIFIER, "class_means": MEANS}
    return backfilling_order(name, **{**known, "labels": LABELS, **change})


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


@pytest.mark.parametrize("bias", [None, BIAS])
def test_confidence_and_entropy(bias: Tensor | None) -> None:
    p = probabilities(bias)
    assert order("confidence", classifier_bias=bias).tolist() == by_score([-max(row) for row in p])
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
    monkeypatch.setattr(class_orders, "SAMPLE", sampled)
    h, p, score = placed(TRANSFORMED, distance), probabilities(), []
    own = predicted(h, placed(MEANS, distance), classifier)
    sample = torch.randperm(N, generator=seeded(7))[:sampled].tolist()
    for item in range(N):
        others = sorted((i for i in sample if i != item), key=lambda i: ((h[i] - h[item]) ** 2).sum())
        theirs = [own[i] for i in others[: class_orders.NEIGHBOURS]]
        agreement = [float(c == own[item]) if classifier is None else p[item, c] for c in theirs]
        score.append(1 - float(np.mean(agreement)))
    found = order("knn_disagreement", classifier=classifier, distance=distance, seed=7).tolist()
    assert [round(score[i], 4) for i in found] == [round(score[i], 4) for i in by_score(score)]


@pytest.mark.parametrize("unknown", [0, 9])
@of_both_distances
def test_the_oracle_loses_the_most_average_precision_first(distance: str, unknown: int) -> None:
    labels = LABELS.where(torch.arange(N) >= unknown, -1).numpy()
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


@pytest.mark.parametrize("name", ["confidence", "entropy", "class_distance", "knn_disagreement", "oracle"])
def test_chunks_change_nothing_and_only_the_oracle_knows_new_embeddings_and_labels(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = order(name)
    for module in ("orders.by_class", "orders.oracle", "representatives"):
        monkeypatch.setattr(f"retrieval.{module}.PART_ELEMENTS", 3 * N)
    assert torch.equal(order(name), whole)
    assert (name == "oracle") != torch.equal(order(name, new=NEW.flip(0), labels=LABELS.flip(0)), whole)


def test_auto_asks_the_classifier_where_the_gallery_is_of_its_classes() -> None:
    sigma = LABELS.float() + torch.arange(N) / N
    sure, noise = 30 * torch.eye(CLASSES), torch.rand(N, CLASSES, generator=GENERATOR)
    for classes, expected in ((CLASSES, "confidence"), (2, "sigma")):
        h = sure[torch.arange(N) % classes] + noise
        known: dict[str, Any] = {"transformed": h, "new": h, "classifier": torch.eye(CLASSES), "log_variance": sigma}
        assert torch.equal(backfilling_order("auto", **known), backfilling_order(expected, **known))
    assert torch.equal(order("auto", classifier=None, log_variance=sigma), order("sigma", log_variance=sigma))
    assert torch.equal(order("auto"), order("confidence"))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("auto", {"classifier": None}, r"order `auto` needs a classifier of the new model, or a gallery with sigma"),
        ("entropy", {"classifier": None}, r"order `entropy` needs a .*, or give embeddings_params.classifier"),
        ("class_distance", {"class_means": None}, r"order `class_distance` needs class means; .*params.class_means"),
        (
            "knn_disagreement",
            {"classifier": None, "class_means": None},
            "order `knn_disagreement` needs a classifier or class means",
        ),
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
