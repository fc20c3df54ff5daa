"""Overrides of config keys, as nested sections: which of a suite's a stage takes, and whether any stage does."""

import difflib
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from suites.config import SuiteConfig
from suites.scripts import SCHEMAS
from utils.errors import UserError


def nested(key: str, value: Any) -> dict[str, Any]:
    """A value under its dotted key, as nested sections.

    >>> nested("a.b", 1)
    {'a': {'b': 1}}
    """
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


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


def overrides_for(schema: type, overrides: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The part of suite-wide `overrides` whose keys `schema` has, but for sections that `values` go without.

    A stage whose file is `objective_params.uncertainty_loss`, say, stays without it.
    """
    hints, part = typing.get_type_hints(schema), {}
    for field in fields(schema):
        if field.metadata.get("alias") is not None:
            hints[field.metadata["alias"]] = hints[field.name]
    for name, value in overrides.items():
        if name not in hints:
            continue
        below, optional = _section_of(hints[name])
        if below is None or not isinstance(value, dict):
            part[name] = value
        elif values.get(name) is not None or not optional:
            nested = overrides_for(below, value, values.get(name) or {})
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


def check_overrides(suite: SuiteConfig, taken: set[str]) -> None:
    schemas = {SCHEMAS[stage.script] for stage in suite.stages.values() if stage.script in SCHEMAS}
    known = sorted({key for schema in schemas for key in _keys_of(schema)})
    for name, value in flatten(suite.overrides):
        if name not in taken and value != {}:
            nearest = [match for match in difflib.get_close_matches(name, known, n=1) if match != name]
            hint = f"; did you mean `overrides.{nearest[0]}`?" if nearest else ""
            raise UserError(f"suite {suite.name}: overrides.{name}: no stage's config has this key{hint}")
