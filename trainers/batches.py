"""Parts of a batch: such as fit into memory, and a process's own."""

from typing import Any

from utils.distributed import World


def split_batch(batch: Any, size: int | None) -> list[tuple[Any, int]]:
    """Split a named tuple of tensors (B, ...), or None, into parts of at most `size` rows -> (part, its rows)."""
    rows = len(next(field for field in batch if field is not None))
    if size is None or rows <= size:
        return [(batch, rows)]
    columns = [[None] * -(-rows // size) if field is None else field.split(size) for field in batch]
    counts = [min(size, rows - start) for start in range(0, rows, size)]
    return [(type(batch)(*fields), count) for *fields, count in zip(*columns, counts, strict=True)]


def share_of_batch(batch: Any, world: World) -> Any:
    """This process's rows of a named tuple of tensors (B, ...), or None, that every process has."""
    rows = world.share(len(next(field for field in batch if field is not None)))
    return type(batch)(*(None if field is None else field[rows] for field in batch))
