"""Every config key that names a file or a folder is known to be a path, so that `~` and `$NAME` in it are expanded."""

import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from suites.config import SuiteConfig
from suites.scripts import SCHEMAS
from upgrade.config import UpgradeConfig

MODELS = {"arch", "old_model", "new_model"}  # names of theirs
SPLITS = {"gallery_split", "query_split", "split", "training_split", "validation_split"}
SUITES = {"case", "examples", "name", "new_new", "notes", "old_old", "only", "stage", "title"}


def texts_without_role(schema: type) -> Iterator[str]:
    """The keys of a schema, sections included, that take a text and are not marked as paths."""
    hints = typing.get_type_hints(schema)
    for field in fields(schema):
        hint = hints[field.name]
        for option in [hint, *typing.get_args(hint), *(a for o in typing.get_args(hint) for a in typing.get_args(o))]:
            if is_dataclass(option):
                yield from texts_without_role(typing.cast(type, option))
        takes_text = (hint is str or str in typing.get_args(hint)) and typing.get_origin(hint) is not dict
        if takes_text and field.metadata.get("path") is None:
            yield field.name


def test_every_text_is_a_path_or_known_to_be_none() -> None:
    schemas = [*SCHEMAS.values(), SuiteConfig, UpgradeConfig]
    assert {name for schema in schemas for name in texts_without_role(schema)} == MODELS | SPLITS | SUITES | {
        "index",
        "budget",
    }
