"""Where a transformation's training samples come from: old, side-information and new embeddings of the same view."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import nn

from data.images import ImageSet, shuffled_batches
from models.embedding import embed
from trainers.extraction import embed_images
from utils.distributed import World
from utils.precision import autocast, resolve_precision
from utils.schema import Precision, TransformationConfig
from utils.seeds import generator


class PairBatch(NamedTuple):
    """Embeddings of one process's share of a step, float32."""

    old: torch.Tensor  # (B, d_old)
    side_info: torch.Tensor | None  # (B, d_side); None: the transformation takes the old embedding twice
    new: torch.Tensor  # (B, d_new)
    labels: torch.Tensor  # (B,) int64


class Pairs(Protocol):
    """A source of paired embeddings."""

    def __len__(self) -> int:
        """Items in an epoch, over all processes."""

    def batches(self, epoch: int) -> Iterator[PairBatch]:
        """This process's share of an epoch, a function of (seed, epoch) alone."""


class CachedPairs:
    """Every view embedded once: exact where the training transform has a finite number of views."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        images: ImageSet,
        *,
        batch_size: int,
        precision: Precision,
        world: World,
        seed: int,
    ) -> None:
        assert images.num_views is not None
        self.batch_size, self.world, self.seed = batch_size, world, seed
        self.views: list[dict[str, torch.Tensor]] = []  # by view: name -> (m, d)
        positions = torch.empty(0, dtype=torch.int64)
        for view in range(images.num_views):
            title = f"embedding view {view + 1} of {images.num_views}"
            embedded, positions = embed_images(
                models, images, view, batch_size=batch_size, precision=precision, world=world, title=title
            )
            # A clone outside inference mode, so that autograd takes it as an input.
            self.views.append({name: output.embedding.clone() for name, output in embedded.items()})
        self.labels = images.labels[positions].to(world.device)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, epoch: int) -> Iterator[PairBatch]:
        views = torch.randint(len(self.views), (len(self),), generator=generator(self.seed, epoch, 1))
        for rows in shuffled_batches(len(self), self.batch_size, self.world, seed=self.seed, epoch=epoch):
            view_of, rows = views[rows].to(self.world.device), rows.to(self.world.device)
            batch = {name: self._take(name, rows, view_of) for name in self.views[0]}
            yield PairBatch(batch["old"], batch.get("side_info"), batch["new"], self.labels[rows])

    def _take(self, name: str, rows: torch.Tensor, view_of: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, d) of the items `rows` (B,), each in its own view (B,)."""
        taken = self.views[0][name][rows]
        for view in range(1, len(self.views)):
            taken = torch.where((view_of == view).unsqueeze(1), self.views[view][name][rows], taken)
        return taken


class StreamedPairs:
    """The frozen models run on every batch of every epoch: for transforms that hardly ever draw a view twice."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        images: ImageSet,
        *,
        batch_size: int,
        precision: Precision,
        world: World,
    ) -> None:
        self.models, self.images, self.batch_size, self.world = models, images, batch_size, world
        self.precision = resolve_precision(precision, world.device)

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, epoch: int) -> Iterator[PairBatch]:
        for batch in self.images.training_batches(epoch, self.batch_size):
            with torch.no_grad(), autocast(self.precision, self.world.device):
                embedded = {name: embed(model, batch.images).embedding for name, model in self.models.items()}
            yield PairBatch(embedded["old"], embedded.get("side_info"), embedded["new"], batch.labels)


def build_pairs(models: Mapping[str, nn.Module], images: ImageSet, config: TransformationConfig, world: World) -> Pairs:
    """Cached pairs where the training transform has few views, else pairs streamed from the images every epoch."""
    batch_size, precision = config.dataset_params.batch_size, config.precision
    if config.cache_embeddings == "off" or images.num_views is None:
        if world.is_main:
            print("embedding every epoch: the frozen models run on every batch", flush=True)
        return StreamedPairs(models, images, batch_size=batch_size, precision=precision, world=world)
    return CachedPairs(models, images, batch_size=batch_size, precision=precision, world=world, seed=config.seed)
