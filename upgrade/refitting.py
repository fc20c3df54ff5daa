"""Refitting: the transformation once more, with the pairs that the batches brought; what it makes better is kept.

What is not re-embedded is then what the new transformation makes of its old embeddings, as if `transform` had had it
from the beginning and the batches had followed: embeddings, sigma, index, order, and what the journal has kept.
"""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

from data.paired_embeddings import PairedEmbeddings
from models.model_files import Description, build_model, save_model
from models.transformed import Transformation
from retrieval import choose_calibration, retrieval_quality, upgrade_quality
from trainers.transformation.calibration import with_calibration
from trainers.transformation.division import batch_of, fitting_data
from trainers.transformation.fitting import fit, outcome
from trainers.transformation.refinement import describe_with_refinement, material_of_files
from trainers.transformation.selection import choose, configs_of
from upgrade.batches import copy_rows
from upgrade.config import UpgradeConfig
from upgrade.gallery import JOURNAL, ORDER, RE_EMBEDDED, REFIT, TRANSFORMED, Gallery, remove
from upgrade.inputs import Inputs, calibration_value, present_transformation, reopen_inputs
from upgrade.journal import entries_after
from upgrade.manifest import Refit
from upgrade.order import write_order
from upgrade.refit_pairs import FirstFit, divided_pairs, read_first_fit
from upgrade.rows import RowFile, parts_of
from upgrade.served_index import INDEX, write_index
from upgrade.transactions import FILES, set_manifest, transaction
from upgrade.transform import CHUNKS, digest_of, transformed_chunks
from utils.config import to_dict
from utils.distributed import World
from utils.files import sha256_of, write_json, write_text
from utils.preemption import Preemption
from utils.provenance import timestamp, tool_versions

TRANSFORMATION = "transformation.pt"
MADE_OF = "made_of.json"  # in the folder of the training: what it trains on


def check_refit(config: UpgradeConfig, gallery: Gallery) -> tuple[Inputs, FirstFit]:
    """What a refit needs beside re-embedded items.

    Raises:
        UserError: the gallery's inputs are gone or have changed, or its transformation cannot be fitted again.
    """
    inputs = reopen_inputs(config, gallery.manifest)
    return inputs, read_first_fit(present_transformation(config, gallery.manifest))


def refit_gallery(config: UpgradeConfig, gallery: Gallery, world: World, preemption: Preemption) -> str:
    """Fit the transformation again and, if it has become better, transform what is not re-embedded anew.

    The gallery's lock is held. The change is committed, and is for `finish_pending` to finish. A training that was
    interrupted goes on where it was, as long as nothing else has changed the gallery.

    Returns:
        A line that says which of the two transformations is kept, and why.

    Raises:
        UnfitPairs, UserError: see `check_refit` and `divided_pairs`; or the disk is full. The gallery is as it was.
        Preempted: SIGTERM came during the training.
    """
    inputs, first = check_refit(config, gallery)
    pairs = divided_pairs(first, inputs, gallery, config.refit_pairs, world)
    data = fitting_data(pairs.training, pairs.held_out, pairs.config, world)
    material = material_of_files(data, pairs.config.refinement_params)
    if first.lost is not None:
        print(f"refit: {first.lost}; the pairs are those of the gallery alone", flush=True)
    work = _work_folder(gallery, config, first)
    own = replace(pairs.config, output=str(work / TRANSFORMATION), resume=True, export_formats=[])
    fitted = {method: fit(one, data, retrieval_quality, world, preemption) for method, one in configs_of(own).items()}
    best = choose(fitted)
    description = describe_with_refinement(best.transformation, best.arguments, material, upgrade_quality, world)
    description = with_calibration(description, data.held_out if own.calibrates else None, choose_calibration, world)
    refitted = cast(Transformation, build_model(description, where=REFIT))
    (measure, before), (_, after) = (_quality(one, pairs.compared, world) for one in (inputs.transformation, refitted))
    origin = "the sample" if first.lost is None and pairs.held_out is not None else "the gallery"
    compared = f"{measure} on {len(pairs.compared):,} pairs of {origin} that neither was fitted to"
    if not after > before:
        remove(gallery.folder / REFIT)
        return f"refit: the gallery is as it was: {compared}: {before:.2%} as it is, {after:.2%} refitted"
    record = {**first.origin, **outcome(data, fitted), "re_embedded": pairs.from_gallery}
    last = {"measure": measure, "before": round(before, 6), "after": round(after, 6)}
    _commit(config, gallery, replace(inputs, transformation=refitted), description, first, record, last, world)
    return (
        f"refit: with {pairs.from_gallery:,} re-embedded items among {len(pairs.training):,} pairs: {compared}: "
        f"{before:.2%} before, {after:.2%} now"
    )


def _work_folder(gallery: Gallery, config: UpgradeConfig, first: FirstFit) -> Path:
    """The folder of the training: with the checkpoint of an interrupted one, if that was on the same pairs."""
    folder = gallery.folder / REFIT
    made_of = {"gallery": asdict(gallery.manifest), "refit_pairs": config.refit_pairs, "lost": first.lost}
    text = json.dumps(made_of, indent=2) + "\n"
    if not (folder / MADE_OF).exists() or (folder / MADE_OF).read_text(encoding="utf-8") != text:
        remove(folder)
        write_text(folder / MADE_OF, text)
    return folder


@torch.no_grad()
def _quality(transformation: Transformation, compared: PairedEmbeddings, world: World) -> tuple[str, float]:
    """What `auto` chooses by, of the items that are compared: the measure and its value."""
    batch = batch_of(compared, world)
    h = transformation.to(world.device)(batch.old, batch.side_info).embedding.float()
    return retrieval_quality(h, batch.new, None if compared.labels is None else batch.labels)


def _commit(
    config: UpgradeConfig,
    gallery: Gallery,
    inputs: Inputs,
    description: Description,
    first: FirstFit,
    record: dict[str, Any],
    last: dict[str, Any],
    world: World,
) -> None:
    """Write everything that changes with the transformation, and commit it."""
    normalised = gallery.manifest.normalised
    manifest = replace(gallery.manifest, calibration=calibration_value(description, normalised))
    with transaction(gallery.folder) as prepared:
        files = prepared / FILES
        path = files / TRANSFORMATION
        save_model(path, description, config=to_dict(first.config), seed=first.config.seed, embeddings=record)
        hashes = _write_rows(files, gallery, inputs, world.device)
        write_json(files / CHUNKS, hashes)
        if (gallery.folder / ORDER).exists():
            sigma = RowFile.open(files / "sigma.npy") if manifest.has_sigma else None
            write_order(files / ORDER, gallery, gallery.rows("state"), seed=config.seed, sigma=sigma)
        if manifest.has_index:
            write_index(files / INDEX, replace(gallery, manifest=manifest), RowFile.open(files / "embeddings.npy"))
        number = 1 if manifest.refit is None else manifest.refit.number + 1
        refit = Refit(number, TRANSFORMATION, sha256_of(path))
        step = {"step": "refit", "at": timestamp(), **last}
        set_manifest(
            prepared,
            replace(manifest, refit=refit, transformed_sha256=digest_of(hashes), last=step, tool=tool_versions()),
        )


def _write_rows(files: Path, gallery: Gallery, inputs: Inputs, device: torch.device) -> list[str]:
    """Write embeddings.npy, sigma.npy and each batch's before.npy into `files` by chunks -> the chunks' hashes."""
    manifest = gallery.manifest
    present, states = gallery.rows("embeddings"), gallery.rows("state")
    embeddings = RowFile.create(files / "embeddings.npy", present.shape, present.dtype)
    sigma = RowFile.create(files / "sigma.npy", states.shape, np.float32) if manifest.has_sigma else None
    journal = []
    for entry in entries_after(gallery, 0):
        folder = files / JOURNAL / gallery.journal(entry.batch).name
        folder.mkdir(parents=True)
        journal.append((entry, copy_rows(entry.before, folder / "before.npy")))
    chunks = list(enumerate(parts_of(manifest.rows, manifest.chunk_rows)))
    hashes = []
    with tqdm(total=manifest.rows, desc="transforming", unit="row", unit_scale=True, leave=False) as bar:
        for _, start, vectors, log_variance, _ in transformed_chunks(
            inputs, chunks, "the refitted transformation", device
        ):
            stop = start + len(vectors)
            hashes.append(hashlib.sha256(vectors.tobytes()).hexdigest())
            for entry, before in journal:
                place, here = entry.within(start, stop)
                was_transformed = entry.before_state.take(place) == TRANSFORMED
                before.put(place[was_transformed], vectors[here[was_transformed]])
            re_embedded = states.read(start, stop) == RE_EMBEDDED
            vectors[re_embedded] = present.read(start, stop)[re_embedded]
            embeddings.write(start, vectors)
            if sigma is not None:
                assert log_variance is not None
                sigma.write(start, log_variance)
            bar.update(len(vectors))
    for _, before in journal:
        before.sync()
    return hashes
