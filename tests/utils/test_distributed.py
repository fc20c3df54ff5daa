"""One process is the case N = 1 of the code for N."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.utils.processes import run_processes
from utils.distributed import World, process_group
from utils.errors import UserError


@settings(deadline=None)
@given(size=st.integers(1, 64), count=st.integers(0, 1000))
def test_shares_are_contiguous_cover_everything_and_differ_by_at_most_one(size: int, count: int) -> None:
    parts = [range(count)[World(rank, size).share(count)] for rank in range(size)]
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_batch_that_the_processes_cannot_divide() -> None:
    assert World(1, 4).local_batch(1024) == 256
    with pytest.raises(UserError, match=r"dataset_params\.batch_size: 1024 .* by 3 processes"):
        World(0, 3).local_batch(1024)


def test_alone_every_collective_gives_its_input_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    rows = torch.arange(6.0).view(3, 2)
    with process_group() as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        world.barrier()
        assert world.gather_rows(rows) is rows
        assert torch.equal(world.sum(rows.clone()), rows)


def exchange(world: World, folder: str) -> None:
    """Process r has r + 1 rows of r; in the second round process 0 has none."""
    mine = torch.full((world.rank + 1, 2), world.rank, dtype=torch.int64)
    late = torch.full((3 * world.rank,), 7.0)
    world.barrier()
    results = {
        "gathered": world.gather_rows(mine),
        "gathered_empty": world.gather_rows(late),
        "sum": world.sum(torch.tensor([world.rank + 1.0, 10.0])),
        "is_main": torch.tensor(world.is_main),
    }
    torch.save(results, Path(folder) / f"{world.rank}.pt")


def test_two_processes_exchange_unequal_rows(tmp_path: Path) -> None:
    run_processes(exchange, 2, str(tmp_path))
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        assert results["gathered"].tolist() == [[0, 0], [1, 1], [1, 1]]
        assert results["gathered_empty"].tolist() == [7.0, 7.0, 7.0]
        assert results["sum"].tolist() == [3.0, 20.0]
        assert results["is_main"].item() == (rank == 0)
