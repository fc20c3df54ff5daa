"""Reproduce a suite of experiments: data, models, transformations and evaluations -> the paper's tables and plots.

    python reproduce.py --config configs/suites/quickstart.yaml [overrides.seed=1 ...]
    python reproduce.py --config configs/suites/quickstart.yaml stages.backbone_old.overrides.epochs=2
    python reproduce.py --config configs/suites/cifar100_32px.yaml seeds=[0,1,2] [only=[backbone_old,backbone_new]]

Stages whose outputs are up to date are skipped; after an interruption the same command goes on. Paths in configs are
relative to the current directory, those of the scripts and configs themselves to this file's folder.
"""

import argparse
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from data.datasets import list_split
from data.embeddings import read_embeddings
from data.preparation import read_stamp
from suites.planning import PlannedStage, plan
from suites.plots import plot_backfilling, plot_retrieval_examples
from suites.report import report, tables
from suites.results import Results, collect_results
from suites.retrieval_examples import Embeddings, choose_examples
from suites.schema import SuiteConfig
from suites.stages import StageFailed, run_stage
from suites.summary import summarise
from utils.config import load_config
from utils.data_roots import PACKED, has_packed_copy
from utils.errors import UserError, run_script
from utils.files import write_json, write_text


def main() -> None:
    """Run the suite that the command line names."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's signal ends a suite as Ctrl-C does
    parser = argparse.ArgumentParser(description="Reproduce a suite of experiments.")
    suite = load_config(SuiteConfig, parser)
    stages = plan(suite, root=Path(__file__).resolve().parent)
    records = {}
    for number, stage in enumerate(stages, start=1):
        name = stage.name if stage.seed is None else f"{stage.name}, seed {stage.seed}"
        try:
            records[stage.label] = run_stage(stage, heading=f"[{number}/{len(stages)}] {name}")
        except StageFailed as failure:
            print(f"error: {failure}", file=sys.stderr, flush=True)
            sys.exit(failure.code)
    if suite.only:
        print(f"only {', '.join(suite.only)}: done; the report needs every stage, so none is written")
        return
    command = shlex.join(["python", "reproduce.py", *sys.argv[1:]])
    write_report(suite, stages, collect_results(suite, stages, records, command=command, data=read_stamps(stages)))


def write_report(suite: SuiteConfig, stages: list[PlannedStage], results: list[Results]) -> None:
    """Write the results of each seed, the plots and the report into the suite's folder, and print the tables."""
    folder, summary = Path(suite.output_dir), summarise(results)
    names = [f"seed_{result['seed']}.json" for result in results]
    for name, result in zip(names, results, strict=True):
        write_json(folder / name, result)
    plot_backfilling(summary, folder / "backfilling.png")
    of_first_seed = {stage.name: stage for stage in reversed(stages)}
    draw_examples(suite, of_first_seed, results[0], folder / "retrieval_examples.png")
    write_text(folder / "report.md", report(results))
    files = ["report.md", *names, "backfilling.png", "retrieval_examples.png"]
    print(f"\n{tables(summary)}\n\n{folder}: {', '.join(files)}")


def read_stamps(stages: list[PlannedStage]) -> dict[str, dict[str, Any] | None]:
    """Of each data root that stages read, what its stamp says of the images; None where it has none."""
    datasets = [stage.config.dataset_params for stage in stages if stage.config is not None]
    stamps: dict[str, dict[str, Any] | None] = {}
    for params in datasets:
        if params is not None and params.data_root not in stamps:
            packed = params.packed == "auto" and has_packed_copy(params.data_root)
            try:
                stamp = read_stamp(Path(params.data_root, PACKED if packed else ""))
            except UserError:
                stamps[params.data_root] = None
                continue
            source = stamp.get("source")  # a path, whose folders say nothing to others
            stamps[params.data_root] = {
                "dataset": stamp["dataset"],
                "source": source and Path(source).name,
                "split": stamp.get("split"),
                "images": stamp["images"],
                "packed": packed,
            }
    return stamps


def draw_examples(suite: SuiteConfig, stages: dict[str, PlannedStage], results: Results, path: Path) -> None:
    """Draw a few queries with what they find before, during and after the upgrade, where the stages had images."""
    params = stages[suite.examples].config.dataset_params
    if params is None:
        return
    folders = [
        Path(stages[name].config.eval_params.embeddings_output_dir)
        for name in (suite.old_old, suite.examples, suite.new_new)
    ]
    steps = [(kept_embeddings(folder / "query.npz"), kept_embeddings(folder / "gallery.npz")) for folder in folders]
    examples = choose_examples(steps, count=4, metric=results["evaluations"][suite.examples]["distance_metric"])
    listed = list_split(params, "validation", all_classes=True)

    def image_of(item: int) -> Image.Image:
        pixels = listed.pixels(item)
        if pixels is None:
            raise UserError(f"{listed.paths[item]}: has become unreadable")
        return Image.fromarray(pixels)

    plot_retrieval_examples(examples, image_of, path)


def kept_embeddings(path: Path) -> Embeddings:
    """The embeddings that an evaluation stage has kept."""
    items = read_embeddings(path, where="eval_params.embeddings_output_dir")
    assert items.labels is not None  # of images
    return Embeddings(items.embeddings.float().numpy(), items.ids.numpy(), items.labels.numpy())


if __name__ == "__main__":
    run_script(main)
