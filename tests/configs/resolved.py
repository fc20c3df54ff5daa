"""What every run of the repository's configs resolves to, as a hash: `python -m tests.configs.resolved` prints them."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from suites.config import SuiteConfig
from suites.methods import expand
from suites.planning import resolve
from suites.scripts import SCHEMAS
from trainers.transformation.config import FitConfig
from upgrade.config import UpgradeConfig
from utils.config import build, read_config
from utils.runs import FORMER_NAMES

ROOT = Path(__file__).parents[2]
# Where an evaluation of a suite writes what its file alone would not: no part of what is computed.
OF_THE_SUITE = ("output", "embeddings_output_dir")


def hash_of(config: Any) -> str:
    """A hash of a config's values but for those at their default, so that a new key changes no hash."""
    return hashlib.sha256(json.dumps(_stated(config), sort_keys=True).encode()).hexdigest()[:16]


def _stated(config: Any) -> Any:
    if not dataclasses.is_dataclass(config):
        return config
    stated, left_out = {}, () if isinstance(config, FitConfig) else OF_THE_SUITE
    for field in dataclasses.fields(config):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = _stated(getattr(config, field.name))
        if field.name not in left_out and value != _stated(default):
            stated[FORMER_NAMES.get(field.name, field.name)] = value
    return stated


def of_files() -> Iterator[tuple[str, str]]:
    """(file name, hash) of each config of a script."""
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        values = read_config(path)
        if "gallery" in values:
            values["step"] = "transform"  # of the command line
        yield path.name, hash_of(build(schema_of(values), values, source=path))


def schema_of(values: dict[str, Any]) -> type:
    """The config class of the script that takes `values`."""
    for key, script in (
        ("output_model_path", "train_backbone.py"),
        ("output_transformation_path", "train_transformation.py"),
        ("old", "fit_embeddings.py"),
        ("output_embeddings_path", "embed.py"),
    ):
        if key in values:
            return SCHEMAS[script]
    return UpgradeConfig if "gallery" in values else SCHEMAS["eval.py"]


def of_stages() -> Iterator[tuple[str, str]]:
    """(suite/stage, hash) of each stage of a suite that has a config, without several seeds."""
    for path in sorted((ROOT / "configs" / "suites").glob("*.yaml")):
        suite = build(SuiteConfig, expand(read_config(path), str(path)), source=path)
        for stage in resolve(suite, ROOT):
            if stage.config is not None:
                yield f"{suite.name}/{stage.name}", hash_of(stage.config)


if __name__ == "__main__":
    print(json.dumps({"files": dict(of_files()), "stages": dict(of_stages())}, indent=1))
