"""Typed configs: a YAML file and `key=value` overrides -> dataclasses, with errors that name the file and the key."""

import argparse
import contextlib
import dataclasses
import difflib
import math
import re
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from utils.config_files import PathRole, check_inputs
from utils.errors import UserError
from utils.paths import expanded

Config = TypeVar("Config")
MAX_BASES = 2  # of a config, one after the other
TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def key(
    default: Any = MISSING,
    *,
    doc: str,
    minimum: float | None = None,
    maximum: float | None = None,
    path: PathRole | None = None,
    alias: str | None = None,
) -> Any:
    """A config key: a dataclass field with its documentation, its bounds, and whether it is a path.

    As a path, `~` and `$NAME` in it are expanded. That of an "input" must be there before the run begins, and what is
    there decides its result; a "model" and "weights" are inputs too, where they are files and not names that a library
    knows; an "output" is what the run writes; of "any" other nothing more is asked. `alias` is a second spelling of its
    name, which configs may use as well.
    """
    doc = doc if alias is None else f"{doc}; also spelt `{alias}`"
    metadata = {"doc": doc, "minimum": minimum, "maximum": maximum, "path": path, "alias": alias}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(kind: Callable[[], Any], *, doc: str) -> Any:
    """A config section: a nested dataclass, as `kind` makes it where the file does not name it."""
    return dataclasses.field(default_factory=kind, metadata={"doc": doc})


def load_config(
    schema: type[Config],
    parser: argparse.ArgumentParser,
    argv: list[str] | None = None,
    prepare: Callable[[dict[str, Any], str], dict[str, Any]] = lambda values, source: values,
) -> Config:
    """Read `--config FILE [--show] [key=value ...]` from the command line into `schema`.

    The file's `base` comes first, then the file, then the command line; later wins. With `--show` the resolved config
    is printed and the script ends. Further arguments that `parser` knows are stored in those fields of the config that
    bear their names.

    Args:
        prepare: (values, file) -> values, once all of them are together.

    Raises:
        UserError: a missing file, an unknown key, a wrong type, a value out of bounds, a missing required key, or a
            file that the config reads and that is not there.
    """
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML config")
    parser.add_argument("--show", action="store_true", help="print the resolved config and end")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override config keys, e.g. epochs=3")
    arguments = vars(parser.parse_intermixed_args(argv))
    path, overrides, show = (arguments.pop(name) for name in ("config", "overrides", "show"))
    path = expanded(path, "--config")
    values = read_config(path)
    for override in overrides:
        apply_override(values, override)
    values.update({name: value for name, value in arguments.items() if value is not None})
    config = build(schema, prepare(values, path), source=path)
    if show:
        print(to_yaml(config), end="")
        sys.exit()
    check_inputs(config, source=path)
    return config


def read_config(path: str | Path, chain: int = MAX_BASES) -> dict[str, Any]:
    """Read a YAML file of keys, laid over the file that its key `base` names, relative to itself.

    Raises:
        UserError: as `read_yaml`, or `base` is no text or the last of a longer chain than MAX_BASES.
    """
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: base: should be the path of a YAML file, got {base!r}")
    if not chain:
        raise UserError(f"{path}: base: {base} is one too many; a chain has at most {MAX_BASES} of them")
    return merge(read_config(Path(path).parent / expanded(base, f"{path}: base"), chain - 1), values)


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


TAG = "tag:yaml.org,2002:"
PLAIN_TAGS = {f"{TAG}{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back: a text that looks like `5e-4` stands in quotes."""


class _Loader(yaml.SafeLoader):
    """YAML of plain values without its traps: `5e-4` is a number, a date a text, a key that stands twice an error."""

    # The key None is the constructor of all other tags, which says that there is none.
    yaml_constructors = {  # noqa: RUF012 - of PyYAML
        tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in PLAIN_TAGS
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{TAG}timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()  # before merges, by which a key may well come again
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key should be a text", problem_mark=key_node.start_mark)
            if key_node.value in seen:
                problem = f"the key `{key_node.value}` stands twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=True)  # at once, so that what holds itself is refused
        except (ValueError, LookupError):
            problem = f"`{node.value}` is no value of the type {node.tag.removeprefix(TAG)}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        f"{TAG}float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def parse_yaml(text: str) -> Any:
    """Parse YAML safely, with scientific notation as numbers.

    >>> parse_yaml("lr: 5e-4")
    {'lr': 0.0005}
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds keys.

    Raises:
        UserError: there is no such file, it is not YAML, or holds something else than keys.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = parse_yaml(text)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a config ({error})") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: is not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: should hold `key: value` lines")
    return values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in nested `values`; the value is read as YAML."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"command line: `{override}` is not of the form key=value")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        raise UserError(f"command line: {name}: `{text}` is not valid YAML") from None
    *parents, last = name.split(".")
    for depth, parent in enumerate(parents):
        if values.get(parent) is None:
            values[parent] = {}
        if not isinstance(values[parent], dict):
            raise UserError(f"command line: {name}: `{'.'.join(parents[: depth + 1])}` is no section")
        values[parent] = dict(values[parent])  # an alias in the file has made it another key's section too
        values = values[parent]
    values[last] = value


def build(schema: type[Config], values: dict[str, Any], source: str | Path, prefix: str = "") -> Config:
    """Turn nested `values` into the dataclass `schema`, checking every key.

    A schema may have `MOVED`: what to say of keys that it no longer has.

    Raises:
        UserError: naming `source` and the key.
    """
    hints = typing.get_type_hints(schema)
    known = {field.name: field for field in fields(schema)}  # type: ignore[arg-type]
    spellings = {name: _spelling(field, values, f"{source}: {prefix}") for name, field in known.items()}
    for name in values:
        if name in (moved := getattr(schema, "MOVED", {})):
            raise UserError(f"{source}: {prefix}{name}: {moved[name]}")
        if name not in known and name not in spellings.values():
            raise UserError(f"{source}: {_unknown(f'{prefix}{name}', prefix, list(known))}")
    arguments = {}
    for name, field in known.items():
        spelling = spellings[name]
        if spelling in values:
            where = f"{source}: {prefix}{spelling}"
            value = _convert(hints[name], values[spelling], source, prefix + spelling)
            if value is not None:
                _check_bounds(value, field, where)
                value = expanded(value, where) if field.metadata.get("path") else value
            arguments[name] = value
        elif field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{source}: {prefix}{name}: is missing ({field.metadata['doc']})")
    try:
        return schema(**arguments)
    except ValueError as error:  # a dataclass's own check across keys
        raise UserError(f"{source}: {prefix}{error}") from None


def _spelling(field: dataclasses.Field[Any], values: dict[str, Any], where: str) -> str:
    """The name under which `values` hold a key: its own, or its alias; a UserError if it has a value under each."""
    alias = field.metadata.get("alias")
    if alias is None or alias not in values:
        return field.name
    if field.name in values and values[field.name] != values[alias]:
        raise UserError(
            f"{where}{field.name}: is {values[field.name]!r}, and {alias}, which means the same, is "
            f"{values[alias]!r}; leave one of them out"
        )
    return alias


def _check_bounds(value: Any, field: dataclasses.Field[Any], where: str) -> None:
    minimum, maximum = field.metadata.get("minimum"), field.metadata.get("maximum")
    if isinstance(value, str):  # a choice beside the numbers
        return
    if minimum is not None and value < minimum:
        raise UserError(f"{where}: should be at least {minimum}, got {value!r}")
    if maximum is not None and value > maximum:
        raise UserError(f"{where}: should be at most {maximum}, got {value!r}")


def _unknown(name: str, prefix: str, choices: list[str]) -> str:
    nearest = difflib.get_close_matches(name.removeprefix(prefix), choices, n=1)
    hint = f"did you mean `{prefix}{nearest[0]}`? " if nearest else ""
    return f"unknown key `{name}`; {hint}(known: {', '.join(choices)})"


def unknown_choice(what: str, value: Any, choices: typing.Iterable[str]) -> str:
    """The text of an error about a name that is not in a registry.

    >>> unknown_choice("arch_params.arch", "ResNet5", ["ResNet18", "ResNet50"])
    "arch_params.arch: unknown 'ResNet5'; did you mean ResNet50? (choices: ResNet18, ResNet50)"
    """
    choices = list(choices)
    nearest = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return f"{what}: unknown {value!r}; {hint}(choices: {', '.join(choices)})"


def _convert(hint: Any, value: Any, source: str | Path, name: str) -> Any:
    """`value` as the type `hint`, or a UserError that names `source` and `name`."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        return _convert_to_one_of([kind for kind in options if kind is not type(None)], value, source, name)
    if origin is Literal:
        # YAML 1.1 reads a bare on / off as a truth value.
        value = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
        if value not in options:
            raise UserError(f"{source}: {unknown_choice(name, value, options)}")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise UserError(f"{source}: {name}: should be a list, got {value!r}")
        return [_convert(options[0], item, source, f"{name}[{i}]") for i, item in enumerate(value)]
    if is_dataclass(hint) and value is None:
        value = {}
    if (is_dataclass(hint) or origin is dict) and not isinstance(value, dict):
        raise UserError(f"{source}: {name}: should be a section of keys, got {value!r}")
    if is_dataclass(hint):
        return build(typing.cast(type, hint), value, source, prefix=f"{name}.")
    if origin is dict:
        return {str(k): _convert(options[1], item, source, f"{name}.{k}") for k, item in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # one of hundreds of digits is refused below
            return float(value)
    infinite = isinstance(value, float) and not math.isfinite(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)) or infinite:
        raise UserError(f"{source}: {name}: should be {TYPE_NAMES[hint]}, got {value!r}")
    return value


def _convert_to_one_of(kinds: list[Any], value: Any, source: str | Path, name: str) -> Any:
    """`value` as the first of several types that takes it."""
    if len(kinds) == 1:
        return _convert(kinds[0], value, source, name)
    for kind in kinds:
        with contextlib.suppress(UserError):
            return _convert(kind, value, source, name)
    names = [TYPE_NAMES[kind] if kind in TYPE_NAMES else " or ".join(typing.get_args(kind)) for kind in kinds]
    raise UserError(f"{source}: {name}: should be {' or '.join(names)}, got {value!r}")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested plain values, as they stand in the resolved YAML."""
    return dataclasses.asdict(config)


def to_yaml(config: Any) -> str:
    """The resolved config: every key with its value, loadable by the same script."""
    return yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False)
