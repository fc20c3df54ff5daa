"""Splitting a batch where memory asks for it."""

from typing import Any


def split_batch(batch: Any, size: int | None) -> list[tuple[Any, int]]:
    """Split a named tuple of tensors (B, ...), or None, into parts of at most `size` rows -> (part, its rows)."""
    rows = len(next(field for field in batch if field is not None))
    if size is None or rows <= size:
        return [(batch, rows)]
    columns = [[None] * -(-rows // size) if field is None else field.split(size) for field in batch]
    counts = [min(size, rows - start) for start in range(0, rows, size)]
    return [(type(batch)(*fields), count) for *fields, count in zip(*columns, counts, strict=True)]
