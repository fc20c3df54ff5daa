"""The files that a config names: which they are, and whether they can be read and written."""

import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from utils.errors import UserError
from utils.references import parse_reference, weights_file

PathRole = Literal["input", "output", "any", "model", "weights"]  # of a key that names a file, see `utils.config.key`


def paths(config: Any, role: Literal["input", "output"], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The (key, path) pairs of a config that name files which the run reads or writes, as its schema declares."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from paths(value, role, f"{prefix}{field.name}.")
        elif value is not None and (file := _file_of(value, field.metadata.get("path"), role)) is not None:
            yield prefix + field.name, file


def _file_of(value: str, declared: PathRole | None, role: Literal["input", "output"]) -> str | None:
    """The file that a value names, where a key of the role `declared` is a path in `role`; None: it names none."""
    if role == "input" and declared == "model":
        return parse_reference(value).file
    if role == "input" and declared == "weights":
        return weights_file(value)
    return value if declared == role else None


def check_outputs(config: Any) -> None:
    """Check, before any work, that there is or can be a folder for every file which the config writes.

    Raises:
        UserError: naming the key, the path and the folder in which nothing can be written.
    """
    for name, path in paths(config, "output"):
        folder = Path(path).absolute()
        folder = folder if folder.is_dir() else folder.parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            reason = "may not be written to" if folder.is_dir() else "is no folder"
            raise UserError(f"{name}: {path} cannot be written: {folder} {reason}")


def check_inputs(config: Any, source: str | Path) -> None:
    """Check, before any work, that every file which the config reads is there.

    Raises:
        UserError: naming the key and the path.
    """
    for name, path in paths(config, "input"):
        if not Path(path).exists():
            raise UserError(f"{source}: {name}: there is no {path}")
