"""A suite -> its stages, each resolved, and all of them checked, before the first one runs."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.config import DatasetParams
from suites.config import DATA_SCRIPT, EVAL_SCRIPT, Stage, SuiteConfig
from suites.overrides import check_overrides, flatten, nested, overrides_for
from suites.scripts import SCHEMAS
from utils.config import build, merge, read_config
from utils.config_files import paths
from utils.errors import UserError


@dataclass(frozen=True)
class PlannedStage:
    """A stage with everything known that its run depends on."""

    name: str
    seed: int | None  # of several, the one that it runs for; None where one run serves all
    script: str
    command: list[str]
    arguments: list[str]  # prepare_dataset.py's own
    config: Any  # resolved; None for prepare_dataset.py
    processes: int
    inputs: dict[str, str]  # config key -> file or folder
    outputs: list[str]
    stages_dir: Path

    @property
    def label(self) -> str:
        """The name that tells it from the same stage of another seed; its files bear it."""
        return self.name if self.seed is None else path_of_seed(self.name, self.seed)

    @property
    def record(self) -> Path:
        """Where the record of its last run is."""
        return self.stages_dir / f"{self.label}.record.json"

    @property
    def can_resume(self) -> bool:
        """Whether the script keeps checkpoints."""
        return hasattr(self.config, "resume")

    @property
    def dataset_params(self) -> DatasetParams | None:
        """The images that the script reads; None where it reads embedding files, or makes a data root."""
        return getattr(self.config, "dataset_params", None)


def plan(suite: SuiteConfig, root: Path) -> list[PlannedStage]:
    """Resolve and check all stages of a suite, seed by seed; `root` is the folder of the scripts and their configs.

    With several seeds, what a stage writes for one of them has a name of its own (`path_of_seed`), also where later
    stages read it. What does not depend on the seed, or is marked `once`, is planned for the first seed alone.

    Raises:
        UserError: a stage's config is missing or wrong, an override that no stage takes, a row whose order its stage
            does not evaluate, an input that is neither there nor made by an earlier stage, or a stage that should run
            once on what is made for each seed.
    """
    stages = resolve(suite, root)
    _check_orders(suite, {stage.name: stage.config for stage in stages})
    read = {_absolute(path) for stage in stages for path in stage.inputs.values()}
    stages = [stage for stage in stages if stage.script != DATA_SCRIPT or _absolute(stage.outputs[0]) in read]
    makers = _check_outputs(stages)
    if suite.only:
        stages = [stage for stage in stages if stage.name in suite.only]
    _check_inputs(stages, makers)
    return stages


def resolve(suite: SuiteConfig, root: Path) -> list[PlannedStage]:
    """All stages of a suite, seed by seed, whatever of their inputs is there."""
    taken: set[str] = set()
    stages: list[PlannedStage] = []
    for number, seed in enumerate(suite.seeds or [None]):
        renamed: dict[str, str] = {}  # what stages of this seed write: the configs' name -> its own
        planned = [_plan_stage(name, stage, suite, root, seed, renamed, taken) for name, stage in suite.stages.items()]
        stages += [stage for stage in planned if number == 0 or stage.seed is not None]
    check_overrides(suite, taken)
    return stages


def seeds_of(suite: SuiteConfig, stages: list[PlannedStage]) -> list[int]:
    """The seeds that the results are of."""
    return suite.seeds or [next(stage.config.seed for stage in stages if stage.name == suite.new_new)]


def path_of_seed(path: str, seed: int) -> str:
    """The name of a file that is made for each of several seeds.

    >>> path_of_seed("checkpoints/new.pt", 1)
    'checkpoints/new_seed_1.pt'
    """
    return str(Path(path).with_stem(f"{Path(path).stem}_seed_{seed}"))


def _plan_stage(
    name: str,
    stage: Stage,
    suite: SuiteConfig,
    root: Path,
    seed: int | None,
    renamed: dict[str, str],
    taken: set[str],
) -> PlannedStage:
    """Plan one stage; adds what it writes for `seed` alone to `renamed`, and its suite-wide overrides to `taken`."""
    script = root / stage.script
    if not script.is_file():
        raise UserError(f"suite {suite.name}: stages.{name}.script: there is no {script}")
    if stage.output is not None:  # prepare_dataset.py
        arguments = [str(argument) for argument in stage.arguments]
        command = [sys.executable, str(script), *arguments, "--output", stage.output]
        return PlannedStage(name, None, stage.script, command, arguments, None, 1, {}, [stage.output], suite.stages_dir)
    assert stage.config is not None
    source, schema = root / stage.config, SCHEMAS[stage.script]
    values = read_config(source)
    overrides = overrides_for(schema, suite.overrides, values)
    taken.update(key for key, _ in flatten(overrides))
    if suite.processes is not None:
        overrides = {"processes": suite.processes} | overrides
    overrides = merge(overrides, ({} if seed is None else {"seed": seed}) | stage.overrides)
    if stage.script == EVAL_SCRIPT:
        overrides["output"] = str(suite.stages_dir / f"{name}.json")
        if name in (suite.old_old, suite.new_new, suite.examples):
            kept = {"embeddings_output_dir": str(suite.embeddings_dir(name))}
            overrides = merge(overrides, {"eval_params": kept})
    where = f"{source} (stage {name})"
    config: Any = build(schema, merge(values, overrides), source=where)
    reads = [f"{key}: {path}" for key, path in paths(config, "input") if _absolute(path) in renamed]
    if stage.once and reads:
        raise UserError(f"suite {suite.name}: stages.{name}.once: {reads[0]} is made for each seed")
    if suite.seeds is None or len(suite.seeds) == 1 or stage.once or not (reads or _depends_on_seed(config)):
        seed = None
    if seed is not None:
        overrides = merge(overrides, _files_of_seed(config, seed, renamed))
        config = build(schema, merge(values, overrides), source=where)
    inputs = dict(paths(config, "input"))
    if (images := getattr(config, "dataset_params", None)) is not None:
        inputs["dataset_params.data_root"] = images.data_root
    command = [sys.executable, str(script), "--config", str(source)]
    command += [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in flatten(overrides)]
    outputs = [path for _, path in paths(config, "output")]
    # As many as it is said to have; not those that `auto` finds, which are this machine's.
    processes = config.processes if isinstance(config.processes, int) else 1
    return PlannedStage(name, seed, stage.script, command, [], config, processes, inputs, outputs, suite.stages_dir)


def _files_of_seed(config: Any, seed: int, renamed: dict[str, str]) -> dict[str, Any]:
    """Overrides by which a stage writes files of its seed, added to `renamed`, and reads those of earlier stages."""
    files = [*paths(config, "input"), *paths(config, "output")]
    renamed.update((_absolute(path), path_of_seed(path, seed)) for _, path in paths(config, "output"))
    overrides: dict[str, Any] = {}
    for key, path in files:
        if _absolute(path) in renamed:
            overrides = merge(overrides, nested(key, renamed[_absolute(path)]))
    return overrides


def _depends_on_seed(config: Any) -> bool:
    """Whether another seed alone gives another result: not of an evaluation that draws nothing at random."""
    params = getattr(config, "eval_params", None)
    if params is None:
        return True
    return any(drawn is not None for drawn in (params.backfilling, params.interval_level, params.subset))


def _check_orders(suite: SuiteConfig, configs: dict[str, Any]) -> None:
    rows = [(f"tables.backfilling[{i}].order", row.stage, row.order) for i, row in enumerate(suite.tables.backfilling)]
    if suite.demo is not None:
        rows += [("demo", suite.examples, order) for order in ("sigma", "random")]
    for where, stage, order in rows:
        if stage is not None:
            params = configs[stage].eval_params
            if params.backfilling is None or order not in params.backfilling_list:
                raise UserError(f"suite {suite.name}: {where}: stage {stage} does not evaluate the order {order!r}")


def _check_outputs(stages: list[PlannedStage]) -> dict[str, str]:
    """The stage that makes each file, which must be one alone."""
    makers: dict[str, str] = {}
    for stage in stages:
        for path in stage.outputs:
            other = makers.setdefault(_absolute(path), stage.label)
            if other != stage.label:
                raise UserError(f"stage {stage.label}: writes {path}, which stage {other} writes too")
    return makers


def _check_inputs(stages: list[PlannedStage], makers: dict[str, str]) -> None:
    made: set[str] = set()
    for stage in stages:
        for name, path in stage.inputs.items():
            if _absolute(path) not in made and not Path(path).exists():
                maker = makers.get(_absolute(path))
                left_out = maker is not None and maker not in {other.label for other in stages}
                reason = (
                    f"stage {maker}, which `only` leaves out, makes it" if left_out else "no earlier stage makes it"
                )
                raise UserError(f"stage {stage.label}: {name}: there is no {path}, and {reason}")
        made.update(map(_absolute, stage.outputs))


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - Path.absolute keeps `..`
