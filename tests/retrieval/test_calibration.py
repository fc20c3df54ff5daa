"""Calibration of mixed galleries: what the coordinate does, against plain formulas, and what is chosen."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrieval import BackfillingCurve, Calibration, backfilling_curve, choose_calibration, cutoffs, evaluate
from retrieval.calibration import average_overlap
from utils.errors import UserError


def clusters(n: int = 600) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """New embeddings of 20 classes with much detail, of which h knows the classes' directions alone, and labels."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 20
    known = torch.randn(20, 8, generator=random)[labels] + 0.5 * torch.randn(n, 8, generator=random)
    detail = 0.25 * torch.randn(20, 24, generator=random)[labels] + 0.4 * torch.randn(n, 24, generator=random)
    return torch.cat([known, detail], dim=1), torch.cat([known, torch.zeros(n, 24)], dim=1), labels


def test_the_coordinate_adds_the_constant_to_squared_distances_of_transformed_items() -> None:
    new, h, _ = clusters()
    calibration = Calibration("l2", 2.5)
    query = calibration.exact(new[:7])
    assert torch.allclose(
        torch.cdist(query, calibration.transformed(h)).square(), torch.cdist(new[:7], h).square() + 2.5, atol=1e-4
    )
    assert torch.equal(torch.cdist(query, calibration.exact(new)), torch.cdist(new[:7], new))


def test_the_coordinate_multiplies_the_cosines_of_transformed_items() -> None:
    new, h, _ = clusters()
    calibration = Calibration("cosine", 0.7)
    cosine = torch.nn.functional.cosine_similarity
    query, items = calibration.exact(new[:7])[:, None], calibration.transformed(h)[None]
    assert torch.allclose(cosine(query, items, dim=2), 0.7 * cosine(new[:7, None], h[None], dim=2), atol=1e-6)
    assert torch.allclose(items.norm(dim=2), torch.ones(()))
    assert torch.equal(calibration.exact(new)[:, :-1], new)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_half_precision_is_not_lost_on_the_way(distance: str) -> None:
    _, h, _ = clusters()
    calibration = Calibration(distance, 0.7)
    assert torch.equal(calibration.transformed(h.half()), calibration.transformed(h.half().float()))


def test_a_zero_vector_stays_far_from_every_query() -> None:
    items = Calibration("cosine", 0.7).transformed(torch.zeros(1, 4))
    assert torch.equal(items[:, :-1], torch.zeros(1, 4))


@pytest.mark.parametrize(("distance", "value"), [("l2", 3.0), ("cosine", 0.6)])
def test_neither_end_of_a_curve_moves_and_the_middle_does(distance: str, value: float) -> None:
    new, h, labels = clusters()
    calibration = Calibration(distance, value)
    order = torch.randperm(len(new), generator=torch.Generator().manual_seed(1))
    points = cutoffs(len(new), 3)
    plain, calibrated = (
        backfilling_curve(q, t, q, labels, orders={"random": order}, cutoffs=points, distance=distance)["random"].points
        for q, t in ((new, h), (calibration.exact(new), calibration.transformed(h)))
    )
    for end in (0, -1):
        assert calibrated[end].to_json() == pytest.approx(plain[end].to_json())
    assert calibrated[2].mean_average_precision != plain[2].mean_average_precision


def test_a_mixed_gallery_is_a_point_of_the_curve() -> None:
    new, h, labels = clusters()
    calibration = Calibration("l2", 3.0)
    re_embedded = torch.arange(len(new)) < 200
    gallery = calibration.mixed(torch.where(re_embedded[:, None], new, h), re_embedded)
    curve = backfilling_curve(
        calibration.exact(new),
        calibration.transformed(h),
        calibration.exact(new),
        labels,
        orders={"first": torch.arange(len(new))},
        cutoffs=[200],
    )["first"]
    assert evaluate(calibration.exact(new), gallery, labels).to_json() == pytest.approx(curve.points[0].to_json())


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_what_is_chosen_makes_mixes_agree_with_the_new_model_and_closes_the_sag(distance: str) -> None:
    new, h, labels = clusters(1500)
    chosen = choose_calibration(new[:500], h[:500], distance)
    assert chosen["agreement"] > chosen["uncalibrated"] + 0.02
    calibration = Calibration(distance, chosen["value"])
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(1))
    plain, calibrated = (
        backfilling_curve(
            q[500:], t[500:], q[500:], labels[500:], orders={"r": order}, cutoffs=cutoffs(1000, 8), distance=distance
        )["r"]
        for q, t in ((new, h), (calibration.exact(new), calibration.transformed(h)))
    )
    assert sag(calibrated) < 0.5 * sag(plain)
    assert (calibrated.auc.mean_average_precision or 0) > (plain.auc.mean_average_precision or 0)


def sag(curve: BackfillingCurve) -> float:
    """By how much mAP falls below the straight line between the ends of a curve, at most."""
    values = [point.mean_average_precision or 0 for point in curve.points]
    chord = [(1 - share) * values[0] + share * values[-1] for share in curve.fractions]
    return max(line - value for line, value in zip(chord, values, strict=True))


def test_the_constant_lies_between_none_and_the_mean_squared_error_whatever_the_scale() -> None:
    new, h, _ = clusters()
    error = float((new - h).square().sum(1).mean())
    value = choose_calibration(new, h)["value"]
    assert 0.2 * error < value < 0.9 * error
    assert choose_calibration(1000 * new + 7, 1000 * h + 7)["value"] == pytest.approx(1e6 * value, rel=1e-3)


@pytest.mark.parametrize(("distance", "none"), [("l2", 0.0), ("cosine", 1.0)])
def test_a_perfect_transformation_is_left_alone(distance: str, none: float) -> None:
    new, _, _ = clusters()
    chosen = choose_calibration(new, new.clone(), distance)
    assert chosen["value"] == none
    assert chosen["agreement"] == 1


def test_the_same_seed_chooses_the_same() -> None:
    new, h, _ = clusters()
    assert choose_calibration(new, h, seed=3) == choose_calibration(new, h, seed=3)


@given(st.permutations(range(8)), st.permutations(range(8)))
def test_average_overlap_counts_what_both_lists_have_at_each_depth(one: list[int], other: list[int]) -> None:
    depths = [1, 2, 5]
    wanted = sum(len(set(one[:k]) & set(other[:k])) / k for k in depths) / len(depths)
    places = torch.tensor([[other.index(item) for item in range(8)]])
    assert float(average_overlap(torch.tensor([one[:5]]), places, depths)) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("distance", "value", "says"),
    [
        ("l2", -1.0, "0 or more"),
        ("l2", float("nan"), "0 or more"),
        ("cosine", 0.0, "above 0"),
        ("cosine", 1.1, "at most 1"),
    ],
)
def test_a_number_that_is_no_calibration_is_refused(distance: str, value: float, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Calibration(distance, value)


def test_too_few_pairs_are_refused() -> None:
    new, h, _ = clusters(90)
    with pytest.raises(UserError, match="100 pairs"):
        choose_calibration(new, h)
