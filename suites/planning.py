"""A suite -> its stages, each resolved, and all of them checked, before the first one runs."""

import difflib
import json
import os
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from suites.schema import DATA_SCRIPT, EVAL_SCRIPT, Stage, SuiteConfig
from utils.config import build, paths, read_yaml
from utils.errors import UserError
from utils.schema import SCHEMAS


@dataclass(frozen=True)
class PlannedStage:
    """A stage with everything known that its run depends on."""

    name: str
    script: str
    command: list[str]
    arguments: list[str]  # prepare_dataset.py's own
    config: Any  # resolved; None for prepare_dataset.py
    processes: int
    inputs: dict[str, str]  # config key -> file or folder
    outputs: list[str]
    record: Path

    @property
    def can_resume(self) -> bool:
        """Whether the script keeps checkpoints."""
        return hasattr(self.config, "resume")


def plan(suite: SuiteConfig, root: Path) -> list[PlannedStage]:
    """Resolve and check all stages of a suite; `root` is the folder of the scripts and their configs.

    Raises:
        UserError: a stage's config is missing or wrong, an override that no stage takes, a row whose order its stage
            does not evaluate, or an input that is neither there nor made by an earlier stage.
    """
    taken: set[str] = set()
    stages = [_plan_stage(name, stage, suite, root, taken) for name, stage in suite.stages.items()]
    _check_overrides(suite, taken)
    _check_orders(suite, {stage.name: stage.config for stage in stages})
    read = {_absolute(path) for stage in stages for path in stage.inputs.values()}
    stages = [stage for stage in stages if stage.script != DATA_SCRIPT or _absolute(stage.outputs[0]) in read]
    _check_inputs(stages)
    return stages


def _plan_stage(name: str, stage: Stage, suite: SuiteConfig, root: Path, taken: set[str]) -> PlannedStage:
    script = root / stage.script
    if not script.is_file():
        raise UserError(f"suite {suite.name}: stages.{name}.script: there is no {script}")
    record = suite.stages_dir / f"{name}.record.json"
    if stage.output is not None:  # prepare_dataset.py
        arguments = [str(argument) for argument in stage.arguments]
        command = [sys.executable, str(script), *arguments, "--output", stage.output]
        return PlannedStage(name, stage.script, command, arguments, None, 1, {}, [stage.output], record)
    assert stage.config is not None
    source, schema = root / stage.config, SCHEMAS[stage.script]
    values = read_yaml(source)
    overrides = _overrides_for(schema, suite.overrides, values)
    taken.update(key for key, _ in flatten(overrides))
    overrides = merge(overrides, stage.overrides)
    if stage.script == EVAL_SCRIPT:
        overrides["output"] = str(suite.stages_dir / f"{name}.json")
        if name in (suite.old_old, suite.new_new, suite.examples):
            kept = {"embeddings_output_dir": str(suite.embeddings_dir(name))}
            overrides = merge(overrides, {"eval_params": kept})
    config: Any = build(schema, merge(values, overrides), source=f"{source} (stage {name})")
    inputs = dict(paths(config, "input"))
    if config.dataset_params is not None:
        inputs["dataset_params.data_root"] = config.dataset_params.data_root
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={suite.processes}"]
    command = [sys.executable, *(launcher if suite.processes > 1 else []), str(script), "--config", str(source)]
    command += [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in flatten(overrides)]
    outputs = [path for _, path in paths(config, "output")]
    return PlannedStage(name, stage.script, command, [], config, suite.processes, inputs, outputs, record)


def merge(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Nested `values` with nested `overrides` laid over them; neither is changed.

    >>> merge({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4}})
    {'a': 1, 'b': {'c': 4, 'd': 3}}
    """
    merged = dict(values)
    for name, value in overrides.items():
        below = merged.get(name)
        merged[name] = (
            merge(below or {}, value) if isinstance(value, dict) and isinstance(below, dict | None) else value
        )
    return merged


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested sections as (dotted key, value).

    >>> list(flatten({"a": 1, "b": {"c": [2], "d": {}}}))
    [('a', 1), ('b.c', [2]), ('b.d', {})]
    """
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _section_of(hint: Any) -> tuple[type | None, bool]:
    """The dataclass that a field's type names, if any, and whether the field may be None."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    sections = [option for option in options if is_dataclass(option)]
    return (typing.cast(type, sections[0]) if sections else None), type(None) in options


def _overrides_for(schema: type, overrides: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The part of suite-wide `overrides` whose keys `schema` has, but for sections that `values` go without.

    A stage whose file is `objective_params.uncertainty_loss`, say, stays without it.
    """
    hints, part = typing.get_type_hints(schema), {}
    for name, value in overrides.items():
        if name not in hints:
            continue
        below, optional = _section_of(hints[name])
        if below is None or not isinstance(value, dict):
            part[name] = value
        elif values.get(name) is not None or not optional:
            nested = _overrides_for(below, value, values.get(name) or {})
            if nested:
                part[name] = nested
    return part


def _keys_of(schema: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a schema."""
    for name, hint in typing.get_type_hints(schema).items():
        below, _ = _section_of(hint)
        if below is None:
            yield prefix + name
        else:
            yield from _keys_of(below, f"{prefix}{name}.")


def _check_overrides(suite: SuiteConfig, taken: set[str]) -> None:
    schemas = {SCHEMAS[stage.script] for stage in suite.stages.values() if stage.script in SCHEMAS}
    known = sorted({key for schema in schemas for key in _keys_of(schema)})
    for name, value in flatten(suite.overrides):
        if name not in taken and value != {}:
            nearest = [match for match in difflib.get_close_matches(name, known, n=1) if match != name]
            hint = f"; did you mean `overrides.{nearest[0]}`?" if nearest else ""
            raise UserError(f"suite {suite.name}: overrides.{name}: no stage's config has this key{hint}")


def _check_orders(suite: SuiteConfig, configs: dict[str, Any]) -> None:
    for i, row in enumerate(suite.tables.backfilling):
        if row.stage is not None:
            params = configs[row.stage].eval_params
            orders = params.backfilling_list if params.backfilling is not None else []
            if row.order not in orders:
                where = f"suite {suite.name}: tables.backfilling[{i}].order"
                raise UserError(f"{where}: stage {row.stage} does not evaluate the order {row.order!r}")


def _check_inputs(stages: list[PlannedStage]) -> None:
    made: dict[str, str] = {}
    for stage in stages:
        for name, path in stage.inputs.items():
            if _absolute(path) not in made and not Path(path).exists():
                raise UserError(f"stage {stage.name}: {name}: there is no {path}, and no earlier stage makes it")
        for path in stage.outputs:
            other = made.setdefault(_absolute(path), stage.name)
            if other != stage.name:
                raise UserError(f"stage {stage.name}: writes {path}, which stage {other} writes too")


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - Path.absolute keeps `..`
