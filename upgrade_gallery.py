"""Upgrade a gallery of old embeddings to a new model: transform it, then re-embed a part at a time.

    python upgrade_gallery.py transform --config upgrade.yaml [key=value ...]    # also by torchrun, on N processes
    python upgrade_gallery.py plan      --config upgrade.yaml                    # the order, and what it will cost
    python upgrade_gallery.py apply     --config upgrade.yaml --batch FILE       # new embeddings with their ids
    python upgrade_gallery.py refit     --config upgrade.yaml                    # better, with the items of the batches
    python upgrade_gallery.py status    --config upgrade.yaml [--verify]
    python upgrade_gallery.py rollback  --config upgrade.yaml [--to transformed | BATCHES | old]

docs/upgrade_your_gallery.md tells the whole story.
"""

import argparse
from pathlib import Path

from data.lengths import about_zeros
from upgrade.batches import apply_batch
from upgrade.config import UpgradeConfig
from upgrade.gallery import ORDER, PENDING, Gallery, locked
from upgrade.manifest import read_manifest
from upgrade.order import write_order
from upgrade.planning import predict
from upgrade.plots import plot_plan
from upgrade.refit_pairs import UnfitPairs
from upgrade.refitting import check_refit, refit_gallery
from upgrade.rollback import finish_removal, give_up, roll_back
from upgrade.status import status, verify
from upgrade.transactions import finish_pending
from upgrade.transform import transform_gallery
from utils.config import load_config
from utils.distributed import process_group
from utils.errors import UserError, run_script
from utils.files import write_json
from utils.preemption import Preemption


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=list(STEPS), help="what to do")
    parser.add_argument("--batch", metavar="FILE", help="apply: new embeddings with their ids")
    parser.add_argument("--to", dest="rollback_to", help="rollback: transformed, a number of batches, or old")
    parser.add_argument("--verify", action="store_const", const=True, help="status: check every byte")
    config = load_config(UpgradeConfig, parser)
    STEPS[config.step](config)


def transform(config: UpgradeConfig) -> None:
    """Old embeddings through the transformation."""
    with process_group() as world:
        manifest = transform_gallery(config, world)
        if world.is_main:
            print(
                f"{config.output}: {manifest.rows:,} items of {manifest.origin.model} are in {manifest.model}'s space"
            )
            if manifest.last.get("zero_rows"):
                print(about_zeros(config.gallery, manifest.last["zero_rows"], manifest.last["first_zero_row"]))


def plan(config: UpgradeConfig) -> None:
    """The order of the re-embedding, and what it will bring."""
    folder = existing(config)
    with locked(folder):
        finish_pending(folder)
        gallery = Gallery.open(folder)
        predicted = None if config.plan_params.old is None else predict(config, gallery)
        temporary = folder / f".{ORDER}.tmp"
        write_order(temporary, gallery, gallery.rows("state"), seed=config.seed)
        temporary.replace(folder / ORDER)
        print(f"order: {folder / ORDER}")
        if predicted is not None:
            results = folder / "plan"
            write_json(results / "plan.json", predicted.to_json())
            plot_plan(predicted, results / "plan.png")
            print(f"predicted on {predicted.pairs:,} pairs, {predicted.metric}: {results}/plan.json, plan.png")
            print(predicted.sentence)


def apply(config: UpgradeConfig) -> None:
    """New embeddings into the gallery."""
    if config.batch is None:
        raise UserError("batch: is missing; name the new embeddings: apply --batch FILE")
    folder = existing(config)
    with locked(folder):
        finish_pending(folder)
        gallery = Gallery.open(folder)
        if config.refit:
            check_refit(config, gallery)  # before the batch: a step that is refused changes nothing
        applied = apply_batch(gallery, config.batch)
        if not applied.items:  # a filter that found nothing new is no mistake: exit code 0
            print(f"{config.batch}: holds no item; the gallery is as it was")
            return
        finish_pending(folder)
        manifest = read_manifest(folder, "output")
        if not applied.changed:
            print(f"{config.batch}: all of its {applied.items:,} items are in the gallery already")
        else:
            print(f"{config.batch}: {applied.items:,} items, {applied.newly:,} of them re-embedded for the first time")
        if applied.zero is not None:
            print(applied.zero)
        print(f"{folder}: {manifest.re_embedded:,} of {manifest.rows:,} items are re-embedded", flush=True)
        if config.refit and (applied.changed or manifest.last["step"] != "refit"):  # a refit may have been interrupted
            try:
                refit_now(config, folder)
            except UnfitPairs as error:
                print(f"not refitted: {error}")


def refit(config: UpgradeConfig) -> None:
    """A transformation that is fitted to the re-embedded items too, if it is better; and what it makes of the rest."""
    folder = existing(config)
    with locked(folder):
        finish_pending(folder)
        refit_now(config, folder)


def refit_now(config: UpgradeConfig, folder: Path) -> None:
    """Refit the gallery in `folder`, whose lock is held."""
    with Preemption() as preemption, process_group() as world:
        outcome = refit_gallery(config, Gallery.open(folder), world, preemption)
    finish_pending(folder)
    print(outcome)


def show(config: UpgradeConfig) -> None:
    """What is old, transformed and re-embedded."""
    folder = existing(config)
    print(status(folder))
    if config.verify:
        if (folder / PENDING).exists():
            with locked(folder):
                finish_pending(folder)
        with locked(folder, reading=True):
            verify(Gallery.open(folder))
        print("  every row is what transform or a batch made of it")


def rollback(config: UpgradeConfig) -> None:
    """Back to an earlier state of the gallery, or to the old one."""
    target = config.rollback_to
    if target == "old" and finish_removal(Path(config.output)):
        print(f"{config.output}: removed")
        return
    folder = existing(config)
    with locked(folder):
        finish_pending(folder)
        if target == "old":
            origin = read_manifest(folder, "output").origin
            give_up(folder, config.gallery, config.ids, origin.sample_sha256)
            print(f"{folder}: removed; the old gallery {config.gallery} is as it was")
            return
        if target != "transformed" and not target.isdecimal():
            raise UserError(f"rollback_to: should be transformed, a number of batches, or old, got {target!r}")
        gallery = Gallery.open(folder)
        changed = roll_back(gallery, 0 if target == "transformed" else int(target), seed=config.seed)
        finish_pending(folder)
        batches = read_manifest(folder, "output").batches
    print(f"{folder}: {changed:,} items are what they were after {batches} batches")


def existing(config: UpgradeConfig) -> Path:
    """The folder of the gallery, which must be there."""
    read_manifest(Path(config.output), "output")
    return Path(config.output)


STEPS = {"transform": transform, "plan": plan, "apply": apply, "refit": refit, "status": show, "rollback": rollback}

if __name__ == "__main__":
    run_script(main)
