"""Embeddings of training images, computed once: rounded to half precision, and kept on disk for other runs."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data.config import DatasetParams
from data.datasets import list_split, resolve_preprocessing
from data.embeddings import EmbeddingSet, read_embeddings, write_embeddings
from data.images import Batch
from data.preprocessing import Preprocessing
from embedding.extraction import embed_images
from utils.data_roots import digest, image_files
from utils.distributed import World
from utils.errors import UserError
from utils.precision import Resolved
from utils.runs import decisive_values

HALF_TOLERANCE = 2.0**-10  # of an embedding's norm: what rounding it may change


def rounded(embeddings: torch.Tensor) -> torch.Tensor:
    """Embeddings (n, d) as float16; as they are where that would change one by more than `HALF_TOLERANCE`."""
    half = embeddings.half()
    change = (half.float() - embeddings).norm(dim=1)
    return half if bool((change <= HALF_TOLERANCE * embeddings.norm(dim=1)).all()) else embeddings


def _files(params: DatasetParams) -> Iterator[tuple[str, int, int]]:
    """(name, bytes, time of its last change in ns) of the files that training images are read from."""
    if params.list_path is not None:
        return list_split(params, "training").files(params.data_root)
    return ((name, status.st_size, status.st_mtime_ns) for name, status in image_files(params.data_root))


@dataclass(frozen=True)
class EmbeddingCache:
    """A folder of embedding folders, each named by the hash of all that its content depends on.

    `read` and `write` without a `folder` find and keep nothing.
    """

    folder: Path | None
    source: str  # what all entries of this run depend on
    model_hashes: Mapping[str, str]  # by role
    world: World

    @classmethod
    def of(
        cls,
        params: DatasetParams,
        hashes: Mapping[str, str],
        folder: Path | None,
        precision: Resolved,
        world: World,
        seen: Preprocessing | None = None,
    ) -> "EmbeddingCache":
        """The cache of a run on the training images that `params` names.

        Args:
            hashes: role -> hash of the model.
            seen: how the images are prepared; None: as `params` alone says.
            folder: where embeddings are kept for other runs; None: nowhere.
        """
        if folder is None:
            return cls(None, "", hashes, world)
        files = digest(_files(params))
        arithmetic = [precision, world.device.type, world.size, torch.__version__]
        stated = resolve_preprocessing(params)
        by_models = [] if seen in (None, stated) else [asdict(seen)]
        source = json.dumps([decisive_values(params), files, arithmetic, *by_models], sort_keys=True)
        return cls(folder, source, hashes, world)

    def embed(
        self, models: Mapping[str, nn.Module], batches: Iterable[Batch], *, view: str, total: int, precision: Resolved
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Embed `batches` with those models whose embeddings are not here yet.

        Args:
            models: role -> frozen model.
            batches: this process's share of the images; used only if needed.
            view: tells these batches from others of the same images; also the title of the progress bar.
            total: images in `batches`.

        Returns:
            role -> rounded embeddings (m, d) of all processes on the device, and the positions (m,) of the images in
            their list, ascending, on the CPU.

        Raises:
            UserError: what is kept of one model is of other images than what is kept or computed of another.
        """
        found = {role: self._read(role, view) for role in models}
        missing = {role: model for role, model in models.items() if found[role] is None}
        if missing:
            embedded, positions = embed_images(
                missing, batches, total=total, precision=precision, world=self.world, title=f"embedding {view}"
            )
            order = positions.argsort()
            for role, output in embedded.items():
                found[role] = EmbeddingSet(
                    rounded(output.embedding[order.to(output.embedding.device)]), positions[order].numpy()
                )
            if self.world.is_main:
                self._write({role: found[role] for role in missing}, view)
        complete = {role: items for role, items in found.items() if items is not None}
        ids = next(iter(complete.values())).ids
        if ids is None or any(items.ids is None or not np.array_equal(items.ids, ids) for items in complete.values()):
            raise UserError(f"embeddings_dir: {self.folder} was filled while other images were readable; delete it")
        # A copy: out of inference mode, so that autograd takes it, and out of the memory map.
        embeddings = {role: items.embeddings.to(self.world.device, copy=True) for role, items in complete.items()}
        return embeddings, torch.from_numpy(ids)

    def _path(self, role: str, view: str) -> Path | None:
        key = hashlib.sha256(json.dumps([self.source, self.model_hashes[role], view]).encode()).hexdigest()
        return None if self.folder is None else self.folder / key[:32]

    def _read(self, role: str, view: str) -> EmbeddingSet | None:
        """What is kept, where every process can read it."""
        path, items = self._path(role, view), None
        if path is not None and path.is_dir():
            try:
                items = read_embeddings(path, where="embeddings_dir")
            except UserError:  # damaged: made anew
                if self.world.is_main:
                    shutil.rmtree(path, ignore_errors=True)
        return None if self.world.any(items is None) else items

    def _write(self, items: Mapping[str, EmbeddingSet | None], view: str) -> None:
        for role, embedded in items.items():
            path = self._path(role, view)
            if path is None or embedded is None:
                continue
            try:
                write_embeddings(path, embedded)
            except (OSError, UserError):
                if not path.is_dir():  # or a run beside this one has written the same
                    raise
