"""README agrees with the code: its key table is the schema's, and what it names exists."""

import re

import pytest

from suites.key_table import key_tables
from tests.tiny import REPOSITORY
from upgrade.config import UpgradeConfig

ROOMS = "configs|docs|benchmarks|results|models|data|trainers|retrieval|suites|upgrade|utils"
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_key_table_is_the_schema() -> None:
    assert key_tables().strip() in README, "run `python -m suites.key_table` and put its output into README.md"


def test_the_guide_to_upgrades_lists_its_keys() -> None:
    guide = (REPOSITORY / "docs/upgrade_your_gallery.md").read_text(encoding="utf-8")
    assert key_tables({"upgrade_gallery.py": UpgradeConfig}).strip() in guide


@pytest.mark.parametrize("path", sorted(set(re.findall(rf"(?:{ROOMS})/[\w./-]+\.(?:yaml|md|py|png|json)", README))))
def test_named_file_exists(path: str) -> None:
    assert (REPOSITORY / path).is_file()


def test_commands_name_scripts() -> None:
    scripts = set(re.findall(r"(?<![\w/])(\w+\.(?:py|sh))\b", README))
    assert scripts
    for script in scripts:
        assert any(REPOSITORY.glob(script)) or any(REPOSITORY.glob(f"*/{script}")), script
