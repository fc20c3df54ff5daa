"""The figures of each class against a loop over its queries, with scikit-learn's average precision."""

from typing import Any

import pytest
import torch
from torch import Tensor

from evaluation.outputs import result_json
from evaluation.tables import class_table
from retrieval import RetrievalMetrics, backfilling_curve, evaluate
from tests.retrieval.oracle import rank_slowly


def items(n: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Embeddings (n, 6) of unevenly many items a class, the first classes tighter, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, generator=generator) ** 2 * classes).long() * 7
    centres = torch.randn(classes, 6, generator=generator)
    return centres[labels // 7] + (labels[:, None] + 6) / 20 * torch.randn(n, 6, generator=generator), labels


def classes_slowly(query_labels: Tensor, *arguments: Any) -> dict[int, dict[str, float | None]]:
    of_classes: dict[int, list[tuple[float, int]]] = {}
    for index, average_precision, ranks in rank_slowly(*arguments):
        of_classes.setdefault(int(query_labels[index]), []).append((average_precision, min(ranks)))
    return {
        label: {
            "cmc_top1": sum(rank <= 1 for _, rank in figures) / len(figures),
            "cmc_top5": sum(rank <= 5 for _, rank in figures) / len(figures),
            "map": sum(precision for precision, _ in figures) / len(figures),
        }
        for label, figures in sorted(of_classes.items())
    }


def check(metrics: RetrievalMetrics, expected: dict[int, dict[str, float | None]]) -> None:
    assert list(metrics.per_class) == list(expected)
    for label, of_class in metrics.per_class.items():
        assert of_class.to_json() == pytest.approx(expected[label], abs=1e-6)


def test_each_class_has_the_means_over_its_queries() -> None:
    embeddings, labels = items(150, 9, seed=0)
    labels[3] = 1000  # alone in its class, so there is nothing to say of it
    metrics = evaluate(embeddings, embeddings, labels, per_class=True)
    check(metrics, classes_slowly(labels, embeddings, embeddings, labels))
    assert 1000 not in metrics.per_class
    counts = {label: of_class.num_queries for label, of_class in metrics.per_class.items()}
    assert counts == {label: labels.tolist().count(label) for label in counts}
    assert len({of_class.cmc[1] for of_class in metrics.per_class.values()}) > 3  # the classes do differ


def test_queries_and_gallery_of_different_items() -> None:
    (query, query_labels), (gallery, gallery_labels) = items(60, 5, seed=1), items(90, 5, seed=2)
    gallery_labels[gallery_labels == 0] = 7
    gallery[0], gallery_labels[0] = query[0], 0  # label 0 is one gallery item alone, which is the first query itself
    query_labels[:3] = 0
    ids = (torch.arange(60), torch.cat([torch.tensor([0]), torch.arange(100, 189)]))
    arguments = (query, gallery, query_labels, gallery_labels)
    metrics = evaluate(*arguments, query_ids=ids[0], gallery_ids=ids[1], per_class=True)
    check(metrics, classes_slowly(query_labels, *arguments, *ids))
    assert metrics.num_skipped == metrics.per_class[0].num_skipped == 1
    assert sum(of_class.num_queries for of_class in metrics.per_class.values()) == metrics.num_queries


def test_of_a_curve_they_are_those_of_its_first_point() -> None:
    (new, labels), transformed = items(100, 6, seed=3), items(100, 6, seed=4)[0]
    orders = {"one": torch.arange(100), "other": torch.arange(99, -1, -1)}
    curves = backfilling_curve(new, transformed, new, labels, orders=orders, cutoffs=[0, 50, 100], per_class=True)
    expected = classes_slowly(labels, new, transformed, labels)
    for curve in curves.values():
        check(curve.points[0], expected)
        assert not any(point.per_class for point in curve.points[1:])


def test_without_map_and_not_asked_for() -> None:
    embeddings, labels = items(80, 4, seed=5)
    expected = classes_slowly(labels, embeddings, embeddings, labels)
    metrics = evaluate(embeddings, embeddings, labels, compute_map=False, per_class=True)
    check(metrics, {label: figures | {"map": None} for label, figures in expected.items()})
    without = evaluate(embeddings, embeddings, labels)
    assert without.per_class == {}
    assert "per_class" not in result_json(without, {}, None)


def metrics_of(cmc: list[float], precisions: list[float | None]) -> RetrievalMetrics:
    classes = {
        label: RetrievalMetrics(10 + label, 0, 99, "l2", {1: top1, 5: 1.0}, precision)
        for label, (top1, precision) in enumerate(zip(cmc, precisions, strict=True))
    }
    return RetrievalMetrics(60, 0, 99, "l2", {1: 0.5, 5: 1.0}, 0.5, per_class=classes)


def test_the_json_has_counts_and_figures_by_label() -> None:
    metrics = metrics_of([0.25, 0.5], [0.125, None])
    figures = {"num_queries": 10, "cmc_top1": 0.25, "cmc_top5": 1.0, "map": 0.125}
    assert result_json(metrics, {}, None)["per_class"]["0"] == figures
    named = result_json(metrics, {}, None, class_names=["cat", "dog"])["per_class"]
    assert named["0"] == {"name": "cat", **figures}
    assert named["1"] == {"name": "dog", "num_queries": 11, "cmc_top1": 0.5, "cmc_top5": 1.0, "map": None}


def test_the_screen_shows_the_best_and_the_worst() -> None:
    cmc = [0.1, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    by_map = class_table(metrics_of(cmc, [0.9, 0.1, 0.5, 0.8, 0.2, 0.3, 0.7, 0.4]), list("abcdefgh"))
    rows = [line.split() for line in by_map.splitlines()]
    assert rows[0] == ["best", "and", "worst", "classes", "CMC-1", "CMC-5", "mAP"]
    assert rows[1] == ["class", "0", "(a)", "10.00", "100.00", "90.00"]
    assert [row[1] for row in rows[1:]] == ["0", "3", "6", "5", "4", "1"]
    by_cmc = [line.split() for line in class_table(metrics_of(cmc, [None] * 8)).splitlines()]
    assert by_cmc[1] == ["class", "1", "80.00", "100.00", "-"]
    assert [row[1] for row in by_cmc[1:]] == ["1", "2", "3", "6", "7", "0"]
    few = class_table(metrics_of(cmc[:4], [0.4, 0.3, 0.2, 0.1]))
    assert [line.split()[1] for line in few.splitlines()[1:]] == ["0", "1", "2", "3"]
