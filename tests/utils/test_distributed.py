"""One process is the case N = 1 of the code for N."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import ENVIRONMENT, REPOSITORY, command_of
from tests.utils.processes import free_port, run_processes
from utils.distributed import LaterAny, World, process_group
from utils.errors import UserError, run_script


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


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}])
def test_alone_every_collective_gives_its_input_back(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_place(variables, monkeypatch)
    rows = torch.arange(6.0).view(3, 2)
    with process_group() as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        world.barrier()
        assert world.gather_rows(rows) is rows
        assert torch.equal(world.sum(rows.clone()), rows)
        assert world.any(True)
        assert not world.any(False)
        later = LaterAny(world)
        assert [later(flag) for flag in (False, True)] == [False, True]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE: the environment variable should be a whole number, got ''"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: the environment variable should be a whole number, got '0'"),
        ({"RANK": "-2"}, "RANK: the environment variable should be a whole number, got '-2'"),
        ({"LOCAL_RANK": "gpu0"}, "LOCAL_RANK: the environment variable should be a whole number, got 'gpu0'"),
        ({"WORLD_SIZE": "2"}, "RANK: is not set, but WORLD_SIZE is 2"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK: is 2, but WORLD_SIZE 2"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR: is not set, but WORLD_SIZE is 2"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a"}, "MASTER_PORT: is not set, but WORLD_SIZE is 2"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "b"},
            "MASTER_PORT: the environment variable should be a whole number, got 'b'",
        ),
    ],
)
def test_a_launcher_whose_variables_do_not_fit_together(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_place(variables, monkeypatch)

    def main() -> None:
        with process_group():
            raise AssertionError("it should not begin")

    with pytest.raises(SystemExit) as end:
        run_script(main)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: {message}" in line


def set_place(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def exchange(world: World) -> None:
    """Process r has r + 1 rows of r; in the second round process 0 has none."""
    mine = torch.full((world.rank + 1, 2), world.rank, dtype=torch.int64)
    world.barrier()
    assert world.gather_rows(mine).tolist() == [[0, 0], [1, 1], [1, 1]]
    assert world.gather_rows(torch.full((3 * world.rank,), 7.0)).tolist() == [7.0, 7.0, 7.0]
    assert world.sum(torch.tensor([world.rank + 1.0, 10.0])).tolist() == [3.0, 20.0]
    assert world.any(world.rank == 1)
    assert not world.any(False)
    later = LaterAny(world)
    assert [later(step == 2 and world.rank == 1) for step in range(5)] == [False, False, False, True, True]


def test_two_processes_exchange_unequal_rows() -> None:
    run_processes(exchange, 2)


SCRIPT = """
import os, time, torch
from utils.distributed import process_group
from utils.errors import UserError, run_script
from utils.preemption import Preempted

def main():
    with process_group() as world:
        world.barrier()
        if world.rank == int(os.environ["CULPRIT"]):
            raise {error}
        {waits}

run_script(main)
"""


def failing_script(folder: Path, culprit: int, error: str, waits: str) -> tuple[str, dict[str, str]]:
    """A script of which one of two processes ends while the other waits, and the environment to run it in."""
    script = folder / "script.py"
    script.write_text(SCRIPT.format(error=error, waits=waits))
    return str(script), os.environ | ENVIRONMENT | {"CULPRIT": str(culprit), "PYTHONPATH": str(REPOSITORY)}


@pytest.mark.parametrize(
    ("culprit", "error", "waits", "message", "code"),
    [
        (1, 'UserError("a.png: is broken")', "world.sum(torch.ones(1))", "[rank 1] error: a.png: is broken", 2),
        (0, 'ValueError("out of cheese")', "world.gather_rows(torch.ones(3, 2))", "ValueError: out of cheese", 1),
        (1, 'Preempted("stopped by SIGTERM")', "world.barrier()", "[rank 1] stopped by SIGTERM", 75),
    ],
)
def test_who_waits_for_a_process_that_has_ended_says_so_in_a_line(
    tmp_path: Path, culprit: int, error: str, waits: str, message: str, code: int
) -> None:
    """Without a launcher that would end it: as Slurm starts them."""
    script, environment = failing_script(tmp_path, culprit, error, waits)
    environment |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, script], env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    other = 1 - culprit
    assert [processes[rank].returncode for rank in (culprit, other)] == [code, 1], errors
    assert message in errors[culprit]
    assert f"[rank {other}] error: another process of this run ended; its message is above" in errors[other]
    assert "Traceback" not in errors[other]


def test_torchrun_ends_a_process_that_waits_for_nothing(tmp_path: Path) -> None:
    script, environment = failing_script(tmp_path, 1, 'UserError("a.png: is broken")', "time.sleep(600)")
    done = subprocess.run(
        command_of(script, processes=2), env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "[rank 1] error: a.png: is broken" in done.stderr
    assert "ValueError" not in done.stderr
