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
from trainers.transformation.config import FitConfig, HowToFit
from upgrade.config import UpgradeConfig
from utils.config import build, read_config
from utils.runs import FORMER_NAMES

ROOT = Path(__file__).parents[2]
# Where a stage of a suite writes what its file alone would not: no part of what is computed.
OF_THE_SUITE = ("output", "embeddings_output_dir")
OF_BOTH = [field.name for field in dataclasses.fields(HowToFit)]  # keys of both configs of transformations


def hash_of(config: Any) -> str:
    """A hash of a config's values but for those at their default, so that a new key changes no hash."""
    values = _as_before(config) if isinstance(config, FitConfig) else _stated(config)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _as_before(config: FitConfig) -> dict[str, Any]:
    """The values by which train_transformation.py was told the same fit, before that had a script of its own."""
    names = {"fct": "MLP_BN_SIDE_PROJECTION", "fastfill": "MLP_BN_SIDE_PROJECTION_SIGMA"}
    stated = _stated(config)
    kept = {key: stated.pop(key) for key in OF_BOTH if key in stated}
    arch = {"arch": names.get(config.method, config.method)}
    arch |= {key: stated.pop(key) for key in ("inner_dim", "sigma_dim") if key in stated}
    files = {key: value for key, value in stated.items() if key not in ("method", "epochs", "optimizer_params")}
    return kept | {
        "embeddings_params": files,
        "arch_params": arch,
        "optimizer_params": _stated(config.optimizer_params),
        "epochs": config.epochs,
        "output_transformation_path": config.output,
    }


def _stated(config: Any) -> Any:
    if not dataclasses.is_dataclass(config):
        return config
    stated = {}
    for field in dataclasses.fields(config):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = _stated(getattr(config, field.name))
        if field.name not in OF_THE_SUITE and value != _stated(default):
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
