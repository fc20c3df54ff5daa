"""refit: the gallery is what `transform` would have made of it by the better transformation, or what it was."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import same_bits, state_of
from tests.upgrade.conftest import BATCH, BATCHES, IDS, NEW_DIM, Case, N, fill_disk_at, make_refittable, prepared
from tests.upgrade.test_kills import run_forked
from upgrade.manifest import read_manifest
from upgrade.refitting import refit_gallery
from utils.distributed import World
from utils.errors import UserError
from utils.preemption import Preemption

FASTFILL = (
    *("method=fastfill", "inner_dim=8"),
    "objective_params={discriminative_loss: {name: InfoNCE}, uncertainty_loss: {}}",
    "epochs=3",
)


def journal(folder: Path) -> dict[str, bytes]:
    files = (path for path in (folder / "journal").rglob("*.npy"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_refit_is_a_transform_by_the_new_transformation_and_the_same_batches(ready: Case) -> None:
    ready.run("apply", "--batch", "second.npz")
    transformed = ready.array("embeddings")
    output = ready.run("refit")
    assert "on 30 pairs of the sample that neither was fitted to" in output
    assert not (ready.folder / "upgraded/refit").exists()
    assert (ready.array("embeddings")[220:] != transformed[220:]).any()

    shutil.copy(ready.folder / "upgraded/transformation.pt", ready.folder / "better.pt")
    shutil.move(ready.folder / "upgraded", ready.folder / "refitted")
    there = ("transformation_path=better.pt",)
    prepared(ready, *there)
    states = [ready.content()]
    for batch in BATCHES:
        ready.run("apply", "--batch", batch, *there)
        states.append(ready.content())
    ready.run("plan", *there)
    entries = journal(ready.folder / "upgraded")
    shutil.rmtree(ready.folder / "upgraded")
    shutil.move(ready.folder / "refitted", ready.folder / "upgraded")
    assert journal(ready.folder / "upgraded") == entries
    assert ready.content() == states[2]

    assert "1  kept; the transformation is transformation.pt" in ready.run("status", "--verify")
    ready.run("transform")  # it is the same upgrade still
    assert ready.content() == states[2]
    for target, batches in (("1", 1), ("transformed", 0)):
        ready.run("rollback", "--to", target)
        ready.run("status", "--verify")
        assert ready.content() == states[batches]
    ready.run("rollback", "--to", "old")
    assert not (ready.folder / "upgraded").exists()


def test_apply_refits_and_what_remains_is_in_the_order_of_the_new_sigma(ready: Case) -> None:
    before = ready.array("sigma")
    output = ready.run("apply", "--batch", "second.npz", "refit=True")
    assert "120 items, 70 of them re-embedded for the first time" in output
    assert "refit: with " in output
    sigma = ready.array("sigma")
    assert (sigma != before).any()
    assert np.array_equal(ready.array("order"), IDS[220 + np.argsort(-sigma[220:], kind="stable")])
    again = ready.content()
    assert "refit" not in ready.run("apply", "--batch", "second.npz", "refit=True")
    assert ready.content() == again


def test_steps_after_a_refit_use_its_transformation(ready: Case) -> None:
    ready.run("refit")
    (ready.folder / "transformation.pt").unlink()
    pairs = ("plan_params.old=sample_old.npz", "plan_params.new=sample_new.npz", "plan_params.k=3")
    ready.run("plan", *pairs)
    assert 0 < ready.json("plan/plan")["curves"]["sigma"]["values"][0] < 1
    ready.run("apply", "--batch", "second.npz")
    assert "refit: " in ready.run("refit")  # once more, from the transformation that is in the gallery
    path = ready.folder / "upgraded/transformation.pt"
    path.write_bytes(path.read_bytes() + b"x")
    for step in (("plan", *pairs), ("status", "--verify")):
        assert "transformation.pt is not the transformation of the last refit" in ready.refuse(*step)


def test_what_is_no_better_is_not_kept(ready: Case) -> None:
    rng = np.random.default_rng(5)
    noise = rng.normal(scale=30, size=(250, NEW_DIM)).astype(np.float16)
    ready.write_batch("noise.npz", np.arange(200, 450), noise)
    ready.run("apply", "--batch", "noise.npz")
    before = ready.files()
    output = ready.run("refit")
    assert "the gallery is as it was: recall@10 on 30 pairs of the sample that neither was fitted to: " in output
    assert ready.files() == before


def test_a_recipe_that_holds_nothing_out_is_compared_by_the_gallery(tmp_path: Path) -> None:
    """Without pairs that are held out fct has no sigma, and the order is random before and after."""
    recipe = ("held_out=0", "method=fct", "inner_dim=8", "epochs=20")
    case = prepared(make_refittable(tmp_path, *recipe))
    case.run("apply", "--batch", case.write_batch("many.npz", np.arange(300)))
    order = case.array("order")
    assert "pairs of the gallery that neither was fitted to" in case.run("refit")
    assert case.array("embeddings").shape == (N, NEW_DIM)
    assert np.array_equal(case.array("order"), order)
    assert not (case.folder / "upgraded/sigma.npy").exists()
    case.run("status", "--verify")


def test_what_cannot_be_refitted_is_refused_before_the_batch(upgraded: Case) -> None:
    batch = upgraded.write_batch("batch.npz", np.arange(50))
    for step in (("refit",), ("apply", "--batch", batch, "refit=True")):
        assert "transformation.pt was not fitted to embedding files" in upgraded.refuse(*step)
    np.savez(upgraded.folder / "other.npz", embeddings=upgraded.old + 1, ids=IDS)
    assert "gallery: other.npz is not what was transformed" in upgraded.refuse("refit", "gallery=other.npz")
    (upgraded.folder / "transformation.pt").write_bytes(b"other")
    assert "transformation.pt is not what the gallery was made with" in upgraded.refuse("refit")
    (upgraded.folder / "transformation.pt").unlink()
    assert "transformation_path: there is no model file transformation.pt" in upgraded.refuse("refit")


def test_a_refit_killed_at_any_moment_is_all_or_nothing(ready: Case) -> None:
    shutil.copytree(ready.folder, whole := ready.folder.parent / f"{ready.folder.name}-whole")
    before = ready.content()
    _, events = run_forked(Case(whole, ready.old, ready.new), "refit")
    after = Case(whole, ready.old, ready.new).content()
    assert before != after
    late = (150, 100, 70, 45, 30, 20, 12, 6, 2)
    for moment in (events // 4, events // 2, events * 3 // 4, *(events - count for count in late)):
        if ready.kept() == before:
            run_forked(ready, "refit", moment=moment)
            ready.run("status", "--verify")
            assert ready.kept() in (before, after), moment
            if ready.kept() == after:  # from the start for the next moment
                shutil.rmtree(ready.folder / "upgraded")
                prepared(ready).run(*BATCH)
    ready.run("refit")
    assert ready.content() == after
    ready.run("status", "--verify")
    assert not list((ready.folder / "upgraded").glob(".*"))
    assert same_bits(
        state_of(ready.folder / "upgraded/transformation.pt"), state_of(whole / "upgraded/transformation.pt")
    )


def test_an_interrupted_training_goes_on_but_not_with_other_pairs(tmp_path: Path) -> None:
    case = prepared(make_refittable(tmp_path, *FASTFILL))
    case.run(*BATCH)
    shutil.copytree(tmp_path, whole := tmp_path.parent / f"{tmp_path.name}-whole")
    _, events = run_forked(Case(whole, case.old, case.new), "refit")
    checkpoint = tmp_path / "upgraded/refit/transformation.checkpoint.pt"
    moments = iter(range(20, events, 20))

    def interrupt() -> None:
        while not checkpoint.exists():
            run_forked(case, "refit", moment=next(moments))

    interrupt()
    assert "a refit was interrupted" in case.run("status")
    assert "resuming after epoch" in case.run("refit")
    assert case.content() == Case(whole, case.old, case.new).content()
    assert not checkpoint.parent.exists()
    case.run("rollback")
    case.run(*BATCH)
    interrupt()
    case.run("apply", "--batch", "second.npz")
    assert "resuming" not in case.run("refit")
    assert not checkpoint.parent.exists()


@pytest.mark.parametrize("file", ["embeddings", "sigma", "order"])
def test_a_full_disk_leaves_the_gallery_as_it_was(ready: Case, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, entries = ready.content(), journal(ready.folder / "upgraded")
    fill_disk_at(file, monkeypatch)
    monkeypatch.chdir(ready.folder)
    with pytest.raises(UserError, match="no space left on the disk; the gallery is as it was"):
        refit_gallery(ready.config("refit"), ready.gallery(), World(), Preemption())
    assert (ready.content(), journal(ready.folder / "upgraded")) == (before, entries)
    assert read_manifest(ready.folder / "upgraded", "output").refit is None
