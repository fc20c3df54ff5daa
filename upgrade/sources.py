"""Embeddings that a user brings: `.npy`, `.npz`, a folder of `.npy` arrays, a folder of shards, or a FAISS index."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from upgrade.faiss_index import SUFFIXES, open_index
from upgrade.rows import Concatenated, RowFile, Rows, archive_member
from utils.errors import UserError

UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Source:
    """Embeddings on disk, none of them read yet."""

    path: Path
    vectors: Rows  # (n, d) float16 or float32
    ids: Rows | None  # (n,) integers; None where the source has none
    labels: Rows | None = None  # (n,) integers

    def __len__(self) -> int:
        return self.vectors.shape[0]

    @property
    def dim(self) -> int:
        """The dimension d."""
        return self.vectors.shape[1]


def open_source(path: str | Path, *, where: str, ids: str | None = None) -> Source:
    """Open embeddings for reading in parts; only shapes and types are checked here.

    Args:
        path: `.npy` (n, d); `.npz` or a folder of `.npy` files with `embeddings` and perhaps `ids` and `labels`; a
            folder of shards, `.npy` or `.npz`, taken by name; a FAISS index, `.faiss` or `.index`.
        where: the config key that names it, for error messages.
        ids: an `.npy` file of ids (n,) for a source without.

    Raises:
        UserError: no such file, one that is cut short or something else, or arrays whose shapes or types do not fit.
    """
    path = Path(path)
    source = _open_folder(path, where) if path.is_dir() else _open_file(path, where)
    if ids is not None:
        if source.ids is not None:
            raise UserError(f"{where}: {path} has ids of its own; leave out the key that names {ids}")
        source = Source(path, source.vectors, _open_array(Path(ids), where), source.labels)
    _check(source, where)
    return source


def _open_folder(path: Path, where: str) -> Source:
    if (path / "embeddings.npy").exists():
        names = {name: path / f"{name}.npy" for name in ("embeddings", "ids", "labels")}
        arrays = {name: _open_array(file, where) for name, file in names.items() if file.exists()}
        return Source(path, arrays["embeddings"], arrays.get("ids"), arrays.get("labels"))
    files = sorted(file for file in path.iterdir() if file.suffix in (".npy", ".npz") and file.name[0] != ".")
    if not files:
        raise UserError(f"{where}: {path} holds neither embeddings.npy nor shards (.npy, .npz)")
    shards = [_open_file(file, where) for file in files]
    first = shards[0]
    for shard in shards:
        _check(shard, where)
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


def _open_file(path: Path, where: str) -> Source:
    if not path.is_file():
        raise UserError(f"{where}: there is no {path}")
    if path.suffix in SUFFIXES:
        vectors, ids = open_index(path, where)
        return Source(path, vectors, ids)
    if path.suffix == ".npz":
        try:
            arrays = {name: archive_member(path, name) for name in ("embeddings", "ids", "labels")}
        except UNREADABLE as error:
            raise UserError(f"{where}: {path} cannot be read: {_one_line(error)}") from None
        if arrays["embeddings"] is None:
            raise UserError(f"{where}: {path} has no array `embeddings`")
        return Source(path, arrays["embeddings"], arrays["ids"], arrays["labels"])
    if path.suffix == ".npy":
        return Source(path, _open_array(path, where), None)
    raise UserError(f"{where}: {path} should be .npy, .npz, a folder, or a FAISS index ({', '.join(SUFFIXES)})")


def _open_array(path: Path, where: str) -> RowFile:
    try:
        return RowFile.open(path)
    except UNREADABLE as error:
        raise UserError(f"{where}: {path} cannot be read, it may be cut short: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _check(source: Source, where: str) -> None:
    vectors = source.vectors
    if len(vectors.shape) != 2 or vectors.dtype not in (np.float16, np.float32):
        raise UserError(
            f"{where}: {source.path}: embeddings should be (n, d) float16 or float32, "
            f"got {vectors.shape} {vectors.dtype}"
        )
    if 0 in vectors.shape:
        raise UserError(f"{where}: {source.path} is empty, its embeddings are {vectors.shape}")
    for name, rows in (("ids", source.ids), ("labels", source.labels)):
        if rows is not None and (rows.shape != (len(source),) or rows.dtype.kind not in "iu"):
            raise UserError(
                f"{where}: {source.path}: {name} should be ({len(source)},) whole numbers, "
                f"got {rows.shape} {rows.dtype}"
            )


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
        content = json.loads(file.read_text(encoding="utf-8"))
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
