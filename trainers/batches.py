"""Batches on their way into the loop: split where memory asks for it, and watched for the loss of their makers."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from utils.errors import UserError

ItemT = TypeVar("ItemT")


def split_batch(batch: Any, size: int | None) -> list[tuple[Any, int]]:
    """Split a named tuple of tensors (B, ...), or None, into parts of at most `size` rows -> (part, its rows)."""
    rows = len(next(field for field in batch if field is not None))
    if size is None or rows <= size:
        return [(batch, rows)]
    columns = [[None] * -(-rows // size) if field is None else field.split(size) for field in batch]
    counts = [min(size, rows - start) for start in range(0, rows, size)]
    return [(type(batch)(*fields), count) for *fields, count in zip(*columns, counts, strict=True)]


def watch_workers(batches: Iterable[ItemT]) -> Iterator[ItemT]:
    """Pass batches on.

    Raises:
        UserError: a process that decodes images was killed.
    """
    try:
        yield from batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that decodes images died ({str(error).splitlines()[0]});\n"
            "too little memory is the usual reason: lower dataset_params.num_workers, and run the same command again"
        ) from error
