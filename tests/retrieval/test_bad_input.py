"""Every mistake in the input is one line, raised before any work."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from retrieval import backfilling_curve, evaluate
from utils.errors import UserError

EMBEDDINGS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) // 3
ORDER = torch.arange(12).flip(0)


def spoilt(value: float) -> torch.Tensor:
    embeddings = EMBEDDINGS.clone()
    embeddings[[3, 7], [1, 2]] = value
    return embeddings


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*arguments: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("retrieval.evaluation.distance_table", work)


# Of `evaluate` and `backfilling_curve` alike
COMMON: list[tuple[dict[str, Any], str]] = [
    ({"query": spoilt(torch.nan)}, r"query: 2 of 12 rows hold NaN or infinity, the first is row 3$"),
    ({"query": EMBEDDINGS[:, :3]}, r"-dimensional, but those of query 3"),
    ({"query": EMBEDDINGS[:0]}, r"query: the set of embeddings is empty, \(0, 4\)"),
    ({"query": EMBEDDINGS[0]}, r"query: embeddings should be \(n, d\), got \(4,\)"),
    ({"query": EMBEDDINGS[:5], "query_labels": LABELS[:5]}, "gallery_labels: should be given, since there are 5"),
    (
        {"query": EMBEDDINGS[:5], "query_labels": LABELS[:5], "gallery_labels": LABELS},
        "query_ids and gallery_ids: should be given, since there are 5 queries and 12 gallery items",
    ),
    ({"query_labels": LABELS[:, None]}, r"query_labels: should be \(12,\), one an embedding, got \(12, 1\)"),
    ({"query_labels": LABELS.float()}, "query_labels: should be whole numbers, got torch.float32"),
    ({"query_labels": torch.tensor([2**64 - 1] * 12, dtype=torch.uint64)}, r"query_labels: should be below 2\^63"),
    ({"query_labels": torch.arange(12)}, "labels: none of the 12 queries has an item of its label in the .* itself$"),
    ({"query_labels": LABELS - 9}, r"labels: none of the 12 queries .* itself \(negative labels are no class\)"),
    ({"gallery_labels": LABELS[:-1]}, r"gallery_labels: should be \(12,\)"),
    ({"query_ids": torch.arange(12) // 2}, "query_ids: 6 ids occur more than once, the first is 0"),
    ({"gallery_ids": torch.arange(12)}, "query_ids: should be given along with gallery_ids"),
    (
        {"query_ids": torch.arange(12), "gallery_ids": torch.arange(12).clamp(max=10)},
        "gallery_ids: 1 ids occur more than once, the first is 10",
    ),
    ({"distance": "euclid"}, r"distance: unknown 'euclid'; \(choices: l2, cosine\)"),
    ({"top_k": (1, 0)}, r"top_k: should be 1 or more each, got \[1, 0\]"),
    ({"precision_at": (5, -1)}, r"precision_at: should be 1 or more each, got \[5, -1\]"),
    ({"top_k": (), "compute_map": False}, "top_k: there is nothing to compute"),
    ({"interval_level": 95.0}, r"interval_level: should be between 0 and 1, as 0.95, got 95.0"),
]
OF_CURVES: list[tuple[dict[str, Any], str]] = [
    ({"transformed": spoilt(torch.inf)}, "transformed: 2 of 12 rows hold NaN or infinity, the first is row 3"),
    ({"new": spoilt(-torch.inf)}, "new: 2 of 12 rows hold NaN or infinity, the first is row 3"),
    ({"new": EMBEDDINGS[:-1]}, "transformed: has 12 rows, but new 11; they should be the same items"),
    ({"orders": {}}, "orders: there is none"),
    *(
        ({"orders": {"mine": wrong}}, "order `mine`: is no permutation of the 12 gallery items")
        for wrong in (ORDER.clamp(max=9), ORDER[:-1], ORDER + 1, ORDER.float())
    ),
    *(({"cutoffs": wrong}, r"cut-offs: should rise from 0 or more to 12") for wrong in ([0, 13], [-1, 12], [4, 3], [])),
]
OF_ONE: dict[str, Any] = {"query": EMBEDDINGS, "gallery": EMBEDDINGS, "query_labels": LABELS}
OF_A_CURVE: dict[str, Any] = {
    "query": EMBEDDINGS,
    "transformed": EMBEDDINGS,
    "new": EMBEDDINGS,
    "query_labels": LABELS,
    "orders": {"mine": ORDER},
    "cutoffs": [0, 12],
}


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        *((evaluate, OF_ONE | change, message) for change, message in COMMON),
        *((backfilling_curve, OF_A_CURVE | change, message) for change, message in (*COMMON, *OF_CURVES)),
    ],
)
def test_what_cannot_be_evaluated(call: Callable[..., object], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        call(**arguments)
    assert "\n" not in str(error.value)
