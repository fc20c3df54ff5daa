"""Imports run one way: scripts -> upgrade, suites -> trainers, evaluation -> embedding -> models, data -> utils."""

import ast
from pathlib import Path

import pytest

from tests.tiny import REPOSITORY

MAY_IMPORT = {
    "utils": set(),
    "models": {"utils"},
    "data": {"utils"},
    "retrieval": {"utils"},
    "embedding": {"models", "data", "utils"},
    "evaluation": {"embedding", "retrieval", "models", "data", "utils"},
    "trainers": {"embedding", "models", "data", "utils"},
    "suites": {"trainers", "evaluation", "embedding", "retrieval", "models", "data", "utils"},
    "upgrade": {"trainers", "retrieval", "models", "data", "utils"},
    "benchmarks": {"upgrade", "trainers", "embedding", "retrieval", "models", "data", "utils"},
}
SCRIPTS = {path.stem for path in REPOSITORY.glob("*.py")}


def imports(path: Path) -> set[str]:
    """The top-level names of all modules that a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    files = list((REPOSITORY / room).rglob("*.py"))
    assert files
    for path in files:
        inside = imports(path) & (MAY_IMPORT.keys() | SCRIPTS | {"tests"})
        assert inside <= MAY_IMPORT[room] | {room}, path
