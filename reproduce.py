"""Reproduce a suite of experiments: data, models, transformations and evaluations -> the paper's tables and plots.

    python reproduce.py --config configs/suites/quickstart.yaml [overrides.seed=1 ...]
    python reproduce.py --config configs/suites/quickstart.yaml stages.backbone_old.overrides.epochs=2

Stages whose outputs are up to date are skipped; after an interruption the same command goes on. Paths in configs are
relative to the current directory, those of the scripts and configs themselves to this file's folder.
"""

import argparse
import shlex
import signal
import sys
from pathlib import Path

from PIL import Image

from data.datasets import list_split
from data.embeddings import read_embeddings
from suites.planning import PlannedStage, plan
from suites.plots import plot_backfilling, plot_retrieval_examples
from suites.report import Results, collect_results, report, tables
from suites.retrieval_examples import Embeddings, choose_examples
from suites.schema import SuiteConfig
from suites.stages import StageFailed, run_stage
from utils.config import load_config
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
        try:
            records[stage.name] = run_stage(stage, heading=f"[{number}/{len(stages)}] {stage.name}")
        except StageFailed as failure:
            print(f"error: {failure}", file=sys.stderr, flush=True)
            sys.exit(failure.code)
    results = collect_results(suite, stages, records, command=shlex.join(["python", "reproduce.py", *sys.argv[1:]]))
    folder = Path(suite.output_dir)
    write_json(folder / "results.json", results)
    plot_backfilling(results, folder / "backfilling.png")
    draw_examples(suite, {stage.name: stage for stage in stages}, results, folder / "retrieval_examples.png")
    write_text(folder / "report.md", report(results))
    print(f"\n{tables(results)}\n\n{folder}: report.md, results.json, backfilling.png, retrieval_examples.png")


def draw_examples(suite: SuiteConfig, stages: dict[str, PlannedStage], results: Results, path: Path) -> None:
    """Draw a few queries with what they find before, during and after the upgrade, where the stages had images."""
    params = stages[suite.examples].config.dataset_params
    if params is None:
        return
    folders = map(suite.embeddings_dir, (suite.old_old, suite.examples, suite.new_new))
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
