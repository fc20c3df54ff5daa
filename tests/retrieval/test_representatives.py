"""Representatives against a plain loop over classes."""

import numpy as np
import pytest
import torch

from retrieval import class_spread, place_representatives
from retrieval import representatives as module
from tests.retrieval.oracle import seeded
from utils.errors import UserError

GENERATOR = seeded(0)
CLASSES = 7
H = torch.randn(200, 5, generator=GENERATOR)
CLASSIFIER, MEANS = torch.randn(2, CLASSES, 5, generator=GENERATOR)
BIAS = torch.tensor([0.0, 0.5, -0.5, 0.0, 0.0, -100.0, 0.0])  # nothing is of class 5


def probabilities(bias: torch.Tensor) -> torch.Tensor:
    return (H.double() @ CLASSIFIER.double().T + bias.double()).softmax(1)


@pytest.mark.parametrize("bias", [None, BIAS])
@pytest.mark.parametrize("part", [2**21, 50])
def test_the_clearest_item_of_each_predicted_class_stands_at_its_mean_and_the_rest_stays(
    bias: torch.Tensor | None, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_ELEMENTS", part)
    best: dict[int, int] = {}  # class -> item
    rows = probabilities(torch.zeros(CLASSES) if bias is None else bias).tolist()
    for item, row in enumerate(rows):
        label = row.index(max(row))
        if label not in best or row[label] > rows[best[label]][label]:
            best[label] = item
    assert (5 in best) == (bias is None)
    before, expected = H.half(), H.half()
    for label, item in best.items():
        expected[item] = MEANS[label].half()
    # An equal item behind them changes nothing: of equal ones it is the first.
    last = best[0]
    before, expected = (torch.cat([rows, H[last : last + 1].half()]) for rows in (before, expected))
    assert torch.equal(place_representatives(before, CLASSIFIER, MEANS, bias), expected)
    assert torch.equal(before[:200], H.half())


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
