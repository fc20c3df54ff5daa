"""Configs on top of others: `base`, and the resolved config that `--show` prints."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest

from utils.config import key, load_config, parse_yaml, read_config, section
from utils.errors import UserError


@dataclass
class Inner:
    lr: float = key(0.1, doc="rate")
    model: str | None = key(None, doc="a file", path="input")


@dataclass
class Outer:
    epochs: int = key(3, doc="passes", minimum=1)
    inner: Inner = section(Inner, doc="a section")


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_the_file_wins_over_its_base_key_by_key_and_the_command_line_over_both(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    write(
        tmp_path / "bases", first="epochs: 5\ninner: {lr: 0.5, model: a.pt}\n", second="base: first.yaml\nepochs: 6\n"
    )
    write(tmp_path, mine="base: bases/second.yaml\ninner: {model: null}\n")
    assert read_config(tmp_path / "mine.yaml") == {"epochs": 6, "inner": {"lr": 0.5, "model": None}}
    parser = argparse.ArgumentParser()
    config = load_config(Outer, parser, ["--config", str(tmp_path / "mine.yaml"), "inner.lr=0.25"])
    assert config == Outer(6, Inner(0.25))


def test_a_chain_has_at_most_two_bases(tmp_path: Path) -> None:
    write(tmp_path, a="epochs: 5\n", b="base: a.yaml\n", c="base: b.yaml\n", d="base: c.yaml\n", e="base: e.yaml\n")
    assert read_config(tmp_path / "c.yaml") == {"epochs": 5}
    for name in ("d", "e"):  # the latter has no end
        with pytest.raises(UserError, match=r"\.yaml: base: \w\.yaml is one too many; a chain has at most 2 of them"):
            read_config(tmp_path / f"{name}.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: none.yaml", r"none\.yaml: there is no such config file"),
        ("base: [a.yaml]", r"mine\.yaml: base: should be the path of a YAML file, got \['a\.yaml'\]"),
        ("base: $NOT_THERE/a.yaml", r"mine\.yaml: base: .*NOT_THERE"),
    ],
)
def test_a_base_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, mine=text)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path / "mine.yaml")


def test_show_prints_the_resolved_config_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, a="epochs: 5\n", mine="base: a.yaml\ninner: {model: not_there.pt}\n")
    with pytest.raises(SystemExit) as end:
        load_config(Outer, argparse.ArgumentParser(), ["--config", str(tmp_path / "mine.yaml"), "--show", "epochs=7"])
    assert end.value.code is None
    assert parse_yaml(capsys.readouterr().out) == {"epochs": 7, "inner": {"lr": 0.1, "model": "not_there.pt"}}
