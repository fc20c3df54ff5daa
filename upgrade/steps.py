"""The steps of upgrade_gallery.py: open what the config names, do one thing, say what was done."""

from pathlib import Path

from data.lengths import about_zeros
from upgrade.batches import apply_batch
from upgrade.config import UpgradeConfig
from upgrade.durable import local_folder
from upgrade.export import export
from upgrade.history import finish_removal, give_up, roll_back, status, verify
from upgrade.inputs import open_inputs, open_old
from upgrade.opening import open_table
from upgrade.planning import predict
from upgrade.plots import plot_plan
from upgrade.priorities import choose_order, write_priorities
from upgrade.pushing import cutover, push, store_of
from upgrade.transform import transform_gallery
from utils.distributed import process_group
from utils.errors import UserError
from utils.files import write_json


def transform(config: UpgradeConfig) -> None:
    """Old embeddings through the transformation; again, where it or they have changed."""
    with process_group() as world:
        table, done = transform_gallery(config, world.device)
    print(f"{config.output}: {done}")
    last = table.last_step()
    if "zero_rows" in last:
        print(about_zeros(table.state.source, last["zero_rows"], last["first_zero_row"]))


def plan(config: UpgradeConfig) -> None:
    """The order of the re-embedding, and what it will bring."""
    table = open_table(config.output)
    chosen = choose_order(config, table)
    predicted = None if config.plan_params.new is None else predict(config, table, chosen)
    table, counts = write_priorities(table, chosen, config.seed)
    left = counts.rows - counts.re_embedded
    print(
        f"{config.output}: {left:,} items have a priority, by {chosen.name}; `export --next FILE.npy` writes their ids"
    )
    if predicted is not None:
        own = f"{Path(config.output).name}.plan"
        beside = local_folder(config.output)
        results = Path(config.plan_params.output or (beside.with_name(own) if beside is not None else own))
        write_json(results / "plan.json", predicted.to_json())
        plot_plan(predicted, results / "plan.png")
        print(f"predicted on {predicted.pairs:,} pairs, {predicted.metric}: {results}/plan.json, plan.png")
        print(predicted.sentence)


def apply(config: UpgradeConfig) -> None:
    """New embeddings into the gallery."""
    if config.batch is None:
        raise UserError("batch: is missing; name the new embeddings: apply --batch FILE")
    applied = apply_batch(open_table(config.output), config.batch, insist=config.insist)
    if not applied.items:  # a filter that found nothing new is no mistake: exit code 0
        print(f"{config.batch}: holds no item; the gallery is as it was")
        return
    if not applied.changed:
        print(f"{config.batch}: all of its {applied.items:,} items are in the gallery already")
    else:
        print(f"{config.batch}: {applied.items:,} items, {applied.newly:,} of them re-embedded for the first time")
    if applied.zero is not None:
        print(applied.zero)
    print(f"{config.output}: {applied.counts.re_embedded:,} of {applied.counts.rows:,} items are re-embedded")


def show(config: UpgradeConfig) -> None:
    """What is old, transformed and re-embedded."""
    print(status(config.output))
    if config.verify:
        with process_group() as world:
            table = open_table(config.output)
            inputs = open_inputs(config, world.device)
            if inputs.state.made_by != table.state.made_by:
                raise UserError(
                    f"transformation_path: {config.transformation_path} is not what the gallery was made with"
                    + (", or `earlier`, or the gallery's own is another" if inputs.state.earlier else "")
                )
            drift = verify(table, inputs, config.chunk_rows, world.device)
        print(f"  every row is what transform or a batch made of it; of {inputs.old.name}: {drift}")


def rollback(config: UpgradeConfig) -> None:
    """Back to an earlier state of the gallery, or to the old one."""
    target, folder = config.to or "transformed", local_folder(config.output)
    if target == "old" and folder is not None and finish_removal(folder):
        print(f"{config.output}: removed")
        return
    table = open_table(config.output, unfinished=target == "old")
    if target == "old":
        old = open_old(config)
        if table.state.stage != "ready":
            raise UserError(
                f"output: {config.output} is not fully transformed; nothing serves from it, delete it yourself"
            )
        drift = give_up(table, old, config.chunk_rows)
        print(f"{config.output}: removed; all {drift.unchanged:,} rows of {old.name} are as they were")
        return
    table, name = roll_back(table, target)
    counts = table.counts()
    print(f"{config.output}: is what it was as {name}: {counts.re_embedded:,} of {counts.rows:,} items are re-embedded")


def write(config: UpgradeConfig) -> None:
    """The gallery in other forms, pairs, and what to re-embed next."""
    for line in export(open_table(config.output), config):
        print(line)


def push_rows(config: UpgradeConfig) -> None:
    """What differs, to the store of the old vectors."""
    with process_group() as world:
        for line in push(config, store_of(config), world.device):
            print(line)


def switch(config: UpgradeConfig) -> None:
    """The store, to the new vectors or back."""
    print(cutover(config, store_of(config)))


STEPS = {
    "transform": transform,
    "plan": plan,
    "apply": apply,
    "status": show,
    "rollback": rollback,
    "push": push_rows,
    "cutover": switch,
    "export": write,
}
