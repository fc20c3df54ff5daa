"""The figures of each class, in the JSON and on screen."""

from evaluation.outputs import result_json
from evaluation.tables import class_table
from retrieval import RetrievalMetrics


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
    assert rows[1] == ["class", "0", "(a)", "10.00", "100.00", "90.00"]
    assert [row[1] for row in rows[1:]] == ["0", "3", "6", "5", "4", "1"]
    by_cmc = [line.split() for line in class_table(metrics_of(cmc, [None] * 8)).splitlines()]
    assert by_cmc[1] == ["class", "1", "80.00", "100.00", "-"]
    assert [row[1] for row in by_cmc[1:]] == ["1", "2", "3", "6", "7", "0"]
    few = class_table(metrics_of(cmc[:4], [0.4, 0.3, 0.2, 0.1]))
    assert [line.split()[1] for line in few.splitlines()[1:]] == ["0", "1", "2", "3"]
