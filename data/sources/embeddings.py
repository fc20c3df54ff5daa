"""Embeddings of items in any form: opened and checked, to be read in parts."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.items import Array, Items, matching_rows
from data.sources.arrays import open_arrays
from data.sources.formats import LONE
from data.sources.ids import check_kind, checked_ids, int64_or_texts, matching_keys
from data.sources.lance_tables import CALIBRATION, RE_EMBEDDED
from data.sources.parquet_files import SEVERAL_VECTORS
from data.sources.quantisation import dequantised, is_quantised
from data.sources.rows import Rows, converted, parts_of, reordered, whole
from utils.errors import UserError

MANIFEST = "manifest.json"
COLUMNS = ("ids", "labels", "cameras", "sigma")
OF_UPGRADES = (RE_EMBEDDED, CALIBRATION)  # columns that are no arrays of other files


@dataclass(frozen=True)
class Source:
    """Embeddings on disk, none of them read yet."""

    path: Path
    vectors: Rows  # (n, d) float16 or float32
    ids: Rows | None = None  # (n,) whole numbers or text; None where the source has none
    labels: Rows | None = None  # (n,) whole numbers
    cameras: Rows | None = None  # (n,) whole numbers
    sigma: Rows | None = None  # (n,) or (n, d) floating point
    re_embedded: Rows | None = None  # (n,) bool, of a gallery in the middle of its upgrade
    calibration: Rows | None = None  # (n,) float32, of one whose items have one each

    def __len__(self) -> int:
        return self.vectors.shape[0]

    @property
    def dim(self) -> int:
        """The dimension d."""
        return self.vectors.shape[1]

    @property
    def has_text_ids(self) -> bool:
        """Whether its ids are text."""
        return self.ids is not None and self.ids.dtype.kind == "U"

    def first_dimensions(self, dim: int, *, unit: bool) -> "Source":
        """With the first dimensions of its vectors alone, as of a Matryoshka model; of length 1 again where `unit`."""

        def cut(vectors: Array) -> Array:
            prefix = vectors[:, :dim]
            if not unit:
                return prefix
            length = np.linalg.norm(prefix.astype(np.float32), axis=1, keepdims=True)
            return prefix / np.where(length, length, 1)  # a zero vector stays zero

        kind = np.dtype(np.float32) if unit else self.vectors.dtype
        return replace(self, vectors=converted(self.vectors, cut, kind, (dim,)))

    def in_order_of(self, other: "Source", where: str) -> "Source":
        """The same items in the order of another source: by id where both have ids, by place where neither has.

        Where the orders differ, some 50 bytes an item are in memory while they are compared, and then 8; texts are
        there as a whole only where the items differ.

        Raises:
            UserError: they are of different items, see `matching_rows`.
        """
        if self.ids is not None and other.ids is not None and len(self) == len(other):
            pairs = ((self.ids.read(*part), other.ids.read(*part)) for part in parts_of(len(self)))
            if all(np.array_equal(ids, others) for ids, others in pairs):
                return self
        rows = matching_keys(self.ids, other.ids)
        if rows is None:
            rows = matching_rows(other._named(str(other.path)), self._named(f"{where}: {self.path}"))
        if rows is None:
            return self
        labels = None if self.labels is None else reordered(self.labels, rows)
        return Source(self.path, reordered(self.vectors, rows), other.ids, labels)

    def _named(self, name: str) -> Items:
        return Items(name, len(self), None if self.ids is None else checked_ids(whole(self.ids), name))


def open_source(path: str | Path, *, where: str, ids: str | None = None, may_be_empty: bool = False) -> Source:
    """Open embeddings for a gallery, whose ids and labels are int64 or text.

    Args:
        path: as `open_embeddings`.
        where: the config key that names it, for error messages.
        ids: an `.npy` file of ids (n,) for a source without.
        may_be_empty: let a source without rows pass, unchecked.

    Raises:
        UserError: as `open_embeddings`; reading does where an id or a label is 2^63 or more.
    """
    source = open_embeddings(path, where=where, may_be_empty=may_be_empty)
    if ids is not None:
        if source.ids is not None:
            raise UserError(f"{where}: {path} has ids of its own; leave out the key that names {ids}")
        arrays = open_arrays(ids, ["ids"], where=where)
        if not arrays:
            raise UserError(f"{where}: {ids} has no array `ids`")
        source = replace(source, ids=next(iter(arrays.values())))
        _check_columns(source, f"{where}: {ids}")
    where = f"{where}: {path}"
    ids_read, labels = (
        None if rows is None else int64_or_texts(rows, f"{where}: {name}")
        for name, rows in (("ids", source.ids), ("labels", source.labels))
    )
    return replace(source, ids=ids_read, labels=labels)


def open_embeddings(path: str | Path, *, where: str, may_be_empty: bool = False) -> Source:
    """Open embeddings for reading in parts; only shapes and types are checked here.

    Args:
        path: a file, folder or table of `open_arrays`, with `embeddings` (or the only array of a file) and perhaps
            `ids`, `labels`, `cameras` and `sigma`.
        where: the config key that names it, for error messages.
        may_be_empty: let a source without rows pass, unchecked.

    Raises:
        UserError: as `open_arrays`; no item, or arrays whose shapes or types do not fit.
    """
    arrays = open_arrays(path, ("embeddings", *COLUMNS), where=where)
    named, where = arrays.get("embeddings", arrays.get(LONE)), f"{where}: {path}"
    if named is None:
        raise UserError(f"{where} has no array `embeddings`")
    if may_be_empty and named.shape[:1] == (0,):
        return Source(Path(path), named)
    if 0 in named.shape:
        raise UserError(f"{where} is empty, its embeddings are {named.shape}")
    if len(named.shape) == 3:
        raise UserError(f"{where}: embeddings are {named.shape}: {SEVERAL_VECTORS}")
    if is_quantised(named):
        named = dequantised(named, {}, where)  # which says what is missing
    if named.dtype.kind == "f" and named.dtype not in (np.float16, np.float32):
        named = converted(named, lambda values: values.astype(np.float32), np.float32)
    source = Source(Path(path), named, **{name: arrays.get(name) for name in (*COLUMNS, RE_EMBEDDED)})
    if len(named.shape) != 2 or named.dtype.kind != "f":
        raise UserError(f"{where}: embeddings should be (n, d) floating point, got {named.shape} {named.dtype}")
    _check_columns(source, where)
    return source


def _check_columns(source: Source, where: str) -> None:
    for name in COLUMNS:
        rows = getattr(source, name)
        if rows is None:
            continue
        if rows.shape[:1] != (len(source),):
            raise UserError(f"{where}: {name} is {rows.shape}, embeddings {source.vectors.shape}")
        if name != "sigma":
            check_kind(name, rows, where)
        elif len(rows.shape) > 2 or rows.dtype.kind != "f":
            raise UserError(f"{where}: sigma should be (n,) or (n, d) floating point log variances")


def stated_space(path: Path, where: str) -> dict[str, object]:
    """What the manifest beside embeddings says of them: some of `model`, `dim`, `normalised`; empty without one.

    It is `manifest.json` in a folder, `FILE.manifest.json` beside a file.

    Raises:
        UserError: it is not JSON, or states none of the three.
    """
    file = path / MANIFEST if path.is_dir() else path.with_name(f"{path.name}.{MANIFEST}")
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{where}: {file} is no manifest: {reason}") from None
    names = ("model", "dim", "normalised")
    stated = {name: content[name] for name in names if name in content} if isinstance(content, dict) else {}
    if not stated:
        raise UserError(f"{where}: {file} is no manifest: it states neither model, dim nor normalised")
    return stated
