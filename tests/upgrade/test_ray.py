"""transform by Ray's tasks: the same table as by one process, whatever happens to a worker."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.tiny import REPOSITORY
from tests.upgrade.conftest import IDS, OLD_DIM, Case, N, prepared, write_transformation

RAY = ("engine=ray", "fragment_rows=4000", "chunk_rows=1000")
ROWS = 64_000


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """Two workers, of three cores that Ray takes this machine to have."""
    if not request.config.getoption("--kills"):
        pytest.skip("a minute on a busy machine: pytest tests/upgrade/test_ray.py --kills 1")
    ray = pytest.importorskip("ray")
    settings: dict[str, Any] = {"env_vars": {"PYTHONPATH": str(REPOSITORY)}}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=3, include_dashboard=False, runtime_env=settings, log_to_driver=False, logging_level="CRITICAL")
    yield
    ray.shutdown()


def working() -> list[int]:
    """The workers of this test's cluster that are at a task."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_text()
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            grandparent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if name.startswith("ray::_within") and grandparent == os.getpid():
            found.append(int(process.name))
    return found


def kill_one_of_two(data: Path, killed: list[int], ended: threading.Event) -> None:
    """Kill a worker that is at a task, once two parts have been written."""
    while not killed and not ended.is_set():
        workers = working()
        if len(workers) == 2 and len(list(data.glob("*.lance"))) > 1:
            os.kill(workers[0], signal.SIGKILL)
            killed.append(workers[0])
        time.sleep(0.01)


def test_a_worker_killed_in_the_middle_loses_nothing(case: Case, cluster: None) -> None:
    rng = np.random.default_rng(0)
    case.write_old(embeddings=rng.normal(size=(ROWS, OLD_DIM)).astype(np.float32), ids=rng.permutation(ROWS) - 50)
    case.run("transform", "output=alone", *RAY[1:])
    killed: list[int] = []
    ended = threading.Event()
    killer = threading.Thread(target=kill_one_of_two, args=(Path(case.uri) / "data", killed, ended))
    killer.start()
    case.run("transform", *RAY)
    ended.set()
    killer.join()
    assert len(killed) == 1
    by_ray, alone = case.table().dataset, case.table("alone").dataset
    assert by_ray.to_table() == alone.to_table()
    assert len(by_ray.get_fragments()) == ROWS // 4000
    assert not by_ray.metadata


def test_what_either_engine_has_begun_the_other_finishes_and_renews(case: Case, cluster: None) -> None:
    old = case.old.copy()
    old[300] = np.nan
    case.write_old(embeddings=old)
    parts = ("engine=ray", "fragment_rows=64")
    assert "gallery: old.npz: row 300 holds NaN or infinity" in case.refuse_midway("transform", *parts)
    assert "is not fully transformed yet" in case.refuse("plan")
    case.write_old()
    case.run("transform", "fragment_rows=128")
    case.run("transform", "output=alone", "fragment_rows=128")
    assert case.content() == case.content("alone")
    prepared(case)
    case.run("apply", "--batch", "first.npz")
    write_transformation(case.folder / "transformation.pt", arch="fct")
    assert "150 of them re-embedded as before" in case.run("transform", *parts)
    renewed = case.content()
    case.run("rollback", "--to", "1")
    case.run("transform")
    assert case.content() == renewed


class RayHere:
    """As much of Ray as is asked of it, within this process: tasks are done when they are waited for, in any order."""

    exceptions = SimpleNamespace(RayTaskError=KeyError, RayError=KeyError)

    def __init__(self) -> None:
        self.draw, self.most, self.done = random.Random(0), 0, 0

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0}

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **options: Any) -> Any:
        assert options == {"num_cpus": 1, "num_gpus": 0, "max_retries": 3}
        return lambda work: SimpleNamespace(remote=lambda *arguments: lambda: work(*arguments))

    def wait(self, running: list[Any]) -> tuple[list[Any], list[Any]]:
        self.most, self.done = max(self.most, len(running)), self.done + 1
        ended = self.draw.choice(running)
        return [ended], [task for task in running if task is not ended]

    def get(self, task: Any) -> Any:
        return task()

    def cancel(self, task: Any, force: bool) -> None:
        assert force


@pytest.fixture
def ray_here(monkeypatch: pytest.MonkeyPatch) -> RayHere:
    """Ray, for those who ask for it."""
    here = RayHere()
    monkeypatch.setattr("upgrade.ray_tasks.load_extra", lambda name, where: here)
    return here


def test_parts_come_in_any_order_and_those_that_are_there_are_not_made_again(case: Case, ray_here: RayHere) -> None:
    parts = ("engine=ray", "fragment_rows=100")  # two chunks, 128 rows
    case.run("transform", "output=alone", *parts[1:])
    old = case.old.copy()
    old[300] = np.nan
    case.write_old(embeddings=old)
    assert "row 300 holds NaN" in case.refuse_midway("transform", *parts)
    case.write_old()
    begun = ray_here.done
    assert begun > 1
    case.run("transform", *parts)
    assert ray_here.done == 4 + 1  # the one that failed was waited for twice
    assert ray_here.most == 3
    assert case.table().dataset.to_table() == case.table("alone").dataset.to_table()
    prepared(case)
    case.run("apply", "--batch", "first.npz")
    write_transformation(case.folder / "second.pt", arch="fct")
    second = ("transformation_path=second.pt", *parts)
    assert "150 of them re-embedded as before" in case.run("transform", *second)
    renewed = case.content()
    case.run("rollback", "--to", "1")
    case.run("transform", second[0])
    assert case.content() == renewed


@pytest.mark.parametrize("engine", ["process", "ray"])
@pytest.mark.parametrize("spoil", ["lost", "doubled"])
def test_rows_that_are_lost_or_others_on_the_way_are_not_taken_over(
    case: Case, ray_here: RayHere, engine: str, spoil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from upgrade.computing import transformed_batches

    def spoiled(*arguments: Any) -> Iterator[Any]:
        for batch in transformed_batches(*arguments):
            doubled = pa.array([*batch["id"].to_pylist()[:-1], batch["id"][0].as_py()])
            if batch["id"][0].as_py() != IDS[0]:
                yield batch
            elif spoil == "lost":
                yield batch.slice(1)
            else:
                yield batch.set_column(0, batch.schema.field("id"), doubled)

    with monkeypatch.context() as patch:
        patch.setattr("upgrade.parts.transformed_batches", spoiled)
        error = case.refuse_midway("transform", f"engine={engine}", "fragment_rows=128")
    assert "its 500 items are not those of the " in error
    assert "is not fully transformed yet" in case.refuse("plan")
    case.run("transform", f"engine={engine}")
    assert case.table().dataset.count_rows() == N


def test_ray_reads_files_alone(case: Case) -> None:
    error = case.refuse("transform", "engine=ray", "gallery=null", "store={kind: lance, uri: items.lance}")
    assert "engine: ray reads galleries in files" in error
