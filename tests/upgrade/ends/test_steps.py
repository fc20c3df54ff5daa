"""All steps of an upgrade on a real Postgres: at each, every row is what a plain replay has."""

from pathlib import Path

import numpy as np
import pytest

from tests.upgrade.conftest import IDS, NEW_DIM, N, make_case, write_transformation
from tests.upgrade.ends.conftest import DSN, Database

STORE = (f"store={{kind: pgvector, dsn_env: {DSN}, table: items, transaction_rows: 64}}", "gallery=null")


@pytest.mark.parametrize("constant", [None, 0.25])  # of the calibration
def test_transform_push_batches_rollback_cutover_and_undo(
    database: Database, tmp_path: Path, constant: float | None
) -> None:
    case = make_case(tmp_path / "upgrade")
    if constant is not None:
        write_transformation(case.folder / "transformation.pt", calibration={"l2": constant})
    database.make_table(IDS.tolist(), case.old)
    batches = [np.arange(start, start + 60) for start in (0, 60, 40, 200)]  # the third re-embeds some once more

    def check(applied: int) -> None:
        expected = dict(zip(IDS.tolist(), with_coordinate(transformed, 0.5), strict=True))
        for number, rows in enumerate(batches[:applied], start=1):
            new = with_coordinate(vectors(rows, number), 0)
            expected.update(zip(IDS[rows].tolist(), new, strict=True))
        found = database.vectors("embedding_new")
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[item], expected[item]) for item in expected)

    def vectors(rows: np.ndarray, number: int) -> np.ndarray:
        return (case.new[rows] + np.float16(number / 64)).astype(np.float32)

    def with_coordinate(embeddings: np.ndarray, value: float) -> np.ndarray:
        return embeddings if constant is None else np.pad(embeddings, ((0, 0), (0, 1)), constant_values=value)

    case.run("transform", *STORE)
    transformed = case.array("embedding").astype(np.float32)
    assert transformed.shape == (N, NEW_DIM)
    case.run("push", *STORE)
    check(0)
    for number, rows in enumerate(batches, start=1):
        name = case.write_batch(f"{number}.npz", rows, vectors(rows, number).astype(np.float16))
        case.run("apply", *STORE, "--batch", name)
        case.run("push", *STORE)
        check(number)
    case.run("rollback", *STORE, "--to", "2")
    assert "rows are not pushed yet" in case.refuse("cutover", *STORE)
    case.run("push", *STORE)
    check(2)

    before = database.vectors("embedding_new")
    case.run("cutover", *STORE)
    assert same(database.vectors("embedding"), before)
    assert same(database.vectors("embedding_old"), dict(zip(IDS.tolist(), case.old, strict=True)))
    case.run("cutover", *STORE, "--undo")
    assert same(database.vectors("embedding"), dict(zip(IDS.tolist(), case.old, strict=True)))
    check(2)


def same(found: dict[int, np.ndarray], expected: dict[int, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[item], expected[item]) for item in expected)
