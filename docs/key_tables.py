"""The tables of config keys, from the config classes: `python -m docs.key_tables` writes them into pages of docs/."""

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from suites.config import SuiteConfig
from suites.methods import Method, Template
from suites.scripts import SCHEMAS
from upgrade.config import UpgradeConfig

DOCS = Path(__file__).resolve().parent
BEGINNING = "<!-- From here on: python -m docs.key_tables -->\n"
OF_PAGES = {
    "configuration_evaluation.md": ("embed.py", "eval.py"),
    "configuration_own_embeddings.md": ("fit_embeddings.py", "upgrade_gallery.py"),
}  # the other scripts stand in configuration.md


def pages() -> dict[str, dict[str, type]]:
    """Page -> heading -> the config class whose keys stand below it: those of a script, or of a part of a suite."""
    schemas: dict[str, type] = {**SCHEMAS, "upgrade_gallery.py": UpgradeConfig}
    found = {page: {script: schemas.pop(script) for script in scripts} for page, scripts in OF_PAGES.items()}
    suites = {"reproduce.py": SuiteConfig, "methods.NAME": Method, "template": Template}
    return {"configuration.md": schemas, **found, "configuration_suites.md": suites}


def with_tables(text: str, schemas: Mapping[str, type]) -> str:
    """The text of a page, with what follows BEGINNING replaced by the tables of keys."""
    return text[: text.index(BEGINNING)] + BEGINNING + key_tables(schemas)


def key_tables(schemas: Mapping[str, type]) -> str:
    """A Markdown table of keys for each heading; a section that several share stands in the first."""
    seen: set[type] = set()
    return "".join(
        f"\n## {heading}\n\n| key | default | meaning |\n|---|---|---|\n" + "\n".join(_rows(schema, "", seen)) + "\n"
        for heading, schema in schemas.items()
    )


def _rows(schema: type, prefix: str, seen: set[type]) -> Iterator[str]:
    hints = typing.get_type_hints(schema)
    for field in fields(schema):
        name, hint = prefix + field.name, _without_none(hints[field.name])
        default = " " if is_dataclass(hint) else f" {_default(field)} "
        of_each = {dict: ".NAME", list: "[]"}.get(typing.get_origin(hint), "")
        kind = typing.get_args(hint)[-1] if of_each else hint
        if not is_dataclass(kind):
            yield f"| `{name}` |{default}| {field.metadata['doc']}{_choices(hint)} |"
            continue
        kind = typing.cast(type, kind)
        again = "; as above" if kind in seen and not of_each else ""
        yield f"| `{name}` |{default}| {field.metadata['doc']}{again} |"
        if kind not in seen:
            seen.add(kind)
            yield from _rows(kind, f"{name}{of_each}.", seen)


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
    for page, schemas in pages().items():
        path = DOCS / page
        path.write_text(with_tables(path.read_text(encoding="utf-8"), schemas), encoding="utf-8")
