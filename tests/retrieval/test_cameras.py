"""The protocol of re-identification: a query's matches by its own camera are ignored, neither right nor wrong."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import backfilling_curve, cutoffs, evaluate, order_quality
from tests.retrieval.oracle import check_parts, check_queries, mean_figures, mixed_gallery, rank_slowly, seeded
from utils.errors import UserError


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n_q=st.integers(1, 14),
    n_g=st.integers(2, 30),
    classes=st.integers(1, 5),
    cameras=st.integers(1, 4),
    values=st.sampled_from([2, 1000]),
    shared=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_agrees_with_a_loop_that_deletes_them(
    n_q: int, n_g: int, classes: int, cameras: int, values: int, shared: bool, seed: int
) -> None:
    """Random lists with ties, items of no class, classes of one set alone, and queries that are in the gallery."""
    generator = seeded(seed)

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    query, transformed, new = (draw(0, values, n, 2).float() for n in (n_q, n_g, n_g))
    labels = draw(-1, classes, n_q)
    options: dict[str, Any] = {
        "gallery_labels": draw(-1, classes + 1, n_g),
        "query_ids": torch.arange(n_q),
        "gallery_ids": torch.randperm(n_q + n_g, generator=generator)[:n_g] + (0 if shared else n_q),
        "query_cameras": draw(0, cameras, n_q),
        "gallery_cameras": draw(0, cameras + 1, n_g),
    }
    labels[0] = options["gallery_labels"][0] = 0  # so that one query at least has a match by another camera
    options["query_cameras"][0], options["gallery_cameras"][0], options["gallery_ids"][0] = 0, 1, 10**6
    order = torch.randperm(n_g, generator=generator)
    depths: dict[str, Any] = {"recall_at": (1, 3), "precision_at": (2,)}
    points = cutoffs(n_g, 2)
    wanted: dict[str, Any] = {**options, **depths, "per_query": True, "per_class": True}
    (curve,) = backfilling_curve(query, transformed, new, labels, orders={"": order}, cutoffs=points, **wanted).values()
    for place, cutoff in enumerate(points):
        ranked = list(rank_slowly(query, mixed_gallery(transformed, new, order, cutoff), labels, **options))
        assert curve.points[place].to_json() == pytest.approx(mean_figures(ranked, **depths), abs=1e-6)
        assert (curve.num_queries, curve.num_skipped) == (len(ranked), n_q - len(ranked))
        check_queries(curve.per_query, place, ranked)
    first = evaluate(query, transformed, labels, **wanted)
    assert first.to_json() == pytest.approx(curve.points[0].to_json())
    check_parts(first.per_class, list(rank_slowly(query, transformed, labels, **options)), labels, depths)


def test_a_nearer_image_by_the_same_camera_takes_no_rank() -> None:
    """Identity 1 at camera 0: its own camera's image is nearest, then another person's, then camera 1's."""
    query, gallery = torch.zeros(1, 1), torch.tensor([[1.0], [2.0], [3.0]])
    labels, ids = torch.tensor([1, 2, 1]), torch.tensor([7, 8, 9])
    options: dict[str, Any] = {"gallery_labels": labels, "query_ids": torch.tensor([0]), "gallery_ids": ids}
    cameras: dict[str, Any] = {"query_cameras": torch.tensor([0]), "gallery_cameras": torch.tensor([0, 0, 1])}
    assert evaluate(query, gallery, labels[:1], **options).cmc[1] == 1
    by_others = evaluate(query, gallery, labels[:1], **options, **cameras)
    assert (by_others.cmc[1], by_others.mean_average_precision, by_others.num_gallery) == (0, 0.5, 3)


def test_a_camera_an_image_changes_nothing_and_orders_are_judged_by_the_same_protocol() -> None:
    new, transformed = torch.randn(2, 60, 8, generator=seeded(3))
    labels, order = torch.arange(60) % 6, {"order": torch.randperm(60, generator=seeded(4))}
    own = torch.arange(60)
    assert evaluate(new, new, labels, query_cameras=own, gallery_cameras=own) == evaluate(new, new, labels)
    plain = order_quality(transformed, new, labels, order)["order"]
    assert order_quality(transformed, new, labels, order, cameras=own)["order"] == plain
    two = order_quality(transformed, new, labels, order, cameras=own % 5 // 3)["order"]
    ranked = rank_slowly(transformed, new, labels, query_cameras=own % 5 // 3, gallery_cameras=own % 5 // 3)
    assert two["average_precision"].random == pytest.approx(1 - mean_figures(ranked)["map"])
    assert two["alignment_error"] == plain["alignment_error"]


def test_cameras_that_do_not_fit() -> None:
    embeddings, labels, cameras = torch.eye(4), torch.tensor([0, 0, 1, 1]), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(UserError, match="those of the queries are given, and not those of the gallery; give both"):
        evaluate(embeddings, embeddings, labels, query_cameras=cameras)
    with pytest.raises(UserError, match="those of the gallery are given, and not those of the queries"):
        evaluate(embeddings, embeddings, labels, gallery_cameras=cameras)
    with pytest.raises(UserError, match=r"gallery_cameras: should be \(4,\), one an embedding, got \(3,\)"):
        evaluate(embeddings, embeddings, labels, query_cameras=cameras, gallery_cameras=cameras[:3])
    with pytest.raises(UserError, match="none of the 4 queries has an item of its label by another camera in the gall"):
        evaluate(embeddings, embeddings, labels, query_cameras=cameras, gallery_cameras=cameras)
