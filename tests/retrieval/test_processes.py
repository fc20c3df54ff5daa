"""Two processes share the queries and get the figures of one, to the last bit."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from retrieval import BackfillingCurve, RetrievalMetrics, backfilling_curve, cutoffs, evaluate
from tests.retrieval.oracle import seeded
from utils.distributed import World


def run(world: World) -> tuple[RetrievalMetrics, dict[str, BackfillingCurve], list[int]]:
    labels = torch.randint(9, (101,), generator=seeded(0))
    labels[7] = 1000  # no relevant item
    new, transformed = torch.randn(2, 101, 8, generator=seeded(0))
    cameras = torch.randint(3, (101,), generator=seeded(1))
    done: list[int] = []
    metrics = evaluate(
        new, new, labels, interval_level=0.9, per_query=True, per_class=True, world=world, progress=done.append
    )
    orders = {"order": torch.randperm(101, generator=seeded(0))}
    curves = {}
    for name, of_items in (("plain", None), ("cameras", cameras)):
        curves[name] = backfilling_curve(
            new,
            transformed,
            new,
            labels,
            orders=orders,
            cutoffs=cutoffs(101, 3),
            query_groups=torch.arange(101) % 3,
            query_cameras=of_items,
            gallery_cameras=of_items,
            world=world,
        )["order"]
    assert curves["plain"] != curves["cameras"]
    return metrics, curves, done


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(run(World(rank, 2)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    mp.spawn(process, args=(str(tmp_path),), nprocs=2)
    metrics, curves, done = run(World())
    assert done[-1] == 101
    for rank, share in enumerate((50, 51)):
        their_metrics, their_curves, their_done = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert their_metrics == metrics
        for theirs, ours in zip(their_metrics.per_query, metrics.per_query or (), strict=True):
            assert ours is not None
            assert torch.equal(theirs, ours)
        assert their_curves == curves
        assert their_curves["plain"].of_group(2) == curves["plain"].of_group(2)
        assert their_done[-1] == share
