"""Representatives against a plain loop over classes."""

import numpy as np
import pytest
import torch

from retrieval import representatives as module
from retrieval.representatives import class_spread, place_representatives, representatives
from utils.errors import UserError

GENERATOR = torch.Generator().manual_seed(0)
N, CLASSES, DIMENSION = 200, 7, 5
H = torch.randn(N, DIMENSION, generator=GENERATOR)
CLASSIFIER = 2 * torch.randn(CLASSES, DIMENSION, generator=GENERATOR)
BIAS = torch.tensor([0.0, 0.5, -0.5, 0.0, 0.0, -100.0, 0.0])  # nothing is of class 5
MEANS = torch.randn(CLASSES, DIMENSION, generator=GENERATOR)


def found_slowly(bias: torch.Tensor | None) -> dict[int, int]:
    """class -> its clearest item."""
    logits = H.double() @ CLASSIFIER.double().T + (0 if bias is None else bias.double())
    probabilities = logits.softmax(1)
    best: dict[int, int] = {}
    for item, row in enumerate(probabilities.tolist()):
        label = row.index(max(row))
        if label not in best or row[label] > float(probabilities[best[label], label]):
            best[label] = item
    return best


@pytest.mark.parametrize("bias", [None, BIAS])
@pytest.mark.parametrize("part", [2**21, 50])
def test_the_clearest_item_of_each_predicted_class(
    bias: torch.Tensor | None, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_ELEMENTS", part)
    items, classes = representatives(H, CLASSIFIER, bias)
    expected = found_slowly(bias)
    assert (5 in expected) == (bias is None)
    assert dict(zip(classes.tolist(), items.tolist(), strict=True)) == expected


def test_they_stand_at_their_means_and_the_rest_stays() -> None:
    before = H.half()
    placed = place_representatives(before, CLASSIFIER, MEANS, BIAS)
    expected = before.clone()
    for label, item in found_slowly(BIAS).items():
        expected[item] = MEANS[label].half()
    assert placed.dtype == torch.float16
    assert torch.equal(placed, expected)
    assert torch.equal(before, H.half())


def test_of_equal_items_the_first() -> None:
    items, _ = representatives(H[:1].repeat(3, 1), CLASSIFIER)
    assert items.tolist() == [0]


def test_spread_over_the_classes() -> None:
    share = (H.double() @ CLASSIFIER.double().T + BIAS.double()).softmax(1).mean(0).numpy()
    share = share[share > 0]
    perplexity = np.exp(-(share * np.log(share)).sum())
    assert class_spread(H, CLASSIFIER, BIAS) == pytest.approx(perplexity / CLASSES, rel=1e-5)
    sure = 100 * torch.eye(CLASSES)
    even = torch.eye(CLASSES).repeat(3, 1)
    assert class_spread(even, sure) == pytest.approx(1)
    assert class_spread(even[even[:, :2].sum(1) > 0], sure) == pytest.approx(2 / CLASSES)  # two classes are there


@pytest.mark.parametrize(
    ("classifier", "means", "message"),
    [
        (CLASSIFIER[:6], MEANS, "class_means: are of 7 classes, but the classifier knows 6"),
        (CLASSIFIER, MEANS[:, :4], "class_means: "),
        (CLASSIFIER * torch.nan, MEANS, "classifier: "),
    ],
)
def test_what_does_not_fit(classifier: torch.Tensor, means: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        place_representatives(H, classifier, means)
