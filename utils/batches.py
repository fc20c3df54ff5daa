"""Parts of a batch: such as fit into memory, and a process's own."""

from collections.abc import Callable
from typing import Any

from utils.distributed import World
from utils.errors import UserError


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


def check_parts(
    items: int,
    batch_size: int,
    micro_batch: int | None,
    world: World,
    *,
    key: str,
    trains_on_one: Callable[[], bool],
) -> None:
    """Check, before any training, that batch normalisation gets two items in every forward pass, if it needs them.

    Args:
        items: in an epoch, over all processes.
        batch_size: items a step, over all processes; a last batch that is not full is left out, unless it is the only.
        micro_batch: items a forward pass of a process; None: all of its share.
        key: of the batch size in the config.
        trains_on_one: whether one item would do.

    Raises:
        UserError: a process gets no item, or one too few.
    """
    of_step = min(items, batch_size)
    shares = {of_step // world.size, -(-of_step // world.size)}  # the parts of World.share
    size = micro_batch or batch_size
    smallest = min(share % size or min(share, size) for share in shares)
    if smallest > 1 or (smallest == 1 and trains_on_one()):
        return
    if min(shares) > 1:
        raise UserError(
            f"micro_batch: parts of {size} of a process's {max(shares)} images leave one of a single image, and batch "
            f"normalisation needs 2; choose one that divides {max(shares)}"
        )
    raise UserError(
        f"{key}: {of_step} items a step over {world.size} processes leave one with {min(shares)}, and batch "
        "normalisation needs 2; "
        + (f"take at least {2 * world.size}" if items >= batch_size else "there are no more, so use fewer processes")
    )
