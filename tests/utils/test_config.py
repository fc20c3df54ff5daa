"""Configs: what is accepted, what lies over what, and that every refusal names the file and the key."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config import (
    apply_override,
    build,
    key,
    load_config,
    parse_yaml,
    read_config,
    section,
    to_yaml,
)
from utils.config_files import check_inputs, paths
from utils.errors import UserError


@dataclass
class Inner:
    lr: float = key(0.1, doc="rate", minimum=0.0, maximum=1e9, alias="rate")
    mode: Literal["auto", "on", "off"] = key("auto", doc="mode")
    file: str | None = key(None, doc="a file", path="input")


@dataclass
class Outer:
    name: str = key(doc="what it is called")
    epochs: int = key(3, doc="passes", minimum=1)
    flag: bool = key(False, doc="a switch")
    tags: list[Literal["a", "b"]] = key([], doc="tags")
    table: dict[str, float] = key({}, doc="numbers by name")
    inner: Inner = section(Inner, doc="a section")
    optional: Inner | None = key(None, doc="a section that may be absent")
    size: int | Literal["auto"] | None = key("auto", doc="a number or a choice", minimum=2)
    output: str = key("out.pt", doc="the result", path="output")

    def __post_init__(self) -> None:
        if self.name == "forbidden":
            raise ValueError("name: is taken")


def load(values: dict[str, Any]) -> Outer:
    return build(Outer, {"name": "x", **values}, source="some/file.yaml")


def load_file(folder: Path, text: str, *arguments: str) -> Outer:
    path = folder / "config.yaml"
    path.write_text(text)
    return load_config(Outer, argparse.ArgumentParser(), ["--config", str(path), *arguments])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown key `epoch`; did you mean `epochs`?"),
        ({"inner": {"lrr": 1}}, "unknown key `inner.lrr`; did you mean `inner.lr`?"),
        ({"inner": {"zzzzz": 1}}, "unknown key `inner.zzzzz`; (known: lr, mode, file)"),
        ({7: 1}, "unknown key `7`"),
        ({"epochs": "3"}, "epochs: should be a whole number, got '3'"),
        ({"epochs": 3.0}, "epochs: should be a whole number, got 3.0"),
        ({"epochs": True}, "epochs: should be a whole number, got True"),
        ({"epochs": None}, "epochs: should be a whole number, got None"),
        ({"flag": 1}, "flag: should be true or false, got 1"),
        ({"inner": {"lr": "fast"}}, "inner.lr: should be a number, got 'fast'"),
        ({"inner": {"lr": False}}, "inner.lr: should be a number, got False"),
        ({"inner": {"file": 3}}, "inner.file: should be a text, got 3"),
        ({"inner": [1]}, "inner: should be a section of keys, got [1]"),
        ({"tags": "a"}, "tags: should be a list, got 'a'"),
        ({"tags": ["a", "c"]}, "tags[1]: unknown 'c'"),
        ({"table": [1]}, "table: should be a section of keys, got [1]"),
        ({"table": {"k": "v"}}, "table.k: should be a number, got 'v'"),
        ({"epochs": 0}, "epochs: should be at least 1, got 0"),
        ({"inner": {"lr": 1e10}}, "inner.lr: should be at most 1000000000.0, got 10000000000.0"),
        ({"inner": {"lr": float("nan")}}, "inner.lr: should be a number, got nan"),
        ({"inner": {"lr": float("inf")}}, "inner.lr: should be a number, got inf"),
        ({"inner": {"lr": 10**400}}, "inner.lr: should be a number, got 1000"),
        ({"inner": {"mode": "atuo"}}, "inner.mode: unknown 'atuo'; did you mean auto? (choices: auto, on, off)"),
        ({"size": "otto"}, "size: should be a whole number or auto, got 'otto'"),
        ({"size": True}, "size: should be a whole number or auto, got True"),
        ({"size": 1}, "size: should be at least 2, got 1"),
        ({"name": "forbidden"}, "name: is taken"),
        ({"inner": {"rate": -1}}, "inner.rate: should be at least 0.0, got -1"),
        ({"inner": {"lr": 1, "rate": 2}}, "inner.lr: is 1, and rate, which means the same, is 2; leave one of them"),
    ],
)
def test_a_refusal_names_the_source_and_the_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"some/file.yaml: {message}")):
        load(values)


def test_a_missing_required_key_is_named_with_its_meaning() -> None:
    with pytest.raises(UserError, match=re.escape("f.yaml: name: is missing (what it is called)")):
        build(Outer, {}, source="f.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inner: {lr: 1}", {"inner": Inner(lr=1.0)}),
        ("inner: {rate: 1}", {"inner": Inner(lr=1.0)}),
        ("inner: {rate: 1, lr: 1}", {"inner": Inner(lr=1.0)}),
        ("{inner: null, optional: {}}", {"optional": Inner()}),
        ("{table: {1: 2}, tags: [b, a]}", {"table": {"1": 2.0}, "tags": ["b", "a"]}),
        ("size: 7", {"size": 7}),
        ("size: null", {"size": None}),
        ("{flag: on, inner: {mode: off}}", {"flag": True, "inner": Inner(mode="off")}),
        # Numbers, and what only resembles them or a date
        *((f"inner: {{lr: {text}}}", {"inner": Inner(lr=5e-4)}) for text in ("5e-4", "+5E-4", "0.5e-3", "5.e-4")),
        *((f"name: {text}", {"name": text}) for text in ("e4", "5e", "1e-x", "0x1e-4y", "2024-02-30", "2024-02-03")),
        *((f"name: {text}", {"name": text}) for text in ("0000-00-00", "2001-12-14t21:59:43.10-05:00")),
        ("name: '5e-4'", {"name": "5e-4"}),
        # A key that is merged may stand twice
        (
            "{inner: &a {lr: 1}, optional: &b {<<: *a, lr: 2}, table: {<<: [*b, *a], x: 3}}",
            {"inner": Inner(1.0), "optional": Inner(2.0), "table": {"lr": 2.0, "x": 3.0}},
        ),
    ],
)
def test_values_take_the_names_and_types_of_the_schema(text: str, expected: dict[str, Any]) -> None:
    config = load(parse_yaml(text))
    assert repr(config) == repr(Outer(**{"name": "x", **expected}))  # 1 == 1.0, but not in what is saved
    assert build(Outer, parse_yaml(to_yaml(config)), source="resolved") == config


def test_defaults_are_not_shared() -> None:
    load({}).tags.append("a")
    load({}).inner.lr = 9.0
    assert load({}) == Outer(name="x")


def test_overrides_win_over_the_file_and_later_ones_over_earlier(tmp_path: Path) -> None:
    text = "name: x\nepochs: 5\ninner: {lr: 1, mode: on}\noptional:\n"
    file = tmp_path / "a=b"
    file.touch()
    config = load_file(
        tmp_path, text, "epochs=6", "inner.lr=5e-4", f"optional.file={file}", "tags=[a]", "table.k=2", "epochs=7"
    )
    expected = Outer("x", 7, tags=["a"], table={"k": 2.0}, inner=Inner(5e-4, "on"), optional=Inner(file=str(file)))
    assert config == expected


def test_options_may_stand_between_overrides_and_only_given_ones_count(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: x\noutput: from_file\n")
    for argv, output in ((["--output", "o"], "o"), ([], "from_file")):
        parser = argparse.ArgumentParser()
        parser.add_argument("--output")
        config = load_config(Outer, parser, ["epochs=2", *argv, "--config", str(path), "flag=true"])
        assert (config.epochs, config.flag, config.output) == (2, True, output)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "`epochs` is not of the form key=value"),
        ("=3", "`=3` is not of the form key=value"),
        ("epochs=[1", "epochs: `[1` is not valid YAML"),
        ("epochs=!!int ''", "epochs: `!!int ''` is not valid YAML"),
        ("inner.lr.x=1", "inner.lr.x: `inner.lr` is no section"),
    ],
)
def test_a_bad_override(override: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"command line: {message}")):
        apply_override({"name": "x", "inner": {"lr": 1}}, override)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb: {c: 1, c: 2}\n", "config.yaml, line 2: is not valid YAML: the key `c` stands twice"),
        ("a: &b {lr: 1}\nc: {<<: *b, lr: 2, lr: 3}\n", "config.yaml, line 2: is not valid YAML: the key `lr` stands"),
        ("? [a]\n: 1\n", "config.yaml, line 1: is not valid YAML: a key should be a text"),
        ("a: [1\n", "config.yaml, line 2: is not valid YAML"),
        ("a: \x00\n", "config.yaml: is not valid YAML"),
        ("- a\n", "config.yaml: should hold `key: value` lines"),
        ("", "config.yaml: should hold `key: value` lines"),
        ("name: 0b_", "line 1: is not valid YAML: `0b_` is no value of the type int"),
        (f"name: {'9' * 5000}", "is no value of the type int"),
        ("name: !!float ''", "line 1: is not valid YAML: `` is no value of the type float"),
        ("name: !!bool maybe", "line 1: is not valid YAML: `maybe` is no value of the type bool"),
        ("name: !!python/object/apply:os.getcwd []", "line 1: is not valid YAML: could not determine a constructor"),
        ("name: !!timestamp 2024-02-30", "line 1: is not valid YAML: could not determine a constructor"),
        ("name: !!binary aGk=", "line 1: is not valid YAML: could not determine a constructor"),
        ("name: !!set {a, b}", "line 1: is not valid YAML: could not determine a constructor"),
        ("name: &x [*x]", "line 1: is not valid YAML: found unconstructable recursive node"),
        (f"name: {'[' * 2000}", "is not valid YAML: it is nested too deeply"),
    ],
)
def test_what_is_not_a_config(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load_file(tmp_path, content)
    assert len(str(error.value).splitlines()) == 1


def test_a_config_that_is_no_utf_8(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"c\.yaml: cannot be read as a config"):
        read_config(tmp_path / "c.yaml")


def test_an_override_of_one_of_two_sections_that_share_an_alias(tmp_path: Path) -> None:
    config = load_file(tmp_path, "name: x\ninner: &shared {lr: 2}\noptional: *shared\n", "inner.lr=5")
    assert (config.inner.lr, config.optional) == (5.0, Inner(lr=2.0))


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        Outer,
        name=st.one_of(st.sampled_from(["5e-4", "on", "null", "1", "a: b", "#", "é\n", "~"]), st.text()),
        epochs=st.integers(1),
        flag=st.booleans(),
        tags=st.lists(st.sampled_from(["a", "b"])),
        table=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
        inner=st.builds(Inner, lr=st.floats(0, 1e9), mode=st.sampled_from(["auto", "on", "off"])),
        # A path that begins with `~`, or holds a variable, is in no config that was built.
        optional=st.none() | st.builds(Inner, file=st.none() | st.text(st.characters(exclude_characters="~$"))),
    )
)
def test_the_resolved_config_loads_as_itself(config: Outer) -> None:
    assert build(Outer, parse_yaml(to_yaml(config)), source="resolved") == config


def test_paths_are_expanded_and_stay_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUN", "seven")
    (tmp_path / "in").touch()
    (tmp_path / "c.yaml").write_text("name: ~/x$RUN\ninner: {file: ~/in}\n")
    argv = ["--config=~/c.yaml", "output=${HOME}/$RUN.pt", "optional.file=$HOME/in"]
    config = load_config(Outer, argparse.ArgumentParser(), argv)
    assert config.name == "~/x$RUN"  # no path
    assert config.inner.file == f"{tmp_path}/in"
    assert config.output == f"{tmp_path}/seven.pt"
    assert config.optional == Inner(file=f"{tmp_path}/in")
    monkeypatch.delenv("RUN")
    monkeypatch.setenv("HOME", "/elsewhere")
    assert build(Outer, parse_yaml(to_yaml(config)), source="resolved") == config
    with pytest.raises(UserError, match=r"f\.yaml: inner\.file: \$RUN/x: the environment variable RUN is not set"):
        build(Outer, {"name": "x", "inner": {"file": "$RUN/x"}}, source="f.yaml")


def test_paths_by_role_and_the_check_of_inputs(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch()
    config = Outer(name="x", inner=Inner(file=str(there)), optional=Inner(file=str(tmp_path / "gone")))
    assert dict(paths(config, "input")) == {"inner.file": str(there), "optional.file": str(tmp_path / "gone")}
    assert dict(paths(config, "output")) == {"output": "out.pt"}
    with pytest.raises(UserError, match=r"c\.yaml: optional\.file: there is no .*gone"):
        check_inputs(config, "c.yaml")
    config.optional = None
    check_inputs(config, "c.yaml")


def test_the_file_wins_over_its_bases_key_by_key_and_the_command_line_over_all(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases/first.yaml").write_text("name: x\nepochs: 5\ninner: {lr: 0.5, file: a.pt}\n")
    (tmp_path / "bases/second.yaml").write_text("base: first.yaml\nepochs: 6\n")
    config = load_file(tmp_path, "base: bases/second.yaml\ninner: {file: null, mode: on}\n", "inner.mode=off")
    assert config == Outer("x", 6, inner=Inner(0.5, "off"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: none.yaml", r"none\.yaml: there is no such config file"),
        ("base: .", "cannot be read as a config"),
        ("base: [a.yaml]", r"mine\.yaml: base: should be the path of a YAML file, got \['a\.yaml'\]"),
        ("base: $NOT_THERE/a.yaml", r"mine\.yaml: base: .*NOT_THERE"),
        ("base: mine.yaml", r"mine\.yaml: base: mine\.yaml is one too many; a chain has at most 2 of them"),
    ],
)
def test_a_base_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path / "mine.yaml")


def test_show_prints_the_resolved_config_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        load_file(tmp_path, "name: x\ninner: {file: not_there.pt}\n", "--show", "epochs=7")
    assert end.value.code is None
    shown = build(Outer, parse_yaml(capsys.readouterr().out), source="shown")
    assert shown == Outer("x", 7, inner=Inner(file="not_there.pt"))
