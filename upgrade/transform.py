"""The first step: old embeddings through the transformation, chunk by chunk, into a gallery of the new space."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from models.folding import folded
from upgrade.config import UpgradeConfig
from upgrade.gallery import TRANSFORMED, Gallery, locked, remove
from upgrade.inputs import Inputs, memory_named, open_inputs, read_checked
from upgrade.lookup import write_ids
from upgrade.manifest import Manifest, difference, read_manifest
from upgrade.rows import Array, RowFile, check_finite, parts_of
from upgrade.served_index import INDEX, write_index
from upgrade.sources import MANIFEST
from upgrade.spaces import are_zero, unit_rows
from upgrade.transactions import finish_pending
from utils.distributed import World
from utils.errors import UserError
from utils.files import sync, write_json
from utils.precision import Resolved
from utils.provenance import timestamp

PROGRESS, CHUNKS = "progress", "chunks.json"
ZEROS = ".zeros"  # a file beside a chunk's progress, where rows of it are zero
CPU_BATCH, GPU_BATCH = 1024, 2**18  # rows through the transformation at a time: hidden layers that fit the cache


def transform_gallery(config: UpgradeConfig, world: World) -> Manifest:
    """Transform the gallery of a config into its output folder, or go on with that; nothing is done twice.

    Returns:
        The manifest of the finished gallery.

    Raises:
        UserError: inputs that cannot be read or do not fit together, rows that are not finite, an output folder that
            holds something else, is in use or is another upgrade, or a full disk.
    """
    inputs = open_inputs(config, world)
    folder = Path(config.output)
    with ExitStack() as held:
        if world.is_main:
            _check_folder(folder)
            held.enter_context(locked(folder))
            finish_pending(folder)
            _prepare(folder, inputs)
        world.barrier()
        manifest = read_manifest(folder, "output")
        if manifest.stage == "transforming":
            _transform_chunks(folder, replace(inputs, manifest=manifest), world)
            world.barrier()
            if world.is_main:
                manifest = _finish(folder, manifest)
    return manifest


def _check_folder(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in (MANIFEST, "lock")):
        raise UserError(f"output: {folder} holds other files; name a new folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output: {folder} is a file; name a new folder")


def _prepare(folder: Path, inputs: Inputs) -> None:
    """Make the files of the gallery, with their room on the disk; the manifest comes last and says that they are."""
    manifest = inputs.manifest
    if (folder / MANIFEST).exists():
        differs = difference(read_manifest(folder, "output"), manifest)
        if differs is not None:
            raise UserError(
                f"output: {folder} is another upgrade: {differs}; name a new folder, or roll it back to old"
            )
        return
    n = manifest.rows
    try:
        RowFile.create(folder / "embeddings.npy", (n, manifest.dim), manifest.dtype)
        RowFile.create(folder / "state.npy", (n,), np.uint8)
        if manifest.has_sigma:
            RowFile.create(folder / "sigma.npy", (n,), np.float32)
        write_ids(folder, inputs.old, n)
        remove(folder / PROGRESS)
        (folder / PROGRESS).mkdir()
        manifest.write(folder)
    except (OSError, UserError):
        remove(folder)
        raise
    sync(folder)


def _transform_chunks(folder: Path, inputs: Inputs, world: World) -> None:
    """This process's share of the chunks that are not done yet."""
    manifest = inputs.manifest
    chunks = list(enumerate(parts_of(manifest.rows, manifest.chunk_rows)))
    missing = [chunk for chunk in chunks if not progress_file(folder, chunk[0]).exists()]
    world.barrier()  # before any process makes chunks that another would not count
    mine = missing[world.share(len(missing))]
    embeddings = RowFile.open(folder / "embeddings.npy")
    sigma = RowFile.open(folder / "sigma.npy") if manifest.has_sigma else None

    def keep(chunk: Chunk) -> int:
        embeddings.write(chunk.start, chunk.vectors)
        if sigma is not None and chunk.log_variance is not None:
            sigma.write(chunk.start, chunk.log_variance)
        if len(chunk.zeros):
            zeros = {"count": len(chunk.zeros), "first": int(chunk.zeros[0])}
            write_json(progress_file(folder, chunk.number).with_suffix(ZEROS), zeros)
        write_json(progress_file(folder, chunk.number), hashlib.sha256(chunk.vectors.tobytes()).hexdigest())
        return len(chunk.vectors)

    total = sum(stop - start for _, (start, stop) in mine)
    hidden = None if world.is_main else True
    # One chunk is read and one written while another is computed.
    with (
        tqdm(total=total, desc="transforming", unit="row", unit_scale=True, leave=False, disable=hidden) as bar,
        ThreadPoolExecutor(1) as writer,
    ):
        written: Future[int] | None = None
        where = f"transformation_path: {manifest.origin.transformation}"
        for chunk in transformed_chunks(inputs, mine, where, world.device):
            if written is not None:
                bar.update(written.result())
            written = writer.submit(keep, chunk)
        if written is not None:
            bar.update(written.result())


class Chunk(NamedTuple):
    """What a transformation makes of successive rows."""

    number: int
    start: int  # the first row
    vectors: Array  # (m, d)
    log_variance: Array | None  # (m,), if there is such
    zeros: Array  # (k,) the rows whose old embedding is zero, and so the new one


def transformed_chunks(
    inputs: Inputs, chunks: list[tuple[int, tuple[int, int]]], where: str, device: torch.device
) -> Iterator[Chunk]:
    """Each of the chunks (number, (start, stop)), transformed. The next one is read in the meantime.

    Args:
        inputs: the transformation is moved to the device.
        chunks: of rows.
        where: names the transformation in error messages.
        device: to compute on.

    Raises:
        UserError: inputs or outputs that are not finite, inputs whose length is no longer 1, or too little memory.
    """
    manifest = inputs.manifest
    precision: Resolved = "bf16" if manifest.precision == "bf16" else "fp32"
    with ThreadPoolExecutor(1) as reader, memory_named():
        module = folded(inputs.transformation, precision).to(device)
        for number, start, chunk in _read_ahead(inputs, chunks, reader):
            named = f"{where} of {inputs.old.path}"
            vectors, log_variance = transform_rows(module, chunk, manifest, device, named, start)
            yield Chunk(number, start, vectors, log_variance, start + np.flatnonzero(are_zero(chunk[0])))


def digest_of(hashes: list[str]) -> str:
    """One hash of the chunks' hashes."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def progress_file(folder: Path, chunk: int) -> Path:
    """Where a chunk's hash stands once the chunk is on the disk."""
    return folder / PROGRESS / f"{chunk:06d}.json"


def _read_ahead(
    inputs: Inputs, chunks: list[tuple[int, tuple[int, int]]], reader: ThreadPoolExecutor
) -> Iterator[tuple[int, int, list[Array]]]:
    """The (number, first row, inputs) of each chunk, checked; the next one is read in the meantime."""

    def read(start: int, stop: int) -> list[Array]:
        return [
            read_checked(source, where, start, stop, unit=unit and inputs.manifest.origin.normalised)
            for where, source, unit in (("gallery", inputs.old, True), ("side_info", inputs.side_info, False))
            if source is not None
        ]

    following: Future[list[Array]] | None = None
    for index, (number, (start, stop)) in enumerate(chunks):
        chunk = read(start, stop) if following is None else following.result()
        following = reader.submit(read, *chunks[index + 1][1]) if index + 1 < len(chunks) else None
        yield number, start, chunk


@torch.inference_mode()
def transform_rows(
    module: nn.Module, inputs: list[Array], manifest: Manifest, device: torch.device, where: str, first_row: int
) -> tuple[Array, Array | None]:
    """Old embeddings and perhaps side-information -> embeddings (m, d) as the gallery keeps them, and sigma (m,).

    A zero old embedding becomes a zero one: it stands for nothing in either space.

    Args:
        module: a transformation on the device, `folded` or not.
        inputs: old embeddings (m, d_old) and, if there is such, side-information (m, d_side).
        manifest: tells the type and whether the embeddings have length 1.
        device: of the module.
        where: names the transformation and what it is applied to, in error messages.
        first_row: the number of the first row, there.

    Raises:
        UserError: an embedding is not finite, or beyond what the gallery's type can hold.
    """
    embeddings = np.empty((len(inputs[0]), manifest.dim), manifest.dtype)
    sigma = np.empty(len(inputs[0]), np.float32) if manifest.has_sigma else None
    for start, stop in parts_of(len(embeddings), CPU_BATCH if device.type == "cpu" else GPU_BATCH):
        batch = [torch.from_numpy(values[start:stop]).to(device).float() for values in inputs]
        output = module(*batch)
        vectors = output.embedding.float()
        if manifest.normalised:
            vectors = unit_rows(vectors)
        embeddings[start:stop] = vectors.to(torch.float16 if manifest.dtype == "float16" else torch.float32).cpu()
        if not np.isfinite(embeddings[start:stop]).all():
            exact = vectors.cpu().numpy()
            check_finite(exact, where, first_row + start)
            row = first_row + start + np.flatnonzero(~np.isfinite(embeddings[start:stop]).all(1))[0]
            raise UserError(f"{where}: row {row} holds values beyond 65504, the largest of float16; set dtype=float32")
        if sigma is not None:
            sigma[start:stop] = output.log_variance.float().mean(1).cpu()
    embeddings[are_zero(inputs[0])] = 0
    return embeddings, sigma


def _finish(folder: Path, manifest: Manifest) -> Manifest:
    """All chunks are there: write the index, and the manifest that says so."""
    chunks = range(len(list(parts_of(manifest.rows, manifest.chunk_rows))))
    hashes = [json.loads(progress_file(folder, chunk).read_text()) for chunk in chunks]
    write_json(folder / CHUNKS, hashes)
    gallery = Gallery(folder, manifest)
    if manifest.has_index:
        temporary = folder / f".{INDEX}.tmp"
        write_index(temporary, gallery, gallery.rows("embeddings"))
        temporary.replace(folder / INDEX)
    last: dict[str, Any] = {"step": "transform", "at": timestamp(), "rows": manifest.rows}
    zeros = [json.loads(path.read_text()) for path in sorted((folder / PROGRESS).glob(f"*{ZEROS}"))]
    if zeros:
        last |= {"zero_rows": sum(part["count"] for part in zeros), "first_zero_row": zeros[0]["first"]}
    ready = replace(manifest, stage="ready", transformed_sha256=digest_of(hashes), last=last)
    ready.write(folder)
    remove(folder / PROGRESS)
    return ready


assert TRANSFORMED == 0  # state.npy is made of zeros
