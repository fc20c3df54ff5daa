"""The columns of an image list, CSV or Parquet, as lists of texts and whole numbers."""

import csv
import difflib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from utils.errors import UserError, said
from utils.extras import load_extra

REQUIRED, OPTIONAL = ("path", "label"), ("split", "id", "group", "camera")
Value = str | int | None  # a cell: a text or a whole number; None where it is empty
Columns = dict[str, list[Value]]
ROWS_AT_A_TIME = 1 << 14


def read_columns(path: Path, where: str) -> tuple[Columns, list[str]]:
    """The columns of a list that mean something, by name, and lines for the user about columns that are not read.

    Args:
        where: the config key and the file, for error messages.

    Raises:
        UserError: it is neither CSV nor Parquet, cannot be read, is empty, or lacks `path` or `label`.
    """
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise UserError(f"{where}: should be a CSV or Parquet file, named .csv or .parquet")
    try:
        columns, unread = readers[path.suffix.lower()](path, where)
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({said(error)})") from None
    if not columns["path"]:
        raise UserError(f"{where}: has no rows")
    return columns, _about_unread(path, unread, columns)


def _read_csv(path: Path, where: str) -> tuple[Columns, list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, skipinitialspace=True, strict=True)
        rows = filter(None, lines)  # not the empty lines
        try:
            heading = [name.strip() for name in next(rows, [])]
            if not heading:
                raise UserError(f"{where}: is empty; its first line should name the columns: path,label,...")
            places = _places(heading, where)
            columns: Columns = {name: [] for name in places}
            while part := list(islice(rows, ROWS_AT_A_TIME)):
                if any(len(row) != len(heading) for row in part):
                    odd = next(row for row in part if len(row) != len(heading))
                    raise UserError(
                        f"{where}: a row has {len(odd)} cells, the heading {len(heading)}; it is {','.join(odd)[:100]}"
                    )
                cells = list(zip(*part, strict=True))
                # One object for each distinct text of a part: labels and splits are few.
                for name, place in places.items():
                    known = {text: text or None for text in cells[place]}
                    columns[name].extend(known[text] for text in cells[place])
        except UnicodeDecodeError:
            raise UserError(f"{where}: is not in UTF-8; save it as such") from None
        except csv.Error as error:
            raise UserError(f"{where}: line {lines.line_num} is no CSV ({said(error)})") from None
    return columns, [name for name in heading if name not in places]


def _read_parquet(path: Path, where: str) -> tuple[Columns, list[str]]:
    parquet = load_extra("pyarrow.parquet", where=where)
    from pyarrow import ArrowException, types

    try:
        with parquet.ParquetFile(path) as file:
            heading = list(file.schema_arrow.names)
            places = _places(heading, where)
            table = file.read(columns=list(places))
    except ArrowException as error:
        raise UserError(f"{where}: is no Parquet file ({said(error)})") from None
    columns: Columns = {}
    for name in places:
        column, kind = table.column(name), table.schema.field(name).type
        if types.is_dictionary(kind):
            kind = kind.value_type
        texts = types.is_string(kind) or types.is_large_string(kind)
        if not texts and (name == "path" or not (types.is_integer(kind) or types.is_null(kind))):
            wanted = "texts" if name == "path" else "texts or whole numbers"
            raise UserError(f"{where}: its column `{name}` is of {kind}, and should be {wanted}")
        values = column.to_pylist()
        columns[name] = [value or None for value in values] if texts else values
    return columns, [name for name in heading if name not in places]


def _places(heading: Sequence[str], where: str) -> dict[str, int]:
    """Where the columns that mean something stand; a UserError where one is missing, or there twice."""
    for name in REQUIRED:
        if name not in heading:
            near = difflib.get_close_matches(name, heading, n=1)
            hint = f"is it `{near[0]}`? " if near else ""
            raise UserError(f"{where}: has no column `{name}`; {hint}(columns: {', '.join(heading)})")
    places = {name: heading.index(name) for name in (*REQUIRED, *OPTIONAL) if name in heading}
    for name in places:
        if list(heading).count(name) > 1:
            raise UserError(f"{where}: has the column `{name}` more than once")
    return places


def _about_unread(path: Path, unread: Sequence[str], columns: Columns) -> list[str]:
    """A line for each column whose name is nearly that of an optional one that the list lacks."""
    lacking = [name for name in OPTIONAL if name not in columns]
    near = {name: difflib.get_close_matches(name.lower(), lacking, n=1) for name in unread}
    return [f"{path}: its column `{name}` is not read; `{found[0]}` would be" for name, found in near.items() if found]


def check_filled(values: Sequence[Any], name: str, where: str, rows: Sequence[int] | None = None) -> None:
    """Raise a UserError that counts the empty cells of a column and names the row of the first, from 1.

    Args:
        rows: the rows that `values` are of, from 0; all if left out.
    """
    if None in values:
        first = values.index(None)
        row = first if rows is None else rows[first]
        raise UserError(f"{where}: its column `{name}` is empty in {values.count(None):,} rows, first in row {row + 1}")
