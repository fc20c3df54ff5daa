"""Paths as users write them: what stands in them for something else, and the names that are derived from them."""

import os
import re
from pathlib import Path

from utils.errors import UserError

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")
MODEL_SUFFIXES = (".pt", ".pth")


def expanded(path: str, where: str) -> str:
    """`path` with a leading `~` or `~USER`, and every `$NAME` or `${NAME}`, replaced as a shell does.

    Nothing is left that would be replaced again: a config that is saved means the same folders wherever it is loaded.

    Args:
        path: any other is returned as it is.
        where: the file and the key, or the flag, for error messages.

    Raises:
        UserError: a variable that is not set or is empty, which a shell would leave out, or an unknown user.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise UserError(f"{where}: {path}: the environment variable {name} is not set")
        return os.environ[name]

    result = _VARIABLE.sub(value, path)
    if result.startswith("~"):
        try:
            result = str(Path(result).expanduser())
        except RuntimeError:
            user = result[1:].partition("/")[0]
            raise UserError(f"{where}: {path}: there is no user {user}; of a file write ./{result}") from None
    if _VARIABLE.search(result):
        raise UserError(f"{where}: {path}: is {result}, which holds another variable")
    return result


def without_suffix(path: str | Path, suffixes: tuple[str, ...] = MODEL_SUFFIXES) -> Path:
    """`path` without its suffix, if that is one of `suffixes`: any other may be a part of the name.

    >>> without_suffix("old.pt").name, without_suffix("fct_v1.0").name
    ('old', 'fct_v1.0')
    """
    path = Path(path)
    return path.with_suffix("") if path.suffix in suffixes else path
