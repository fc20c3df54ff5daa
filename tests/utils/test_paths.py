"""Paths as users write them."""

import subprocess
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.paths import expanded, without_suffix


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOME": "/home/ann", "RUN_1": "seven", "HERE": "~/work", "PRICE": "$HOME"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOWHERE", raising=False)


@pytest.mark.parametrize("path", ["~/x/t.pt", "~", "$HOME/a", "${HOME}a/$RUN_1.pt", "a/$RUN_1/${RUN_1}0", "~/a~b/~"])
def test_it_is_what_a_shell_makes_of_it(path: str) -> None:
    by_shell = subprocess.run(["bash", "-c", f"printf %s {path}"], capture_output=True, text=True, check=True).stdout
    assert expanded(path, "c.yaml: output") == by_shell


def test_a_variable_may_begin_with_the_home() -> None:
    assert expanded("$HERE/t.pt", "c.yaml: output") == "/home/ann/work/t.pt"


@pytest.mark.parametrize("path", ["", "t.pt", "./x//y/", "a~b", "./~x", "/share/C$/x", "a$", "$1", "$/{x}", "é \n"])
def test_other_paths_stay_as_they_are(path: str) -> None:
    assert expanded(path, "c.yaml: output") == path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a/$NOWHERE/x", "the environment variable NOWHERE is not set"),
        ("${EMPTY}/x", "the environment variable EMPTY is not set"),
        ("~nobody.of.this.name/x", r"there is no user nobody\.of\.this\.name; of a file write \./~nobody"),
        ("$PRICE/x", r"is \$HOME/x, which holds another variable"),
    ],
)
def test_what_cannot_be_expanded_is_named(path: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^c\.yaml: output: .*: {message}"):
        expanded(path, "c.yaml: output")


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/old.pt", "a/old"), ("v1.0.pth", "v1.0"), ("v1.1", "v1.1"), ("a.b/c", "a.b/c"), (".pt", ".pt")],
)
def test_only_known_suffixes_are_taken_off(path: str, name: str) -> None:
    assert without_suffix(path) == Path(name)
