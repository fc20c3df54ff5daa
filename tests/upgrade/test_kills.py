"""kill -9 at any moment of a step: nothing is lost, mixed or doubled, and a restart finishes."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.tiny import ENVIRONMENT, command_of
from tests.upgrade.conftest import NEW_DIM, OLD_DIM, Case, N, make_case, write_transformation
from tests.upgrade.forked_steps import ForkedSteps
from upgrade.columns import values
from upgrade.opening import open_table
from utils.errors import UserError

ROWS_OF = {"first.npz": np.arange(0, 200, 2), "second.npz": np.arange(100, 300), "third.npz": np.arange(250, 320, 3)}
STEPS: list[tuple[str, ...]] = [
    ("transform", "fragment_rows=128"),
    ("plan",),
    ("apply", "--batch", "first.npz"),
    ("apply", "--batch", "second.npz"),
    ("transform", "fragment_rows=128", "transformation_path=second.pt"),
    ("rollback", "--to", "1"),
    ("apply", "--batch", "third.npz"),
    ("rollback",),
]


@pytest.fixture(scope="module")
def steps() -> Iterator[ForkedSteps]:
    forked = ForkedSteps()
    yield forked
    forked.end()


def content(case: Case) -> pa.Table | None:
    """All rows, as a reader sees them; None where there are none yet."""
    try:
        return case.content()
    except UserError:
        return None


def with_batches(folder: Path) -> Case:
    case = make_case(folder)
    for name, rows in ROWS_OF.items():
        shift = np.float16(0.1 if name == "third.npz" else 0)  # other embeddings of some of the same items
        case.write_batch(name, rows, case.new[rows] + shift)
    write_transformation(folder / "second.pt", arch="fct")
    return case


def test_a_step_killed_at_any_event_is_all_or_nothing(
    tmp_path: Path, request: pytest.FixtureRequest, steps: ForkedSteps
) -> None:
    """Half of the events are drawn from the last ones, in which a commit is carried out."""
    kills = request.config.getoption("--kills") or 2
    whole, killed = (with_batches(tmp_path / name) for name in ("whole", "killed"))
    draw, done = random.Random(0), 0
    for step in STEPS:
        before = content(whole)
        _, events = steps.run(whole.folder, *step)
        after = content(whole)
        assert before != after
        for number in range(kills):
            moment = draw.randint(1, events) if number % 2 else events - draw.randint(0, min(400, events - 1))
            was_killed, _ = steps.run(killed.folder, *step, moment=moment)
            done += was_killed
            assert content(killed) in (before, after), (step, moment)
        steps.run(killed.folder, *step)
        assert content(killed) == after, step
        assert killed.tags().keys() == whole.tags().keys()
        assert killed.tags()[max(killed.tags(), key=lambda tag: killed.tags()[tag])] == killed.table().version
    killed.run("status", "--verify")
    assert done >= len(STEPS)
    print(f"{done} kills")


def test_many_kills(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The scripts as processes of their own on a larger gallery, killed at moments of the clock."""
    kills = request.config.getoption("--kills")
    if not kills:
        pytest.skip("a stress test: pytest tests/upgrade -k many_kills --kills 30")
    rng, draw, rows = np.random.default_rng(0), random.Random(0), 400_000
    case = with_batches(tmp_path)
    old = rng.normal(size=(rows, OLD_DIM)).astype(np.float16)
    np.savez(case.folder / "old.npz", embeddings=old, ids=rng.permutation(rows))
    case.run("transform", "output=replay")
    ids, transformed = values(case.content("replay")["id"]), values(case.content("replay")["embedding"])
    new = (transformed + 0.03 * rng.normal(size=(rows, NEW_DIM))).astype(np.float16)  # by rising ids
    of_batch = [rng.permutation(rows)[: rows // 2] for _ in range(2)]
    for number, chosen in enumerate(of_batch, 1):
        np.savez(case.folder / f"{number}.npz", embeddings=new[chosen], ids=ids[chosen])
    runs: list[tuple[str, ...]] = [
        ("transform", "chunk_rows=1000", "fragment_rows=50000"),
        ("plan",),
        ("apply", "--batch", "1.npz"),
        ("apply", "--batch", "2.npz"),
        ("rollback", "--to", "1"),
        ("apply", "--batch", "2.npz"),
    ]
    done = []
    for step in runs:
        arguments = [step[0], "--config", "upgrade.yaml", *step[1:]]
        for _ in range(-(-kills // len(runs))):
            seconds, began = draw.uniform(3, 8), time.monotonic()
            command = command_of("upgrade_gallery.py", *arguments)
            try:
                ended = subprocess.run(
                    command,
                    cwd=case.folder,
                    env=os.environ | ENVIRONMENT,
                    capture_output=True,
                    timeout=seconds,
                    check=False,
                )
                assert ended.returncode == 0, ended.stderr
                done.append(f"{step[0]} had ended after {time.monotonic() - began:.1f} s")
            except subprocess.TimeoutExpired:  # by which it has been killed
                done.append(f"{step[0]} after {seconds:.2f} s")
        case.run(*step)
    print(f"{len(done)} kills: {'; '.join(done)}", file=sys.stderr)
    found = open_table(case.uri).dataset.to_table().sort_by("id")
    assert np.array_equal(values(found["id"]), ids)
    re_embedded = np.isin(np.arange(rows), np.concatenate(of_batch))
    assert np.array_equal(values(found["batch"]) > 0, re_embedded)
    assert np.array_equal(values(found["embedding"])[re_embedded], new[re_embedded])
    np.testing.assert_allclose(values(found["embedding"])[~re_embedded], transformed[~re_embedded], atol=1e-2)
    assert rows > N
    case.run("rollback")
    case.run("status", "--verify")
