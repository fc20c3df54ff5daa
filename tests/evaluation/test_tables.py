"""What is found in the JSON and on screen."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from data.embeddings import EmbeddingSet
from evaluation.outputs import result_json
from evaluation.run import Curves, Evaluation, Quality
from evaluation.tables import class_table, correlations, table
from retrieval import RetrievalMetrics, backfilling_curve, evaluate, order_quality

NEW, TRANSFORMED = torch.randn(2, 90, 8, generator=torch.Generator().manual_seed(3))
LABELS, ORDERS = torch.arange(90) % 6, {"sigma": torch.arange(90), "confidence": torch.arange(89, -1, -1)}


def result(
    metrics: RetrievalMetrics,
    curves: Curves | None = None,
    level: float | None = None,
    quality: Quality | None = None,
    class_names: Sequence[str] = (),
) -> dict[str, Any]:
    items = EmbeddingSet(NEW, None, LABELS)
    evaluation = Evaluation(items, items, class_names, metrics, curves or {}, None, quality or {}, None)
    return json.loads(json.dumps(result_json(evaluation, level)))


def metrics_of(cmc: list[float], precisions: list[float | None]) -> RetrievalMetrics:
    classes = {
        label: RetrievalMetrics(10 + label, 0, 99, "l2", {1: top1, 5: 1.0}, precision)
        for label, (top1, precision) in enumerate(zip(cmc, precisions, strict=True))
    }
    return RetrievalMetrics(60, 0, 99, "l2", {1: 0.5, 5: 1.0}, 0.5, per_class=classes)


def test_the_json_has_counts_and_figures_by_label() -> None:
    metrics = metrics_of([0.25, 0.5], [0.125, None])
    figures = {"num_queries": 10, "cmc_top1": 0.25, "cmc_top5": 1.0, "map": 0.125}
    assert result(metrics)["per_class"]["0"] == figures
    named = result(metrics, class_names=["cat", "dog"])["per_class"]
    assert named["0"] == {"name": "cat", **figures}
    assert named["1"] == {"name": "dog", "num_queries": 11, "cmc_top1": 0.5, "cmc_top5": 1.0, "map": None}


def test_the_screen_shows_the_best_and_the_worst_classes() -> None:
    cmc = [0.1, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    by_map = class_table(metrics_of(cmc, [0.9, 0.1, 0.5, 0.8, 0.2, 0.3, 0.7, 0.4]), list("abcdefgh"))
    rows = [line.split() for line in by_map.splitlines()]
    assert rows[1] == ["class", "0", "(a)", "10.00", "100.00", "90.00"]
    assert [row[1] for row in rows[1:]] == ["0", "3", "6", "5", "4", "1"]
    by_cmc = [line.split() for line in class_table(metrics_of(cmc, [None] * 8)).splitlines()]
    assert by_cmc[1] == ["class", "1", "80.00", "100.00", "-"]
    assert [row[1] for row in by_cmc[1:]] == ["1", "2", "3", "6", "7", "0"]
    few = class_table(metrics_of(cmc[:4], [0.4, 0.3, 0.2, 0.1]))
    assert [line.split()[1] for line in few.splitlines()[1:]] == ["0", "1", "2", "3"]


def test_intervals_stand_beside_their_figures() -> None:
    curves = backfilling_curve(NEW, TRANSFORMED, NEW, LABELS, orders=ORDERS, cutoffs=[0, 30, 90], interval_level=0.95)
    points, auc = curves["sigma"].points, curves["sigma"].auc
    found = result(points[0], curves, 0.95)
    assert found["intervals"]["confidence"] == 0.95
    assert found["intervals"]["metrics"]["map"] == list(points[0].intervals["map"])
    of_curve = found["backfilling"]["sigma"]["intervals"]
    assert of_curve["map"] == [list(point.intervals["map"]) for point in points]
    assert of_curve["auc"]["map"] == list(auc.intervals["map"])
    assert "95 % interval" in table(points[0], curves, 0.95)
    assert "intervals" not in result(evaluate(NEW, NEW, LABELS))


def test_the_quality_of_orders() -> None:
    found = order_quality(TRANSFORMED, NEW, LABELS, ORDERS, compute_map=False)
    assert list(found["sigma"]) == ["alignment_error", "cmc_top1"]
    risk = result(evaluate(NEW, NEW, LABELS), quality=found)["risk_coverage"]["confidence"]["cmc_top1"]
    assert list(risk) == ["spearman", "coverages", "kept", "oracle", "random", "aurc"]
    assert correlations(found).splitlines() == [
        f"rank correlation of the {name} order with 1 - CMC-1: {found[name]['cmc_top1'].spearman:.2f}"
        for name in ORDERS
    ]
    perfect = order_quality(NEW, NEW, torch.zeros(90, dtype=torch.int64), ORDERS)
    assert correlations(perfect).endswith("the confidence order with 1 - AP: none, as all items have the same")
    alone = order_quality(TRANSFORMED, NEW, torch.arange(90), ORDERS)
    assert correlations(alone).startswith("rank correlation of the sigma order with the alignment error: ")
