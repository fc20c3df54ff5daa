"""The pairs of a refit: which are trained on, which decide, and their labels."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.paired_embeddings import PairedEmbeddings
from models.model_files import load_model
from tests.upgrade.conftest import BATCH, IDS, RECIPE, Case, N, make_refittable, prepared, without_sample
from trainers.config import OptimizerParams
from trainers.transformation.config import (
    FitConfig,
)
from upgrade.inputs import present_transformation, reopen_inputs
from upgrade.refit_pairs import RefitPairs, divided_pairs, read_first_fit
from utils.config import build, parse_yaml
from utils.distributed import World
from utils.files import read_torch


def pairs_of(case: Case, limit: int = 10**6, **keys: Any) -> RefitPairs:
    """The pairs of a refit, divided."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(case.folder)
        config, gallery = case.config("refit", **keys), case.gallery()
        first = read_first_fit(present_transformation(config, gallery.manifest))
        return divided_pairs(first, reopen_inputs(config, gallery.manifest), gallery, limit, World())


def old_rows(pairs: PairedEmbeddings | np.ndarray | None) -> set[bytes]:
    """The old embeddings of pairs, or given ones, to be looked for among others."""
    assert pairs is not None
    return {row.tobytes() for row in (pairs if isinstance(pairs, np.ndarray) else pairs.embeddings["old"].numpy())}


def places(case: Case, pairs: PairedEmbeddings) -> np.ndarray:
    """The rows of the gallery that pairs beyond the sample's 30 are of."""
    rows = {row.tobytes(): number for number, row in enumerate(case.old)}
    return np.array([rows[row.tobytes()] for row in pairs.embeddings["old"][30:].numpy()])


def test_what_was_held_out_is_held_out_and_never_trained_on(ready: Case) -> None:
    sample = np.load(ready.folder / "sample_old.npz")["embeddings"]
    first = pairs_of(ready)
    assert first.held_out is not None
    held = first.held_out.embeddings["old"].numpy()
    training = first.training.embeddings["old"].numpy()
    assert np.array_equal(np.unique(np.concatenate([held, training[:30]]), axis=0), np.unique(sample, axis=0))
    assert old_rows(training[30:]) <= old_rows(ready.old[:150])
    assert 120 < first.from_gallery == len(training) - 30 < 150
    # A gallery that holds the sample's items: they are told by their embeddings.
    ready.old[:30] = held.astype(np.float16)
    ready.write_old()
    shutil.rmtree(ready.folder / "upgraded")
    prepared(ready).run(*BATCH)
    seen = pairs_of(ready).training
    assert not old_rows(seen.embeddings["old"][30:].numpy()) & old_rows(ready.old[:30])
    # Without the sample, what is compared has been seen by no refit with it.
    without_sample(ready)
    alone = pairs_of(ready)
    compared = old_rows(alone.compared)
    assert len(compared) + len(alone.training) == 150
    assert not compared & (old_rows(seen) | old_rows(alone.training))
    ready.run("apply", "--batch", "second.npz")
    assert len(pairs_of(ready).training) > 180 > len(pairs_of(ready, limit=170).training) > 120


def test_the_new_embeddings_are_the_gallerys_and_the_old_ones_its_sources(ready: Case) -> None:
    pairs = pairs_of(ready).training
    assert np.array_equal(pairs.embeddings["new"][30:].numpy(), ready.new[places(ready, pairs)])


def test_side_information_goes_with_the_old_embeddings(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    side, sample = (rng.normal(size=(count, 3)).astype(np.float32) for count in (N, 60))
    np.savez(tmp_path / "sample_side.npz", embeddings=sample, ids=np.arange(60))
    order = rng.permutation(N)
    np.savez(tmp_path / "side.npz", embeddings=side[order], ids=IDS[order])
    case = prepared(make_refittable(tmp_path, "side_info=sample_side.npz"), "side_info=side.npz")
    case.run(*BATCH)
    pairs = pairs_of(case, side_info="side.npz").training
    assert np.array_equal(pairs.embeddings["side_info"][30:].numpy(), side[places(case, pairs)])
    case.run("refit", "side_info=side.npz")
    path = case.folder / "upgraded/transformation.pt"
    model = load_model(path if path.exists() else case.folder / "transformation.pt")
    with torch.no_grad():
        expected = model(torch.from_numpy(case.old), torch.from_numpy(side)).embedding.numpy()
    np.testing.assert_allclose(case.array("embeddings")[150:], expected[150:], rtol=2e-3, atol=2e-3)
    assert "side_info: None is not what was transformed" in case.refuse("refit")


@pytest.mark.parametrize(
    ("lose", "reason"),
    [
        (without_sample, "sample_new.npz is gone"),
        (lambda case: np.savez(case.folder / "sample_old.npz", embeddings=case.old[:60]), "sample_old.npz has changed"),
    ],
)
def test_without_the_sample_the_gallery_alone_is_used(ready: Case, lose: Callable[[Case], None], reason: str) -> None:
    ready.run("apply", "--batch", ready.write_batch("more.npz", np.arange(400)))
    lose(ready)
    output = ready.run("refit")
    assert f"refit: {reason}; the pairs are those of the gallery alone" in output
    assert "pairs of the gallery that neither was fitted to" in output
    ready.run("status", "--verify")


def test_too_few_pairs_are_refused_and_the_batch_stays(ready: Case) -> None:
    ready.run("rollback")
    assert "no item is re-embedded, so that there is nothing to refit with" in ready.refuse("refit")
    without_sample(ready)
    ready.write_batch("few.npz", np.arange(15))
    output = ready.run("apply", "--batch", "few.npz", "refit=True")
    assert "upgraded: 15 of 500 items are re-embedded" in output
    assert "not refitted: output: upgraded: 15 re-embedded items are too few to refit" in output
    assert "15 re-embedded items are too few to refit" in ready.refuse("refit")


def test_labels_that_a_refinement_needs_are_gone_with_the_sample(tmp_path: Path) -> None:
    recipe = ("labels=sample_labels.npy", "refinement_params={}")
    case = prepared(make_refittable(tmp_path, *recipe))
    case.run(*BATCH)
    case.run("refit")
    without_sample(case)
    message = "sample_new.npz is gone, and the gallery has no labels, which refinement_params needs"
    assert message in case.refuse("refit")
    assert f"not refitted: refit: {message}" in case.run("apply", "--batch", "second.npz", "refit=True")


def test_labels_are_the_gallerys_or_those_of_the_classifier(tmp_path: Path) -> None:
    names = np.array([30, 10, 20])  # of classes, in the files
    labels = names[np.arange(N) % 3]
    labels[:5] = 99  # a class that the sample does not have
    case = make_refittable(tmp_path, "labels=sample_labels.npy", labels=labels)
    prepared(case).run(*BATCH)
    pairs = pairs_of(case).training
    assert pairs.labels is not None
    assert pairs.classifier is not None
    rows = places(case, pairs)
    given = (pairs.embeddings["new"][30:].float() @ pairs.classifier.T).argmax(1).numpy()
    expected = np.where(rows < 5, given, np.searchsorted([10, 20, 30], labels[rows]))
    assert np.array_equal(pairs.labels[30:].numpy(), expected)
    assert "mAP on 30 pairs of the sample" in case.run("refit")
    # A gallery without labels
    (case.folder / "upgraded/labels.npy").unlink()
    pairs = pairs_of(case).training
    assert pairs.labels is not None
    assert np.array_equal(pairs.labels[30:].numpy(), given)
    without_sample(case)
    assert pairs_of(case).training.labels is None


# What train_transformation.py recorded when embedding files were a section of its config, and the same now
BEFORE = """
old_model_path: null
new_model_path: null
arch_params: {arch: MLP_BN_SIDE_PROJECTION_SIGMA, old_embedding_dim: null, new_embedding_dim: null,
              side_info_dim: null, inner_dim: 8, sigma_dim: 1}
optimizer_params: {algorithm: adam, lr: 0.01, weight_decay: 0.0, momentum: 0.9}
dataset_params: null
embeddings_params: {old: sample_old.npz, new: sample_new.npz, labels: sample_labels.npy, held_out: 0.5, patience: 4,
                    batch_size: 16, normalised: "on"}
epochs: 7
output_transformation_path: h.pt
objective_params: {discriminative_loss: {mu_disc: 2.0}, uncertainty_loss: {}}
refinement_params: {strengths: [0.5]}
mixup: 0.2
lr_policy_params: {algorithm: constant_lr, warmup_length: 2}
cache_embeddings: auto
seed: 3
"""
NOW = """
{old: sample_old.npz, new: sample_new.npz, labels: sample_labels.npy, held_out: 0.5, patience: 4, batch_size: 16,
 normalised: on, method: fastfill, inner_dim: 8, sigma_dim: 1, epochs: 7, output: h.pt, mixup: 0.2, seed: 3,
 optimizer_params: {algorithm: adam, lr: 0.01},
 objective_params: {discriminative_loss: {mu_disc: 2.0}, uncertainty_loss: {}},
 refinement_params: {strengths: [0.5]},
 lr_policy_params: {algorithm: constant_lr, warmup_length: 2}}
"""


def test_a_file_of_before_fit_embeddings_is_fitted_again_as_it_was(ready: Case) -> None:
    path = ready.folder / "transformation.pt"
    content = read_torch(path)
    recorded = content["provenance"]["config"]
    before = parse_yaml(BEFORE)
    found = []
    for config in (recorded, before, {**before, "optimizer_params": None, "epochs": None}):
        torch.save({**content, "provenance": {**content["provenance"], "config": config}}, path)
        found.append(read_first_fit(str(path)).config)
    assert found[0] == build(FitConfig, parse_yaml(RECIPE), source="recipe")
    assert found[1] == build(FitConfig, parse_yaml(NOW), source="now")
    assert (found[2].optimizer_params, found[2].epochs) == (OptimizerParams("adam", 5e-4, 2.0**-15), 80)
