"""The configs of all runs resolve to what they did: `resolved.json` holds the hashes.

    python -m tests.configs.resolved > tests/configs/resolved.json

says what a run is from now on; finished runs that it changes will start afresh.
"""

import json
from pathlib import Path

import pytest

from tests.configs.resolved import ROOT, hash_of, of_files, of_stages, schema_of
from utils.config import build, merge, read_config

KNOWN = json.loads(Path(__file__).with_name("resolved.json").read_text(encoding="utf-8"))


def test_every_file_and_every_stage_of_every_suite_is_what_it_was() -> None:
    assert dict(of_files()) == KNOWN["files"]
    assert dict(of_stages()) == KNOWN["stages"]


def test_the_hash_tells_one_value_from_another() -> None:
    values = read_config(ROOT / "configs" / "cifar100_backbone_old.yaml")
    other = merge(values, {"optimizer_params": {"lr": 1.025}})
    hashes = {hash_of(build(schema_of(each), each, source="x")) for each in (values, other)}
    assert len(hashes) == 2


@pytest.mark.parametrize("name", ["cifar100", "imagenet"])
def test_the_published_recipes_are_complete_without_a_base(name: str) -> None:
    for run in ("backbone_old", "backbone_new", "fct_transformation", "fastfill_transformation"):
        assert "\nbase:" not in (ROOT / "configs" / f"{name}_{run}.yaml").read_text(encoding="utf-8")
    for run in ("old_old", "new_new", "old_new_fct", "old_new_fastfill"):
        assert "\nbase:" not in (ROOT / "configs" / f"{name}_eval_{run}.yaml").read_text(encoding="utf-8")
