"""transform again: what was interrupted goes on, and what has changed is renewed, and nothing else."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.upgrade.conftest import IDS, Case, N, prepared, write_transformation
from upgrade.transform import transform_gallery
from utils.errors import UserError

CPU = torch.device("cpu")


def broken_at(row: int, monkeypatch: pytest.MonkeyPatch, rows: list[int]) -> None:
    """Let the transformation end at a row; the rows that it is applied to are added to a list."""
    from upgrade.computing import transform_rows

    def counted(module: Any, inputs: Any, state: Any, device: Any, where: str, first: int) -> Any:
        if first >= row:
            raise UserError("interrupted")
        rows.append(first)
        return transform_rows(module, inputs, state, device, where, first)

    monkeypatch.setattr("upgrade.computing.transform_rows", counted)


def test_an_interrupted_transform_goes_on_after_the_last_fragment(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.write_old(embeddings=np.append(case.old[:1] * 0, case.old[1:], axis=0))
    config = case.config("transform", fragment_rows=128)
    whole, _ = transform_gallery(case.config("transform", fragment_rows=128), CPU)
    wanted = case.content()
    case.run("rollback", "--to", "old")
    done: list[int] = []
    with monkeypatch.context() as patch:
        broken_at(320, patch, done)
        with pytest.raises(UserError, match="interrupted"):
            transform_gallery(config, CPU)
    assert done == [0, 64, 128, 192, 256]
    output = case.run("status")
    assert "transform is not finished (256 rows are done); run it again to go on" in output
    assert "is not fully transformed yet" in case.refuse("plan")
    error = case.refuse("transform", "new_model=vit")
    assert "another upgrade: new_model is 'vit', not 'resnet50-2024'; name a new folder" in error
    broken_at(10**9, monkeypatch, done := [])
    table, _ = transform_gallery(config, CPU)
    assert done == [256, 320, 384, 448]
    assert case.content() == wanted
    assert (table.last_step()["zero_rows"], table.last_step()["first_zero_row"]) == (1, 0)
    assert table.version > whole.version - 5
    assert not table.dataset.metadata


def test_another_transformation_renews_exactly_what_is_not_re_embedded(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(case)
    case.run("apply", "--batch", "first.npz")
    before = case.content()
    write_transformation(case.folder / "second.pt", arch="fct")
    second = {"transformation_path": str(case.folder / "second.pt"), "fragment_rows": 128}
    with monkeypatch.context() as patch:  # interrupted, nothing has changed, and other steps go on
        broken_at(320, patch, [])
        with pytest.raises(UserError, match="interrupted"):
            transform_gallery(case.config("transform", **second), CPU)
    assert case.content() == before
    case.run("apply", "--batch", "second.npz")  # so that what was done is of no use
    after = case.array("embedding")
    table, done = transform_gallery(case.config("transform", **second), CPU)
    assert "220 of them re-embedded as before (no row has changed)" in done
    fresh = Case(case.folder / "fresh", case.old, case.new)
    fresh.folder.mkdir()
    (case.folder / "second.pt").rename(fresh.folder / "transformation.pt")
    fresh.write_old()
    transform_gallery(fresh.config("transform"), CPU)
    kept = np.arange(N) < 220
    assert np.array_equal(case.array("embedding"), np.where(kept[:, None], after, fresh.array("embedding")))
    assert np.array_equal(case.array("batch") > 0, kept)
    assert case.content()["sigma"].null_count == N - 220
    assert set(case.tags()) == {"transformed", "batch-1", "batch-2", "transformed-2"}
    third = case.write_batch("third.npz", np.arange(220, 300))
    case.run("apply", "--batch", third)
    case.run("rollback", "--to", "transformed-2")
    case.run("rollback", "--to", "1")
    assert case.content() == before
    assert case.table().state.transformation.endswith("transformation.pt")
    assert table.state.generation == 2


def test_the_old_galleries_changes_are_taken_over(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(case)
    case.run("apply", "--batch", "first.npz")
    before = case.array("embedding")
    assert "500 items are in resnet50-2024's space already" in case.run("transform")
    old, ids = case.old.copy(), np.append(IDS[:-2], [10**6])
    old[[10, 300]] += 1
    case.write_old(embeddings=old[: N - 1], ids=ids)
    broken_at(10**9, monkeypatch, [])
    _, line = transform_gallery(case.config("transform"), CPU)
    assert f"1 added: 1000000; 2 changed: {IDS[10]}, {IDS[300]}; 2 deleted" in line
    content = case.content()
    rows = dict(zip(content["id"].to_pylist(), zip(content["batch"].to_pylist(), strict=True), strict=True))
    assert set(rows) == set(ids.tolist())
    changed = {int(IDS[10]), int(IDS[300]), 10**6}
    place = {item: row for row, item in enumerate(IDS.tolist())}
    for item, vector in zip(content["id"].to_pylist(), content["embedding"].to_pylist(), strict=True):
        if item not in changed:
            assert np.array_equal(np.array(vector, np.float16), before[place[item]])
    assert rows[int(IDS[10])] == (0,)  # its new embedding was of another item, in effect
    case.write_old(embeddings=np.append(case.old[:200], case.old[200:] + 2, axis=0))
    error = case.refuse("transform")
    assert "output: upgraded.lance is the upgrade of another gallery than gallery: old.npz: 199 rows are" in error


def test_output_is_no_place_of_others(case: Case) -> None:
    before = (case.folder / "old.npz").read_bytes()
    (case.folder / "old").mkdir()
    np.save(case.folder / "old/embeddings.npy", case.old)
    (case.folder / "link").symlink_to(case.folder / "elsewhere")
    for arguments, message in (
        (("output=old.npz",), "output: old.npz is a place of the old gallery old.npz"),
        (("gallery=old", "output=old"), "output: old is a place of the old gallery old"),
        (("gallery=old", "output=old/upgraded"), "is a place of the old gallery old"),
        (("output=link",), "output: link is a link or a file; name a new folder"),
        (("output=upgrade.yaml",), "output: upgrade.yaml is a link or a file"),
        (("output=upgrade.yaml/up",), "output: upgrade.yaml/up cannot be written (Not a directory)"),
    ):
        assert message in case.refuse("transform", *arguments)
    (case.folder / "held").mkdir()
    for name in ("lock", "manifest.json", "embeddings.npy"):
        (case.folder / "held" / name).write_bytes(before)
        assert "output: held holds other files; name a new folder" in case.refuse("transform", "output=held")
    assert (case.folder / "old.npz").read_bytes() == before
