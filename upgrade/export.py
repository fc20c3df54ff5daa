"""Out of the table: the gallery as a file or a FAISS index, pairs to fit a transformation to, ids to re-embed next."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from lance.dataset import ColumnOrdering
from numpy.lib import format as npy
from pyarrow import parquet
from tqdm import tqdm

from data.items import Array
from data.sources.arrays import read_matrix
from data.sources.quantisation import PRECISIONS, quantised
from upgrade.columns import values
from upgrade.config import UpgradeConfig
from upgrade.inputs import open_old
from upgrade.priorities import random_bits
from upgrade.table import Table
from utils.errors import UserError, said
from utils.extras import load_extra
from utils.files import atomic_path

TRAINED_ROWS = 200_000  # by which an approximate index is trained
PAIRS = 100_000
NAMES = {"id": "ids", "embedding": "embeddings", "sigma": "sigma", "batch": "batch", "label": "labels"}
NAMES["calibration"] = "calibration"  # of each row, in a gallery that was upgraded in the middle of an upgrade


def export(table: Table, config: UpgradeConfig) -> list[str]:
    """Write what a config asks for -> a line on each.

    Raises:
        UserError: nothing is asked for, or in a form that there is none of; or the disk is full.
    """
    if config.to is None and config.pairs is None and config.next is None:
        raise UserError("to: is missing; name what to write: export --to FILE, --pairs NAME or --next FILE.npy")
    lines = []
    if config.to is not None:
        lines.append(_export_gallery(table, Path(config.to), config))
    if config.pairs is not None:
        lines += _export_pairs(table, config, config.pairs.removesuffix(".npz"), config.limit or PAIRS)
    if config.next is not None:
        lines.append(_export_next(table, Path(config.next), config.limit))
    return lines


def _export_gallery(table: Table, path: Path, config: UpgradeConfig) -> str:
    if path.suffix not in (".npz", ".parquet", ".faiss"):
        raise UserError(f"to: {path} should be .npz, .parquet or .faiss")
    if config.quantise is not None and path.suffix != ".npz":
        raise UserError(f"quantise: is for .npz, not {path}; FAISS indexes have `index`, SQ8 say")
    ranges = None if config.quantise in (None, "binary", "ubinary") else _ranges(table, config.ranges)
    with atomic_path(path) as temporary:
        if path.suffix == ".faiss":
            _write_index(temporary, table, config.index, config.seed)
        elif path.suffix == ".parquet":
            _write_parquet(temporary, table)
        else:
            _write_npz(temporary, table, config.quantise, ranges)
    calibrated = (
        " with the coordinate of the calibration" if path.suffix == ".faiss" and table.state.calibration else ""
    )
    return f"{path}: {table.dataset.count_rows():,} items{calibrated}, by rising ids"


def _columns(table: Table) -> list[str]:
    return [name for name in NAMES if name in table.schema.names and (name != "sigma" or table.state.has_sigma)]


def _parts(table: Table, columns: list[str]) -> Iterator[pa.Table]:
    with tqdm(total=table.dataset.count_rows(), desc="exporting", unit="row", leave=False, delay=1) as bar:
        for part in table.in_order([name for name in columns if name != "id"]):
            yield part.select(columns)
            bar.update(part.num_rows)


def _ranges(table: Table, path: str | None) -> Array:
    """The ranges (2, d) in a file, or those of the rows that are re-embedded."""
    if path is not None:
        ranges = read_matrix(path, "ranges", where="ranges", dim=table.state.dim).numpy()
        if len(ranges) != 2 or (ranges[0] > ranges[1]).any():
            raise UserError(f"ranges: {path}: should be (2, {table.state.dim}), the least values and then the largest")
        return ranges
    rows = table.dataset.to_batches(columns=["embedding"], filter="batch > 0")
    ends = [np.stack([found.min(0), found.max(0)]) for part in rows if len(found := values(part["embedding"]))]
    if not ends:
        raise UserError("ranges: is missing: no item is re-embedded, from whose values they could be taken")
    return np.stack([np.min(ends, 0)[0], np.max(ends, 0)[1]]).astype(np.float32)


def _write_npz(path: Path, table: Table, precision: str | None, ranges: Array | None) -> None:
    """An array at a time, a part at a time; of quantised embeddings also what their bytes mean."""
    rows, ids, dim = table.dataset.count_rows(), table.all_ids(), table.state.dim
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for column in _columns(table):
            kind = {"id": ids.dtype, "embedding": np.dtype(table.state.dtype)}
            kind |= {name: np.dtype(np.float32) for name in ("sigma", "calibration")}
            dtype = kind.get(column, np.dtype(np.int32 if column == "batch" else np.int64))
            shape = (rows, dim) if column == "embedding" else (rows,)
            packs = precision if column == "embedding" else None
            if packs is not None:
                dtype, shape = np.dtype(PRECISIONS[packs]), (rows, -(-dim // 8) if ranges is None else dim)
            header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            with archive.open(f"{NAMES[column]}.npy", "w", force_zip64=True) as member:
                npy.write_array_header_1_0(member, header)
                if column == "id":
                    member.write(ids.tobytes())
                    continue
                for part in _parts(table, ["id", column]):
                    found = values(part[column])
                    found = found if packs is None else quantised(found, packs, ranges)
                    member.write(np.ascontiguousarray(found, dtype).tobytes())
        if precision is not None:
            name, said = ("bits", np.array(dim)) if ranges is None else ("ranges", ranges)
            with archive.open(f"{name}.npy", "w") as member:
                npy.write_array(member, said)


def _write_parquet(path: Path, table: Table) -> None:
    columns = _columns(table)
    schema = pa.schema([table.schema.field(name) for name in columns]).with_metadata(None)
    with parquet.ParquetWriter(path, schema) as writer:
        for part in _parts(table, columns):
            writer.write_table(part.cast(schema))


def _write_index(path: Path, table: Table, factory: str, seed: int) -> None:
    """An `IndexIDMap2`. Vectors of length 1 are searched by inner product, others by L2."""
    faiss, state = load_extra("faiss", where="to"), table.state
    if table.has_text_ids:
        raise UserError(f"to: {path.name}: FAISS takes whole numbers alone, and the ids of {table.uri} are text")
    metric = faiss.METRIC_INNER_PRODUCT if state.normalised else faiss.METRIC_L2
    dim = state.dim + (state.calibration is not None)
    try:
        if factory == "Flat" and state.dtype == "float16":
            inner = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, metric)
        else:
            inner = faiss.index_factory(dim, factory, metric)
    except RuntimeError as error:
        raise UserError(f"index: {factory} is no index factory string of FAISS ({said(error)})") from None
    if not inner.is_trained:
        rows = table.dataset.count_rows()
        drawn = np.sort(np.random.default_rng(seed).permutation(rows)[:TRAINED_ROWS])
        try:
            inner.train(served(table, table.dataset.take(drawn, columns=served_columns(table))))
        except RuntimeError as error:
            raise UserError(f"index: {factory} cannot be trained on {len(drawn):,} rows ({said(error)})") from None
    index = faiss.IndexIDMap2(inner)
    for part in _parts(table, ["id", *served_columns(table)]):
        index.add_with_ids(served(table, part), values(part["id"]))
    faiss.write_index(index, str(path))


def served_columns(table: Table) -> list[str]:
    """What `served` needs of rows."""
    return ["embedding", "batch", *(["calibration"] if table.state.has_calibrations else [])]


def served(table: Table, part: pa.Table) -> Array:
    """Rows as they are served, (m, d) float32: with the coordinate of the calibration, if any."""
    vectors, calibration = torch.from_numpy(values(part["embedding"])).float(), table.state.calibrated()
    if calibration is not None:
        own = torch.from_numpy(values(part["calibration"])) if table.state.has_calibrations else None
        vectors = calibration.mixed(vectors, torch.from_numpy(values(part["batch"]) > 0), own)
    return vectors.numpy()


def _export_pairs(table: Table, config: UpgradeConfig, name: str, limit: int) -> list[str]:
    """Old and new embeddings of re-embedded items, evenly drawn, those that have not changed since."""
    old, counts = open_old(config), table.counts()
    share = min(1.0, limit / max(1, counts.re_embedded))
    found: dict[str, list[Array]] = {"ids": [], "old": [], "new": [], "labels": [], "side_info": []}
    with tqdm(total=old.rows, desc="gathering pairs", unit="row", unit_scale=True, leave=False, delay=1) as bar:
        for chunk in old.chunks(config.chunk_rows):
            bar.update(len(chunk.ids))
            drawn = np.flatnonzero(random_bits(chunk.ids, config.seed + 1_000_003) < share)
            if chunk.behind is not None:  # not of the old model
                drawn = np.setdiff1d(drawn, chunk.behind.rows)
            place, rows = table.lookup(chunk.ids[drawn], ["embedding", "batch", "source_hash"])
            drawn, place = drawn[place >= 0], place[place >= 0]
            if not len(drawn):
                continue
            kept = values(rows["batch"])[place] > 0
            kept &= values(rows["source_hash"])[place] == chunk.hashes[drawn]
            drawn, place = drawn[kept], place[kept]
            parts: dict[str, Any] = {"ids": chunk.ids, "old": chunk.vectors}
            parts |= {"labels": chunk.labels, "side_info": chunk.side_info}
            for key, part in parts.items():
                if part is not None:
                    found[key].append(part[drawn])
            if len(drawn):
                found["new"].append(values(rows["embedding"])[place])
    arrays = {key: np.concatenate(parts) for key, parts in found.items() if parts}
    if not len(arrays.get("ids", [])):
        of_which = "" if table.state.earlier is None else f" of {table.state.old_model} and {table.state.new_model}"
        raise UserError(f"output: {table.uri}: no item is re-embedded, so that there are no pairs{of_which}")
    shared: dict[str, Any] = {key: arrays[key] for key in ("ids", "labels") if key in arrays}
    for role in ("old", "new", "side_info"):
        if role in arrays:
            with atomic_path(Path(f"{name}_{role}.npz")) as temporary, temporary.open("wb") as file:
                np.savez(file, **(shared | {"embeddings": arrays[role]}))
    side = f" side_info={name}_side_info.npz" if "side_info" in arrays else ""
    return [
        f"{name}_old.npz, {name}_new.npz: {len(arrays['ids']):,} pairs; fit to them, and transform again:",
        f"  python fit_embeddings.py --config configs/fit_embeddings.yaml old={name}_old.npz new={name}_new.npz{side} "
        "output=FILE.pt",
    ]


def _export_next(table: Table, path: Path, limit: int | None) -> str:
    """The ids that are not re-embedded, the highest priority first."""
    order = [ColumnOrdering("priority", ascending=False), ColumnOrdering("id")]
    found = table.dataset.to_table(columns=["id"], filter="priority IS NOT NULL", order_by=order, limit=limit)
    if not found.num_rows and table.dataset.count_rows("batch = 0"):
        raise UserError(f"output: {table.uri} has no plan yet; run `upgrade_gallery.py plan` first")
    ids = values(found["id"]) if found.num_rows else table.all_ids()[:0]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, ids)
    return f"{path}: {len(ids):,} ids to re-embed, the first of the plan first"
