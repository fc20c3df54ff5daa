"""What decides whether a gallery's embeddings have length 1; zero vectors; what float16 or the memory cannot hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.model_files import describe_refined, describe_transformation, save_model
from models.refinement import RefinedTransformation
from models.transformations import build_transformation
from tests.upgrade.conftest import NEW_DIM, OLD_DIM, Case, N, make_case
from upgrade.inputs import open_inputs
from upgrade.spaces import have_unit_length
from upgrade.transform import transform_gallery
from utils.errors import UserError


def is_normalised(case: Case) -> bool:
    """Whether the gallery is of length 1, as its manifest says and its rows are."""
    lengths = np.linalg.norm(case.array("embedding").astype(np.float32), axis=1)
    stated = case.table().state.normalised
    assert stated == (np.abs(lengths - 1) < 1e-3).all()
    return stated


def write_ridge(
    path: Path, scale: float | None, *, refined: bool = False, dim: int = NEW_DIM, **recorded: bool
) -> None:
    """A linear transformation, refined or not: the identity, about, times a scale; of random weights without one."""
    arguments: dict[str, Any] = {"arch": "ridge", "old_embedding_dim": OLD_DIM, "new_embedding_dim": dim}
    model = build_transformation(**arguments, side_info_dim=0)
    for tensor in model.state_dict().values():
        if scale is None:
            tensor.normal_(generator=torch.Generator().manual_seed(0))
        else:
            tensor.copy_(scale * torch.eye(*tensor.shape) if tensor.ndim == 2 else torch.zeros_like(tensor))
    described = describe_transformation(model, {**arguments, "side_info_dim": 0, **recorded})
    if refined:
        model = RefinedTransformation(model, num_classes=3, new_embedding_dim=NEW_DIM, strength=0.0)
        described = describe_refined(model, described, {})
    save_model(path, described, config={}, seed=0)


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("unit", [False, True])
def test_what_the_transformation_records_decides_and_else_the_user_whatever_the_old_embeddings_are(
    tmp_path: Path, unit: bool, refined: bool
) -> None:
    case = make_case(tmp_path / "case", unit=unit)
    for recorded in (True, False, None):
        stated = {} if recorded is None else {"normalised": recorded}
        write_ridge(case.folder / "transformation.pt", None, refined=refined, **stated)
        for said, asked in (("auto", bool(recorded)), ("on", True), ("off", False)):
            if recorded is not None and asked != recorded:
                error = case.refuse("transform", f"normalised={said}")
                assert f"normalised: {said} contradicts transformation_path: transformation.pt" in error
                continue
            case.run("transform", f"normalised={said}")
            assert is_normalised(case) == asked
            case.run("rollback", "--to", "old")


@pytest.mark.parametrize("row", [0, 300])
@pytest.mark.parametrize("unit", [False, True])
def test_a_zero_row_stays_zero_wherever_it_stands(tmp_path: Path, unit: bool, row: int) -> None:
    case = make_case(tmp_path / "case", unit=unit)
    assert "zero" not in case.run("transform")
    clean = case.array("embedding")
    case.run("rollback", "--to", "old")
    zero = np.array([row, row + 70])  # in two chunks
    case.old[zero] = 0
    case.write_old()
    for _ in range(2):  # a finished gallery says it again
        assert f"old.npz: 2 zero vectors, the first in row {row}; kept as zero\n" in case.run("transform")
    found = case.array("embedding")
    assert not found[zero].any()
    clean[zero] = 0
    assert np.array_equal(found, clean)
    case.run("status", "--verify")


@pytest.mark.parametrize("unit", [False, True])
def test_a_zero_row_of_a_batch_stays_zero(tmp_path: Path, unit: bool) -> None:
    case = make_case(tmp_path / "case", unit=unit)
    case.run("transform")
    case.new[[3, 5]] = 0
    output = case.run("apply", "--batch", case.write_batch("batch.npz", np.arange(2, 20)))
    assert "batch.npz: 2 zero vectors, the first in row 1; kept as zero\n" in output
    assert np.array_equal(case.array("embedding")[2:20], case.new[2:20])
    only = case.write_batch("zero.npz", np.arange(3, 6, 2))
    assert "zero.npz: 2 zero vectors" in case.run("apply", "--batch", only)


def test_zero_rows_do_not_hide_a_batch_of_another_space(tmp_path: Path) -> None:
    case, unit = make_case(tmp_path / "any"), make_case(tmp_path / "unit", unit=True)
    for one in (case, unit):
        one.run("transform")
    rows = np.arange(20)
    vectors = unit.new[rows].copy()
    vectors[[0, 7]] = 0
    error = case.refuse("apply", "--batch", case.write_batch("unit.npz", rows, vectors))
    assert "its embeddings have length 1, those of the gallery do not" in error
    vectors[9] = 2 * np.eye(NEW_DIM)[0]
    error = unit.refuse("apply", "--batch", unit.write_batch("long.npz", rows, vectors))
    assert "long.npz: row 9 has length 2, but the embeddings are of length 1" in error


def test_the_length_of_rows_is_that_of_those_that_have_one() -> None:
    unit = np.eye(4, dtype=np.float32)
    assert have_unit_length(unit)
    for zero in ([0], [1, 3], [0, 1, 2]):
        some = unit.copy()
        some[zero] = 0
        assert have_unit_length(some)
        assert not have_unit_length(2 * some)
    assert not have_unit_length(np.zeros((3, 4), np.float16))


def test_what_float16_cannot_hold_is_said_so(case: Case) -> None:
    case.old[:] = np.clip(case.old, -3, 3)
    case.old[333, 0] = 4
    case.write_old()
    write_ridge(case.folder / "transformation.pt", 2e4)
    done = case.refuse_midway("transform")
    assert "transformation.pt of old.npz: row 333 holds values beyond 65504, the largest of float16" in done
    assert "set dtype=float32" in done
    case.run("transform", "dtype=float32", "output=wide")
    np.testing.assert_allclose(case.array("embedding", "wide"), 2e4 * case.old[:, :NEW_DIM], rtol=1e-6)
    write_ridge(case.folder / "transformation.pt", np.inf)
    error = case.refuse_midway("transform", "output=nan")
    assert "transformation.pt of old.npz: row 0 holds NaN or infinity" in error
    assert "float16" not in error


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError("of the machine")]
)
def test_too_little_memory_is_not_taken_for_dimensions(
    case: Case, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    config = case.config("transform")
    for target, step in (
        ("torch.nn.Linear.forward", open_inputs),
        ("upgrade.computing.transform_rows", transform_gallery),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, fail)
            with pytest.raises(UserError, match=f"free some.*or lower chunk_rows.*{error}"):
                step(config, torch.device("cpu"))
    assert transform_gallery(config, torch.device("cpu"))[0].counts().rows == N
