"""README's table of config keys, written from the schema: `python -m suites.key_table`."""

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal

from suites.scripts import SCHEMAS


def key_tables(schemas: Mapping[str, type] = SCHEMAS) -> str:
    """A Markdown table of keys for each script; a section that several scripts share stands in the first."""
    parts = []
    seen: set[type] = set()
    for script, schema in schemas.items():
        rows = "\n".join(_rows(schema, "", seen))
        parts.append(f"**{script}**\n\n| key | default | meaning |\n|---|---|---|\n{rows}\n")
    return "\n".join(parts)


def _rows(schema: type, prefix: str, seen: set[type]) -> Iterator[str]:
    hints = typing.get_type_hints(schema)
    for field in fields(schema):
        name, hint = prefix + field.name, _without_none(hints[field.name])
        if is_dataclass(hint):
            kind = typing.cast(type, hint)
            again = kind in seen
            yield f"| `{name}` | | {field.metadata['doc']}{'; as above' if again else ''} |"
            if not again:
                seen.add(kind)
                yield from _rows(kind, f"{name}.", seen)
        else:
            yield f"| `{name}` | {_default(field)} | {field.metadata['doc']}{_choices(hint)} |"


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(option for option in typing.get_args(hint) if option is not type(None))
    return hint


def _choices(hint: Any) -> str:
    if typing.get_origin(hint) is list:
        (hint,) = typing.get_args(hint)
    if typing.get_origin(hint) is not Literal:
        return ""
    return f" ({', '.join(f'`{choice}`' for choice in typing.get_args(hint))})"


def _default(field: Field[Any]) -> str:
    if field.default_factory is not MISSING:
        return f"`{field.default_factory()}`"
    if field.default is MISSING:
        return "required"
    return "-" if field.default is None else f"`{field.default}`"


if __name__ == "__main__":
    print(key_tables())
