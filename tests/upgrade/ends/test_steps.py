"""All steps of an upgrade on a real Postgres: at each, every row is what a plain replay has."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from models.model_files import load_model
from tests.upgrade.conftest import IDS, Case, make_case, write_transformation
from tests.upgrade.ends.conftest import DSN, Database
from upgrade.columns import values


def with_coordinate(embeddings: np.ndarray, value: float | None) -> np.ndarray:
    return embeddings if value is None else np.pad(embeddings, ((0, 0), (0, 1)), constant_values=value)


def run_all(
    case: Case,
    database: Database,
    ids: np.ndarray,
    batches: list[np.ndarray],
    constant: float | None,
    *more: str,
    rows: int,
) -> None:
    """Transform, push, batches, a rollback to half of them, cutover and undo.

    `constant` is of the calibration, `more` are arguments of apply; the store writes `rows` in a transaction, and is
    looked at after each of the first four batches and of the last.
    """
    store = (f"store={{kind: pgvector, dsn_env: {DSN}, table: items, transaction_rows: {rows}}}", "gallery=null")
    place = np.argsort(ids)
    inverse = np.argsort(place)

    def check(applied: int) -> None:
        wanted = with_coordinate(transformed, None if constant is None else constant**0.5).copy()
        for number, chosen in enumerate(batches[:applied], start=1):
            wanted[chosen] = with_coordinate(vectors(chosen, number), None if constant is None else 0)
        assert same(database.vectors("embedding_new"), dict(zip(ids.tolist(), wanted, strict=True)))

    def vectors(chosen: np.ndarray, number: int) -> np.ndarray:
        return (case.new[chosen] + np.float16(number / 64)).astype(np.float32)

    case.run("transform", *store)
    transformed = values(case.content()["embedding"]).astype(np.float32)[inverse]
    with torch.no_grad():
        plain = load_model(case.folder / "transformation.pt")(torch.from_numpy(case.old)).embedding.numpy()
    np.testing.assert_allclose(transformed, plain, rtol=5e-3, atol=5e-3)
    case.run("push", *store)
    check(0)
    for number, chosen in enumerate(batches, start=1):
        np.savez(case.folder / "batch.npz", embeddings=vectors(chosen, number).astype(np.float16), ids=ids[chosen])
        case.run("apply", *store, *more, "--batch", "batch.npz")
        case.run("push", *store)
        if number <= 4 or number == len(batches):
            check(number)
    half = len(batches) // 2
    case.run("rollback", *store, "--to", str(half))
    assert "rows are not pushed yet" in case.refuse("cutover", *store)
    case.run("push", *store)
    check(half)

    before = database.vectors("embedding_new")
    old = dict(zip(ids.tolist(), case.old, strict=True))
    case.run("cutover", *store)
    assert same(database.vectors("embedding"), before)
    assert same(database.vectors("embedding_old"), old)
    case.run("cutover", *store, "--undo")
    assert same(database.vectors("embedding"), old)
    check(half)


def same(found: dict[int, np.ndarray], expected: dict[int, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[item], expected[item]) for item in expected)


@pytest.mark.parametrize("constant", [None, 0.25])
def test_transform_push_batches_rollback_cutover_and_undo(
    database: Database, tmp_path: Path, constant: float | None
) -> None:
    case = make_case(tmp_path / "upgrade")
    if constant is not None:
        write_transformation(case.folder / "transformation.pt", calibration={"l2": constant})
    database.make_table(IDS.tolist(), case.old)
    batches = [np.arange(start, start + 60) for start in (0, 60, 40, 200)]  # the third re-embeds some once more
    run_all(case, database, IDS, batches, constant, rows=64)


def test_many_rows(database: Database, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The same with 100,000 rows of 128 dimensions and 50 batches of 2,000, some of them of the same items."""
    if not request.config.getoption("--kills"):
        pytest.skip("minutes: pytest tests/upgrade/ends/test_steps.py -k many_rows --kills 1")
    rng, rows, dim = np.random.default_rng(0), 100_000, 128
    made = make_case(tmp_path / "upgrade")
    options = {"old_embedding_dim": dim, "new_embedding_dim": dim, "side_info_dim": dim, "inner_dim": 64}
    write_transformation(made.folder / "transformation.pt", "fastfill", {"l2": 0.25}, **options)
    old, new = (rng.normal(size=(rows, dim)).astype(np.float32) for _ in range(2))
    case, ids = Case(made.folder, old, new.astype(np.float16)), rng.permutation(10 * rows)[:rows] - rows
    database.make_table(ids.tolist(), old)
    began = time.monotonic()
    run_all(case, database, ids, [rng.permutation(rows)[:2000] for _ in range(50)], 0.25, "--insist", rows=10_000)
    print(f"{time.monotonic() - began:.0f} s")
