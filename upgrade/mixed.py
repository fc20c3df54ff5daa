"""A gallery that is itself in the middle of an upgrade when the next model comes: each row goes on from where it is.

What the old model has re-embedded goes through the transformation as ever. The rest is behind: it goes through a
transformation of its own from the vectors of the model before, where these are named, and else through both in turn.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

from data.items import Array
from data.sources.embeddings import Source
from data.sources.lance_tables import READY, state_of
from data.sources.rows import in_memory
from models.transformed import Transformation
from upgrade.columns import digest_of, values
from upgrade.config import UpgradeConfig
from upgrade.durable import Unsynced
from upgrade.old import BEHIND, Behind, Chunk, Old, read_checked, source_hashes
from upgrade.table import Table
from utils.errors import UserError, said

GAUGED_ROWS = 1000  # by which it is seen how far a transformation spreads what it is given


def open_gallery(config: UpgradeConfig) -> Table:
    """The table of the upgrade to the old model, which is only read.

    Raises:
        UserError: it is none, is not finished, or is of another model.
    """
    path = config.gallery
    try:
        dataset = lance.dataset(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"gallery: {path} cannot be opened ({said(error)})") from None
    content = state_of(dataset.schema.metadata)
    if content is None:
        raise UserError(f"gallery: {path} is a Lance table, but not one of an upgrade; name it as a `store`")
    if content["stage"] != READY:
        raise UserError(f"gallery: {path} is not fully transformed yet; finish that upgrade's transform first")
    if content["new_model"] != config.old_model:
        raise UserError(f"gallery: {path} is of {content['new_model']}, not of old_model: {config.old_model}")
    if config.ids is not None:
        raise UserError(f"gallery: {path} has ids of its own; leave out `ids`")
    return Table(str(path), dataset, Unsynced(None))


def old_table(table: Table, side_info: Source | None, earlier: Old | None) -> Old:
    """The gallery in a table of an upgrade, by rising ids, which are in memory.

    Args:
        table: as `open_gallery` gives it.
        side_info: of its items, if the transformation takes such.
        earlier: the vectors that it was made from, by rising ids, if they go through a transformation of their own.

    Raises:
        UserError: the side-information is of other items.
    """
    state, name, all_ids = table.state, f"gallery: {table.uri}", table.all_ids()
    columns = ["embedding", "batch", "source_hash", "sigma"]
    columns += [column for column in ("label", "calibration") if column in table.schema.names]
    if side_info is not None:
        ordered = Source(Path(table.uri), in_memory(all_ids[:, None]), in_memory(all_ids))
        side_info = side_info.in_order_of(ordered, "side_info")

    def read(rows: int, start: int, stop: int | None, after: Any) -> Iterator[Chunk]:
        following = None if earlier is None else _Following(earlier, rows, table)
        start = start if after is None else int(np.searchsorted(all_ids, after, side="right"))
        for part in table.in_order(columns, rows, ids=all_ids[start:stop]):
            ids, vectors = values(part["id"]), values(part["embedding"]).astype(np.float32)
            behind = np.flatnonzero(values(part["batch"]) == 0)
            hashes = source_hashes(vectors) & ~BEHIND
            hashes[behind] = values(part["source_hash"])[behind] | BEHIND
            yield Chunk(
                start,
                ids,
                vectors,
                values(part["label"]) if table.has_labels else None,
                None if side_info is None else read_checked(side_info.vectors, "side_info", start, start + len(ids)),
                hashes,
                _behind(part.take(behind), behind, table, following),
            )
            start += len(ids)

    return Old(
        name=name,
        identity=table.uri,
        rows=len(all_ids),
        without=0,
        dim=state.dim,
        id_type=table.schema.field("id").type,
        has_labels=table.has_labels,
        unit=state.normalised,
        side_dim=None if side_info is None else side_info.dim,
        read=read,
        digest=lambda: digest_of(all_ids),
        earlier=earlier,
    )


def _behind(part: pa.Table, rows: Array, table: Table, following: "_Following | None") -> Behind:
    """What is known of the rows of a chunk that are not re-embedded."""
    if following is not None:
        vectors, side_info = following.take(values(part["id"]), values(part["source_hash"]))
        return Behind(rows, vectors, side_info)
    state = table.state
    sigma = values(part["sigma"]) if state.has_sigma else None
    if "calibration" in part.column_names:
        return Behind(rows, sigma=sigma, calibration=values(part["calibration"]))
    value = None if state.calibration is None else np.full(len(rows), state.calibration["value"], np.float32)
    return Behind(rows, sigma=sigma, calibration=value)


class _Following:
    """Vectors of a gallery by rising ids, for some of these ids, which rise too.

    Args:
        old: the gallery.
        rows: that are read at a time.
        table: that was made from it.
    """

    def __init__(self, old: Old, rows: int, table: Table) -> None:
        self.old, self.table, self.chunks = old, table, old.chunks(rows)
        self.chunk: Chunk | None = None

    def take(self, ids: Array, hashes: Array) -> tuple[Array, Array | None]:
        """The vectors (m, d) of items, and their side-information, if any.

        Raises:
            UserError: an item is not there, or is not what the table has been made from.
        """
        vectors, side_info = [np.empty((0, self.old.dim), np.float32)], []
        while len(ids):
            if self.chunk is None or self.chunk.ids[-1] < ids[0]:
                self.chunk = next(self.chunks, None)
                if self.chunk is None:
                    raise UserError(f"{self.old.name}: has no item {ids[0]}, which {self.table.uri} has")
                continue
            count = int(np.searchsorted(ids, self.chunk.ids[-1], side="right"))
            place = np.searchsorted(self.chunk.ids, ids[:count])
            missing = ids[:count][self.chunk.ids[place] != ids[:count]]
            if len(missing):
                raise UserError(f"{self.old.name}: has no item {missing[0]}, which {self.table.uri} has")
            others = ids[:count][self.chunk.hashes[place] != hashes[:count]]
            if len(others):
                raise UserError(
                    f"{self.old.name}: holds another embedding of item {others[0]} than {self.table.uri} was made "
                    "from; name that gallery, or run that upgrade's transform first"
                )
            vectors.append(self.chunk.vectors[place])
            if self.chunk.side_info is not None:
                side_info.append(self.chunk.side_info[place])
            ids, hashes = ids[count:], hashes[count:]
        empty = None if self.old.side_dim is None else np.empty((0, self.old.side_dim), np.float32)
        return np.concatenate(vectors), np.concatenate(side_info) if side_info else empty


@torch.inference_mode()
def gain_of(transformation: Transformation, table: Table, side_dim: int | None, *, normalised: bool) -> float:
    """By how much a transformation spreads what it is given: the variance that comes out over that which goes in.

    Squared errors of what goes in grow by about as much. Side-information is taken to be 0.

    Args:
        transformation: in eval mode.
        table: of embeddings that it is given; some that are drawn evenly are looked at.
        side_dim: of the side-information that it takes, if any.
        normalised: whether what comes out is given the length 1.
    """
    rows = table.dataset.count_rows()
    places = np.unique(np.linspace(0, rows - 1, min(rows, GAUGED_ROWS)).astype(np.int64))
    given = torch.from_numpy(values(table.dataset.take(places, columns=["embedding"])["embedding"])).float()
    side_info = [] if side_dim is None else [torch.zeros(len(given), side_dim)]
    made = transformation(given, *side_info).embedding
    made = F.normalize(made, dim=1) if normalised else made
    spread = float(given.var(0).sum())
    return float(made.var(0).sum()) / spread if spread else 1.0
