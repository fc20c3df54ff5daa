"""The configs of all runs resolve to what they did: `resolved.json` holds the hashes.

    python -m tests.configs.test_resolved > tests/configs/resolved.json

says what a run is from now on; finished runs that it changes will start afresh.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from suites.config import SuiteConfig
from suites.methods import expand
from suites.planning import resolve
from suites.scripts import SCHEMAS
from trainers.transformation.config import FitConfig
from upgrade.config import UpgradeConfig
from utils.config import build, merge, read_config
from utils.runs import FORMER_NAMES

CONFIGS = Path(__file__).parents[2] / "configs"
KNOWN = Path(__file__).with_name("resolved.json")
# Where an evaluation of a suite writes what its file alone would not: no part of what is computed.
OF_THE_SUITE = ("output", "embeddings_output_dir")


def hash_of(config: Any) -> str:
    """A hash of a config's values but for those at their default, so that a new key changes no hash."""
    return hashlib.sha256(json.dumps(stated(config), sort_keys=True).encode()).hexdigest()[:16]


def stated(config: Any) -> Any:
    if not dataclasses.is_dataclass(config):
        return config
    values, left_out = {}, () if isinstance(config, FitConfig) else OF_THE_SUITE
    for field in dataclasses.fields(config):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = stated(getattr(config, field.name))
        if field.name not in left_out and value != stated(default):
            values[FORMER_NAMES.get(field.name, field.name)] = value
    return values


def of_files() -> Iterator[tuple[str, str]]:
    """(file name, hash) of each config of a script, which its first comment names."""
    for path in sorted(CONFIGS.glob("*.yaml")):
        (script, *_) = re.findall(r"python (\w+\.py)", path.read_text(encoding="utf-8"))
        if script == "upgrade_gallery.py":
            yield path.name, hash_of(build(UpgradeConfig, read_config(path) | {"step": "transform"}, source=path))
        else:
            yield path.name, hash_of(build(SCHEMAS[script], read_config(path), source=path))


def of_stages() -> Iterator[tuple[str, str]]:
    """(suite/stage, hash) of each stage of a suite that has a config, without several seeds."""
    for path in sorted((CONFIGS / "suites").glob("*.yaml")):
        suite = build(SuiteConfig, expand(read_config(path), str(path)), source=path)
        for stage in resolve(suite, CONFIGS.parent):
            if stage.config is not None:
                yield f"{suite.name}/{stage.name}", hash_of(stage.config)


def test_every_file_and_every_stage_of_every_suite_is_what_it_was() -> None:
    assert {"files": dict(of_files()), "stages": dict(of_stages())} == json.loads(KNOWN.read_text(encoding="utf-8"))


def test_the_hash_tells_one_value_from_another() -> None:
    values = read_config(CONFIGS / "cifar100_backbone_old.yaml")
    other = merge(values, {"optimizer_params": {"lr": 1.025}})
    assert len({hash_of(build(SCHEMAS["train_backbone.py"], each, source="x")) for each in (values, other)}) == 2


@pytest.mark.parametrize("name", ["cifar100", "imagenet"])
def test_the_published_recipes_are_complete_without_a_base(name: str) -> None:
    trainings = ("backbone_old", "backbone_new", "fct_transformation", "fastfill_transformation")
    evaluations = ("eval_old_old", "eval_new_new", "eval_old_new_fct", "eval_old_new_fastfill")
    for run in (*trainings, *evaluations):
        assert "\nbase:" not in (CONFIGS / f"{name}_{run}.yaml").read_text(encoding="utf-8")


if __name__ == "__main__":
    print(json.dumps({"files": dict(of_files()), "stages": dict(of_stages())}, indent=1))
