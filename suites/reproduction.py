"""A suite from its first stage to its report, tables and pictures."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from data.datasets import list_split
from data.embeddings import EmbeddingSet, read_embeddings
from data.folders import ImageList
from data.items import places
from data.preparation import read_stamp
from evaluation.config import EvalConfig
from suites.config import SuiteConfig
from suites.demo import Upgrade, write_demo
from suites.group_plots import plot_groups
from suites.planning import PlannedStage, plan
from suites.plots import plot_areas, plot_backfilling, plot_risk_coverage
from suites.report import report, tables
from suites.results import Results, collect_results
from suites.retrieval_examples import Embeddings, choose_examples, plot_retrieval_examples
from suites.stages import StageFailed, run_stage
from suites.summary import Summary, summarise
from utils.errors import UserError
from utils.files import write_json, write_text


def reproduce(suite: SuiteConfig, root: Path) -> None:
    """Run what is not up to date of a suite's stages, and write the report.

    Args:
        root: the folder of the scripts and their configs.
    """
    stages = plan(suite, root)
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
    """Write the results of each seed, the pictures and the report, and print the tables."""
    summary = summarise(results)
    files = [Path(suite.output_dir, f"seed_{result['seed']}.json") for result in results]
    for file, result in zip(files, results, strict=True):
        write_json(file, result)
    pictures = draw_pictures(suite, stages, results[0], summary)
    write_text(suite.report_path, report(results, {name: path.name for name, path in pictures.items()}))
    written = [suite.report_path, *pictures.values(), *files]
    print(f"\n{tables(summary)}\n\nwritten: {', '.join(map(str, written))}")


def draw_pictures(
    suite: SuiteConfig, stages: list[PlannedStage], results: Results, summary: Summary
) -> dict[str, Path]:
    """Draw what the report shows, and the animation; returns the pictures that there are, by the report's names.

    Queries and what they find are those of the first seed, whose `results` these are.
    """
    drawn: dict[str, Path] = {suite.plot: suite.picture("backfilling.png")}
    (plot_areas if suite.plot == "areas" else plot_backfilling)(summary, drawn[suite.plot])
    groups = suite.picture("groups.png")
    if plot_groups(summary, groups):
        drawn["groups"] = groups
    risk = suite.picture("risk_coverage.png")
    if plot_risk_coverage(summary, risk):
        drawn["risk_coverage"] = risk
    of_first_seed = {stage.name: stage.config for stage in reversed(stages)}
    if suite.examples is not None and (listed := images_of_examples(of_first_seed[suite.examples])) is not None:
        shown = (suite.old_old, suite.examples, suite.new_new)
        steps = [kept_embeddings(of_first_seed[name], listed) for name in shown]
        image_of = opened_by_place(listed)
        evaluation = results["evaluations"][suite.examples]
        examples = choose_examples(steps, count=4, metric=evaluation["distance_metric"])
        drawn["retrieval_examples"] = suite.picture("retrieval_examples.png")
        plot_retrieval_examples(examples, image_of, drawn["retrieval_examples"])
        if suite.demo is not None:
            write_demo(Upgrade(steps[0], steps[1]), evaluation, results["baselines"], image_of, Path(suite.demo))
    return drawn


def images_of_examples(config: EvalConfig) -> ImageList | None:
    """The images of an evaluation, to show examples of; None where queries and gallery are not one split of images."""
    params = config.eval_params
    if config.dataset_params is None or params.query_split != params.gallery_split:
        return None
    return list_split(config.dataset_params, params.query_split or "validation", all_classes=True)


def kept_embeddings(config: EvalConfig, listed: ImageList) -> tuple[Embeddings, Embeddings]:
    """The queries and the gallery that an evaluation stage has kept; their ids are the images' places in the list."""
    folder = Path(str(config.eval_params.embeddings_output_dir))
    query, gallery = (
        read_embeddings(folder / f"{name}.npz", where="eval_params.embeddings_output_dir")
        for name in ("query", "gallery")
    )
    return as_arrays(query, listed), as_arrays(gallery, listed)


def as_arrays(items: EmbeddingSet, listed: ImageList) -> Embeddings:
    """Embeddings of images for the pictures; a log variance of several dimensions counts by its mean."""
    assert items.labels is not None
    assert items.ids is not None
    ids = items.ids if listed.ids is None else places(items.ids, listed.ids)
    sigma = None if items.log_variance is None else items.log_variance.reshape(len(items), -1).mean(1).numpy()
    return Embeddings(items.embeddings.float().numpy(), ids, items.labels.numpy(), sigma)


def opened_by_place(listed: ImageList) -> Callable[[int], Image.Image]:
    """The images by their places in the list."""

    def image_of(item: int) -> Image.Image:
        pixels = listed.pixels(item)
        if pixels is None:
            raise UserError(f"{listed.paths[item]}: has become unreadable")
        return Image.fromarray(pixels)

    return image_of


def read_stamps(stages: list[PlannedStage]) -> dict[str, dict[str, Any] | None]:
    """Of each data root that stages read, what its stamp says of the images; None where it has none."""
    stamps: dict[str, dict[str, Any] | None] = {}
    for params in (stage.dataset_params for stage in stages):
        if params is not None and params.data_root not in stamps:
            try:
                stamp = read_stamp(Path(params.data_root))
            except UserError:
                stamps[params.data_root] = None
                continue
            source = stamp.get("source")  # a path, whose folders say nothing to others
            stamps[params.data_root] = {
                "dataset": stamp["dataset"],
                "source": source and Path(source).name,
                "split": stamp.get("split"),
                "images": stamp["images"],
                "held_out": params.held_out,
                "resized": (stamp.get("parameters") or {}).get("resize"),
            }
    return stamps
