"""The keys of a suite's YAML file, their types, defaults and meanings, and what they may not contradict."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evaluation.config import BackfillingOrder
from utils.config import key, section, unknown_choice
from utils.paths import without_suffix

DATA_SCRIPT, EVAL_SCRIPT = "prepare_dataset.py", "eval.py"


@dataclass
class Stage:
    """`stages.NAME`: one run of one script. The scripts and their configs are found beside reproduce.py."""

    script: Literal[
        "prepare_dataset.py", "train_backbone.py", "train_transformation.py", "fit_embeddings.py", "eval.py"
    ] = key(doc="the script that this stage runs")
    config: str | None = key(None, doc="the script's config", path="any")
    overrides: dict[str, Any] = key({}, doc="config keys of this stage alone, in sections; they win over the suite's")
    arguments: list[Any] = key([], doc="prepare_dataset.py: its arguments, texts and numbers, but for --output")
    output: str | None = key(
        None,
        doc="prepare_dataset.py: the data root that it makes; where no stage reads it, the stage is left out",
        path="any",
    )
    once: bool = key(False, doc="with several seeds: run with the first of them alone, and serve all of them")

    def __post_init__(self) -> None:
        if self.script == DATA_SCRIPT:
            if self.output is None or self.config is not None or self.overrides:
                raise ValueError(f"script: {DATA_SCRIPT} takes `arguments` and `output`, no config and no overrides")
        elif self.config is None:
            raise ValueError(f"config: is missing ({self.script} needs one)")
        elif self.arguments or self.output is not None:
            raise ValueError(f"script: {self.script} takes `config` and `overrides`, no `arguments` and no `output`")


@dataclass
class Row:
    """A row of a table in report.md."""

    case: str = key(doc="query model / gallery model, with the method")
    stage: str | None = key(None, doc="the evaluation whose figures the row shows; none: a published row, not run here")
    side_info: bool | None = key(None, doc="whether the transformation sees side-information; left out: no question")
    order: BackfillingOrder | None = key(None, doc="backfilling order")
    old_old: str | None = key(None, doc="stage: old/old of the row's own models; the suite's if left out")
    new_new: str | None = key(None, doc="stage: new/new of the row's own models; the suite's if left out")
    published: list[float] | None = key(None, doc="the published CMC-1, CMC-5 and mAP, or their AUCs, in percent")
    curve: bool = key(
        True,
        doc="whether the plots of curves show it, and the report how good its order is; "
        "of more than four methods colours come twice",
    )


@dataclass
class Tables:
    """`tables`: the rows of report.md."""

    no_backfilling: list[Row] = key([], doc="retrieval before any item is backfilled")
    backfilling: list[Row] = key([], doc="area under the backfilling curve; every row names its order")


@dataclass
class SuiteConfig:
    """reproduce.py: stages in their order, and the tables that their results fill."""

    name: str = key(doc="the suite's name")
    title: str = key(doc="heading of the report")
    output_dir: str = key(doc="folder for the results of each seed, the report and its pictures", path="any")
    stages: dict[str, Stage] = key(doc="name -> run, in the order in which they run")
    old_old: str = key(doc="stage: old queries, old gallery; the figures before the upgrade")
    new_new: str = key(doc="stage: new queries, new gallery; the figures after full backfilling")
    examples: str | None = key(None, doc="stage: new queries, transformed gallery; retrieval_examples.png shows it")
    report: str | None = key(
        None, doc="the report, with its pictures beside it; report.md in output_dir if left out", path="any"
    )
    demo: str | None = key(
        None, doc="also write an animation of the upgrade that `examples` shows to this file (.gif)", path="any"
    )
    plot: Literal["curves", "areas"] = key("curves", doc="what backfilling.png shows: curves, or the areas under them")
    tables: Tables = section(Tables, doc="rows of report.md")
    notes: list[str] = key([], doc="what a reader of the tables must know, printed below them")
    overrides: dict[str, Any] = key({}, doc="config keys, in sections, for every stage whose config has them")
    seeds: list[int] | None = key(
        None, doc="repeat the stages for each seed, and report mean and standard deviation; left out: the configs' seed"
    )
    only: list[str] = key([], doc="run these stages alone, of every seed, and write no report")
    processes: int | None = key(
        None, doc="config key `processes` of every stage that has it; left out: as each says", minimum=1
    )

    def __post_init__(self) -> None:
        evaluations = [name for name, stage in self.stages.items() if stage.script == EVAL_SCRIPT]
        named = {"old_old": self.old_old, "new_new": self.new_new}
        if self.examples is not None:
            named["examples"] = self.examples
        for table, rows in vars(self.tables).items():
            for i, row in enumerate(rows):
                where = f"tables.{table}[{i}]"
                for name, stage in (("stage", row.stage), ("old_old", row.old_old), ("new_new", row.new_new)):
                    if stage is not None:
                        named[f"{where}.{name}"] = stage
                if (table == "backfilling") != (row.order is not None):
                    raise ValueError(f"{where}.order: every row with backfilling has one, and no other")
                if row.published is not None and len(row.published) != 3:
                    raise ValueError(f"{where}.published: should be three figures: CMC-1, CMC-5, mAP")
        for where, stage in named.items():
            if stage not in evaluations:
                raise ValueError(unknown_choice(where, stage, evaluations))
        if self.demo is not None and self.examples is None:
            raise ValueError("demo: needs `examples`, the stage that it shows")
        for name in self.only:
            if name not in self.stages:
                raise ValueError(unknown_choice("only", name, self.stages))
        if self.seeds is not None:
            self._check_seeds(self.seeds)

    def _check_seeds(self, seeds: list[int]) -> None:
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds: should be one or more different whole numbers from 0 on, got {seeds}")
        if "seed" in self.overrides:
            raise ValueError("seeds: contradicts overrides.seed; leave one of them out")
        for name, stage in self.stages.items():
            if len(seeds) > 1 and "seed" in stage.overrides and not stage.once:
                raise ValueError(f"stages.{name}.overrides.seed: contradicts seeds; mark the stage `once: true`")

    @property
    def report_path(self) -> Path:
        """The report."""
        return Path(self.output_dir, "report.md") if self.report is None else Path(self.report)

    def picture(self, name: str) -> Path:
        """Where a picture of the report goes: beside it, and named after it where its name is its own."""
        prefix = "" if self.report is None else f"{without_suffix(self.report, ('.md',)).name}_"
        return self.report_path.with_name(prefix + name)

    @property
    def stages_dir(self) -> Path:
        """Records of the stages and results of the evaluations."""
        return Path(self.output_dir) / "stages"

    def embeddings_dir(self, stage: str) -> Path:
        """Where an evaluation stage keeps its embeddings, which the pictures of retrieval show."""
        return Path(self.output_dir) / "embeddings" / stage
