"""Orders that look at classes, and the oracle, against one item at a time in numpy and scikit-learn."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from retrieval import backfilling_order
from retrieval.orders import by_class as class_orders
from utils.errors import UserError

GENERATOR = torch.Generator().manual_seed(3)
CLASSES, N, DIMENSION = 4, 41, 6
MEANS, CLASSIFIER = torch.randn(2, CLASSES, DIMENSION, generator=GENERATOR)
BIAS = torch.randn(CLASSES, generator=GENERATOR)
LABELS = torch.randint(CLASSES, (N,), generator=GENERATOR)
NEW, TRANSFORMED = torch.randn(2, N, DIMENSION, generator=GENERATOR) + MEANS[LABELS]
ORDERS_OF_CLASSES = ("confidence", "entropy", "class_distance", "knn_disagreement", "oracle")


def order(name: str, **change: Any) -> Tensor:
    known: dict[str, Any] = {"classifier": CLASSIFIER, "class_means": MEANS, "labels": LABELS}
    return backfilling_order(name, transformed=TRANSFORMED, new=NEW, **{**known, **change})


def by_score(score: list[float]) -> list[int]:
    """Items by falling score, ties by index."""
    return sorted(range(len(score)), key=lambda item: (-score[item], item))


def probabilities(bias: Tensor | None) -> np.ndarray:
    logits = TRANSFORMED.double().numpy() @ CLASSIFIER.double().numpy().T + (0 if bias is None else bias.numpy())
    odds = np.exp(logits)
    return odds / odds.sum(1, keepdims=True)


def placed(vectors: Tensor, distance: str) -> np.ndarray:
    array = vectors.double().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True) if distance == "cosine" else array


def nearest_mean(h: np.ndarray, means: np.ndarray) -> int:
    return int(((means - h) ** 2).sum(1).argmin())


@pytest.mark.parametrize("bias", [None, BIAS])
def test_confidence_and_entropy(bias: Tensor | None) -> None:
    p = probabilities(bias)
    assert order("confidence", classifier_bias=bias).tolist() == by_score([-max(row) for row in p])
    of_items = [-sum(x * np.log(x) for x in row) for row in p]
    assert order("entropy", classifier_bias=bias).tolist() == by_score(of_items)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("classifier", [None, CLASSIFIER])
def test_class_distance(classifier: Tensor | None, distance: str) -> None:
    h, means, score = placed(TRANSFORMED, distance), placed(MEANS, distance), []
    for item in range(N):
        own = nearest_mean(h[item], means) if classifier is None else int(probabilities(None)[item].argmax())
        score.append(float(((h[item] - means[own]) ** 2).sum()))
    assert order("class_distance", classifier=classifier, distance=distance).tolist() == by_score(score)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("classifier", [None, CLASSIFIER])
@pytest.mark.parametrize("sampled", [N, 25])
def test_knn_disagreement(
    monkeypatch: pytest.MonkeyPatch, classifier: Tensor | None, distance: str, sampled: int
) -> None:
    monkeypatch.setattr(class_orders, "SAMPLE", sampled)
    h, means, p, score = placed(TRANSFORMED, distance), placed(MEANS, distance), probabilities(None), []
    predicted = [nearest_mean(h[i], means) if classifier is None else int(p[i].argmax()) for i in range(N)]
    sample = torch.randperm(N, generator=torch.Generator().manual_seed(7))[:sampled].tolist()
    for item in range(N):
        others = sorted((i for i in sample if i != item), key=lambda i: ((h[i] - h[item]) ** 2).sum())
        theirs = [predicted[i] for i in others[: class_orders.NEIGHBOURS]]
        agreement = [float(c == predicted[item]) if classifier is None else p[item, c] for c in theirs]
        score.append(1 - float(np.mean(agreement)))
    found = order("knn_disagreement", classifier=classifier, distance=distance, seed=7).tolist()
    assert [round(score[i], 4) for i in found] == [round(score[i], 4) for i in by_score(score)]


@pytest.mark.parametrize("unknown", [0, 9])
@pytest.mark.parametrize("distance", ["l2", "cosine"])
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


@pytest.mark.parametrize("name", ORDERS_OF_CLASSES)
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    whole = order(name)
    for module in ("orders.by_class", "orders.oracle", "representatives"):
        monkeypatch.setattr(f"retrieval.{module}.PART_ELEMENTS", 3 * N)
    assert torch.equal(order(name), whole)


@pytest.mark.parametrize("name", ["random", "sigma", *ORDERS_OF_CLASSES[:-1]])
def test_only_oracles_look_at_new_embeddings_and_labels(name: str) -> None:
    change = {"log_variance": LABELS.float(), "classifier": CLASSIFIER}
    known = backfilling_order(name, transformed=TRANSFORMED, new=NEW, class_means=MEANS, labels=LABELS, **change)
    unknown = backfilling_order(name, transformed=TRANSFORMED, new=NEW.flip(0), class_means=MEANS, **change)
    assert torch.equal(known, unknown)


def test_auto_asks_the_classifier_where_the_gallery_is_of_its_classes() -> None:
    sigma = LABELS.float() + torch.arange(N) / N
    sure, noise = 30 * torch.eye(CLASSES), torch.rand(N, CLASSES, generator=GENERATOR)
    for classes, expected in ((CLASSES, "confidence"), (2, "sigma")):
        h = sure[torch.arange(N) % classes] + noise
        known: dict[str, Any] = {"transformed": h, "new": h, "classifier": torch.eye(CLASSES), "log_variance": sigma}
        assert torch.equal(backfilling_order("auto", **known), backfilling_order(expected, **known))
    for only in ({"log_variance": sigma}, {"classifier": CLASSIFIER}):  # nothing to choose between
        known = {"transformed": TRANSFORMED, "new": NEW, **only}
        expected = "sigma" if "log_variance" in only else "confidence"
        assert torch.equal(backfilling_order("auto", **known), backfilling_order(expected, **known))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("auto", {"classifier": None}, r"order `auto` needs a classifier of the new model, or a gallery with sigma"),
        ("confidence", {"classifier": None}, "order `confidence` needs a classifier of the new model; evaluate with a"),
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
        ("class_distance", {"class_means": MEANS * torch.nan}, "class_means: 4 of 4 rows hold NaN or infinity"),
        ("entropy", {"class_means": MEANS[1:]}, "class_means: are of 3 classes, but the classifier knows 4"),
        ("entropy", {"classifier_bias": BIAS[1:]}, r"classifier_bias: should be \(4,\), got \(3,\)"),
    ],
)
def test_what_is_missing_or_does_not_fit(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        order(name, **change)
    assert "\n" not in str(error.value)
