"""Representatives against a plain loop over classes."""

import numpy as np
import pytest
import torch

from retrieval import representatives as module
from retrieval.representatives import class_spread, place_representatives, representatives
from tests.retrieval.oracle import seeded
from utils.errors import UserError

GENERATOR = seeded(0)
N, CLASSES, DIMENSION = 200, 7, 5
H = torch.randn(N, DIMENSION, generator=GENERATOR)
CLASSIFIER = 2 * torch.randn(CLASSES, DIMENSION, generator=GENERATOR)
BIAS = torch.tensor([0.0, 0.5, -0.5, 0.0, 0.0, -100.0, 0.0])  # nothing is of class 5
MEANS = torch.randn(CLASSES, DIMENSION, generator=GENERATOR)


def probabilities(bias: torch.Tensor) -> torch.Tensor:
    return (H.double() @ CLASSIFIER.double().T + bias.double()).softmax(1)


def found_slowly(bias: torch.Tensor) -> dict[int, int]:
    """class -> its clearest item."""
    best: dict[int, int] = {}
    rows = probabilities(bias).tolist()
    for item, row in enumerate(rows):
        label = row.index(max(row))
        if label not in best or row[label] > rows[best[label]][label]:
            best[label] = item
    return best


@pytest.mark.parametrize("bias", [None, BIAS])
@pytest.mark.parametrize("part", [2**21, 50])
def test_the_clearest_item_of_each_predicted_class(
    bias: torch.Tensor | None, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_ELEMENTS", part)
    items, classes = representatives(H, CLASSIFIER, bias)
    expected = found_slowly(torch.zeros(CLASSES) if bias is None else bias)
    assert (5 in expected) == (bias is None)
    assert dict(zip(classes.tolist(), items.tolist(), strict=True)) == expected
    first, _ = representatives(H[:1].repeat(3, 1), CLASSIFIER)
    assert first.tolist() == [0]  # of equal items


def test_they_stand_at_their_means_and_the_rest_stays() -> None:
    before = H.half()
    placed = place_representatives(before, CLASSIFIER, MEANS, BIAS)
    expected = before.clone()
    for label, item in found_slowly(BIAS).items():
        expected[item] = MEANS[label].half()
    assert torch.equal(placed, expected)
    assert torch.equal(before, H.half())


def test_spread_over_the_classes() -> None:
    share = probabilities(BIAS).mean(0).numpy()
    share = share[share > 0]
    perplexity = np.exp(-(share * np.log(share)).sum())
    assert class_spread(H, CLASSIFIER, BIAS) == pytest.approx(perplexity / CLASSES, rel=1e-5)
    sure, even = 100 * torch.eye(CLASSES), torch.eye(CLASSES).repeat(3, 1)
    assert class_spread(even, sure) == pytest.approx(1)
    assert class_spread(even[even[:, :2].sum(1) > 0], sure) == pytest.approx(2 / CLASSES)  # two classes are there


def test_what_does_not_fit() -> None:
    with pytest.raises(UserError, match="class_means: are of 7 classes, but the classifier knows 6"):
        place_representatives(H, CLASSIFIER[:6], MEANS)
    with pytest.raises(UserError, match="classifier: 7 of 7 rows hold NaN"):
        place_representatives(H, CLASSIFIER * torch.nan, MEANS)
