"""Embeddings that a user brings, in any form: opened and checked, to be read in parts."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.embeddings import checked_ids
from data.items import Items, matching_rows
from data.parquet_files import natural_key
from upgrade.ends.faiss_index import SUFFIXES, open_index
from upgrade.ends.formats import ARRAYS, open_parquet, open_safetensors, open_torch
from upgrade.ends.ids import WholeNumbers, matching_keys
from upgrade.ends.rows import Concatenated, Reordered, RowFile, Rows, archive_member, parts_of
from utils.errors import UserError

UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
MANIFEST = "manifest.json"
FILES = (".npy", ".npz", ".safetensors", ".pt", ".parquet")


@dataclass(frozen=True)
class Source:
    """Embeddings on disk, none of them read yet."""

    path: Path
    vectors: Rows  # (n, d) float16 or float32
    ids: Rows | None  # (n,) int64 or text; None where the source has none
    labels: Rows | None = None  # (n,) int64

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
        labels = None if self.labels is None else Reordered(self.labels, rows)
        return Source(self.path, Reordered(self.vectors, rows), other.ids, labels)

    def _named(self, name: str) -> Items:
        return Items(name, len(self), None if self.ids is None else checked_ids(self.ids.read(0, len(self)), name))


def open_source(path: str | Path, *, where: str, ids: str | None = None, may_be_empty: bool = False) -> Source:
    """Open embeddings for reading in parts; only shapes and types are checked here.

    Args:
        path: `.npy` (n, d); `.npz`, `.safetensors`, `.pt`, `.parquet` or a folder of `.npy` files with `embeddings` and
            perhaps `ids` and `labels`; a folder of shards, any of these files, in the order of the numbers in their
            names; a FAISS index, `.faiss` or `.index`.
        where: the config key that names it, for error messages.
        ids: an `.npy` file of ids (n,) for a source without, or for a FAISS index that numbers its vectors itself.
        may_be_empty: let a source without rows pass, unchecked.

    Raises:
        UserError: no such file, one that is cut short or something else, or arrays whose shapes or types do not fit.
    """
    path = Path(path)
    source = _open_folder(path, where) if path.is_dir() else _open_file(path, where)
    if ids is not None:
        if source.ids is not None:
            given = source.ids.read(0, len(source)) if path.suffix in SUFFIXES else None
            if given is None or not np.array_equal(given, np.arange(len(source))):
                raise UserError(f"{where}: {path} has ids of its own; leave out the key that names {ids}")
        source = Source(path, source.vectors, _open_array(Path(ids), where), source.labels)
    return source if may_be_empty and _is_empty(source) else _checked(source, where)


def _open_folder(path: Path, where: str) -> Source:
    if (path / "embeddings.npy").exists():
        names = {name: path / f"{name}.npy" for name in ARRAYS}
        arrays = {name: _open_array(file, where) for name, file in names.items() if file.exists()}
        return Source(path, arrays["embeddings"], arrays.get("ids"), arrays.get("labels"))
    files = [file for file in path.iterdir() if file.suffix.lower() in FILES and file.name[0] != "."]
    if not files:
        raise UserError(f"{where}: {path} holds neither embeddings.npy nor shards ({', '.join(FILES)})")
    opened = [_open_file(file, where) for file in sorted(files, key=lambda file: natural_key(file.name))]
    shards = [_checked(shard, where) for shard in opened if not _is_empty(shard)]
    if not shards:
        return replace(opened[0], path=path)
    first = shards[0]
    for shard in shards:
        if shard.has_text_ids != first.has_text_ids:
            raise UserError(f"{where}: {shard.path} and {first.path.name}: ids are text in one, numbers in the other")
        if (shard.dim, shard.vectors.dtype) != (first.dim, first.vectors.dtype):
            raise UserError(
                f"{where}: {shard.path}: is {shard.dim}-d {shard.vectors.dtype}, "
                f"but {first.path.name} {first.dim}-d {first.vectors.dtype}"
            )
        for name in ("ids", "labels"):
            if (getattr(shard, name) is None) != (getattr(first, name) is None):
                raise UserError(f"{where}: {shard.path} and {first.path.name}: one has {name}, the other has none")
    return Source(
        path,
        Concatenated([shard.vectors for shard in shards]),
        None if first.ids is None else Concatenated([shard.ids for shard in shards if shard.ids is not None]),
        None if first.labels is None else Concatenated([shard.labels for shard in shards if shard.labels is not None]),
    )


def _is_empty(source: Source) -> bool:
    return source.vectors.shape[:1] == (0,)


def _open_file(path: Path, where: str) -> Source:
    if not path.is_file():
        raise UserError(f"{where}: there is no {path}")
    if path.suffix in SUFFIXES:
        vectors, ids = open_index(path, where)
        return Source(path, vectors, ids)
    arrays: Mapping[str, Rows | None]
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return Source(path, _open_array(path, where), None)
        if suffix == ".npz":
            arrays = {name: archive_member(path, name) for name in ARRAYS}
        elif suffix == ".safetensors":
            arrays = open_safetensors(path)
        elif suffix == ".pt":
            arrays = open_torch(path)
        elif suffix == ".parquet":
            arrays = open_parquet(path, where)
        else:
            raise UserError(f"{where}: {path} should be {', '.join(FILES + SUFFIXES)}, or a folder")
    except UNREADABLE as error:
        raise UserError(f"{where}: {path} cannot be read: {_one_line(error)}") from None
    embeddings = arrays.get("embeddings")
    if embeddings is None:
        raise UserError(f"{where}: {path} has no array `embeddings`")
    return Source(path, embeddings, arrays.get("ids"), arrays.get("labels"))


def _open_array(path: Path, where: str) -> RowFile:
    try:
        return RowFile.open(path)
    except UNREADABLE as error:
        raise UserError(f"{where}: {path} cannot be read, it may be cut short: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _checked(source: Source, where: str) -> Source:
    vectors = source.vectors
    if len(vectors.shape) != 2 or vectors.dtype not in (np.float16, np.float32):
        raise UserError(
            f"{where}: {source.path}: embeddings should be (n, d) float16 or float32, "
            f"got {vectors.shape} {vectors.dtype}"
        )
    if 0 in vectors.shape:
        raise UserError(f"{where}: {source.path} is empty, its embeddings are {vectors.shape}")
    columns = {}
    for name, rows, kinds in (("ids", source.ids, "iuU"), ("labels", source.labels, "iu")):
        if rows is not None and (rows.shape != (len(source),) or rows.dtype.kind not in kinds):
            also = "; text will do too, as ids.astype(str)" if name == "ids" else ""
            raise UserError(
                f"{where}: {source.path}: {name} should be ({len(source)},) whole numbers, "
                f"got {rows.shape} {rows.dtype}{also}"
            )
        if rows is not None and rows.dtype.kind in "iu" and rows.dtype != np.int64:
            rows = WholeNumbers(rows, f"{where}: {source.path}: {name}")
        columns[name] = rows
    return Source(source.path, vectors, columns["ids"], columns["labels"])


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
        raise UserError(f"{where}: {file} is no manifest: {_one_line(error)}") from None
    stated = (
        {name: content[name] for name in ("model", "dim", "normalised") if name in content}
        if isinstance(content, dict)
        else {}
    )
    if not stated:
        raise UserError(f"{where}: {file} is no manifest: it states neither model, dim nor normalised")
    return stated
