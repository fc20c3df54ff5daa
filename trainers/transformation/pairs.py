"""Where a transformation's training samples come from: old, side-information and new embeddings of the same view."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import nn

from data.images import ImageSet, shuffled_batches
from data.preprocessing import Preprocessing
from embedding.cache import EmbeddingCache
from models.embedding import embed
from trainers.transformation.config import HowToFit, TransformationConfig
from utils.distributed import World
from utils.errors import UserError
from utils.precision import Resolved, autocast
from utils.seeds import Stream, generator


class PairBatch(NamedTuple):
    """Embeddings of one process's share of a step, float32."""

    old: torch.Tensor  # (B, d_old)
    side_info: torch.Tensor | None  # (B, d_side); None: the transformation takes the old embedding twice
    new: torch.Tensor  # (B, d_new)
    labels: torch.Tensor  # (B,) int64, negative where there is none; of mixed items shares of classes (B, C)


class Epochs(Protocol):
    """A source of paired embeddings to train on."""

    def __len__(self) -> int:
        """Items in an epoch, over all processes."""

    def batches(self, epoch: int) -> Iterator[PairBatch]:
        """This process's share of an epoch, a function of (seed, epoch) alone."""


class Pairs(Epochs, Protocol):
    """A source of paired embeddings for any way to fit a transformation."""

    def views_once(self) -> Iterator[PairBatch]:
        """This process's share of every view of every item, each once; of an epoch where the views are too many."""


class View(NamedTuple):
    """Embeddings of one view of every image, on the device. A row is the same image in each of several views."""

    embeddings: dict[str, torch.Tensor]  # role -> (m, d)
    labels: torch.Tensor  # (m,) int64, negative where there is none

    def rows(self, kept: torch.Tensor) -> "View":
        """That of the images in rows `kept` (k,)."""
        return View({role: table[kept] for role, table in self.embeddings.items()}, self.labels[kept])


class PairsInMemory:
    """Views that are embedded: where they are `exhaustive` each epoch draws one for each item, else they take turns."""

    def __init__(
        self, views: Sequence[View], *, batch_size: int, world: World, seed: int, exhaustive: bool = True
    ) -> None:
        self.views, self.exhaustive = views, exhaustive
        self.batch_size, self.world, self.seed = batch_size, world, seed

    def __len__(self) -> int:
        return len(self.views[0].labels)

    def batches(self, epoch: int) -> Iterator[PairBatch]:
        view = self._mixed(epoch) if self.exhaustive else self.views[epoch % len(self.views)]
        shares = shuffled_batches(len(view.labels), self.batch_size, self.world, seed=self.seed, epoch=epoch)
        for rows in [share.to(self.world.device) for share in shares]:  # all of them now: a copy waits for the device
            yield self._batch(view, rows)

    def views_once(self) -> Iterator[PairBatch]:
        for view in self.views:
            share = self.world.share(len(view.labels))
            for start in range(share.start, share.stop, self.batch_size):
                yield self._batch(view, slice(start, min(start + self.batch_size, share.stop)))

    def set_aside(self, share: float) -> PairBatch:
        """Take a share of the items, drawn by the seed, out of the training for good -> their first view."""
        order = torch.randperm(len(self), generator=generator(self.seed, Stream.HELD_OUT))
        count = max(1, round(share * len(self)))
        held, kept = (rows.sort().values.to(self.world.device) for rows in (order[:count], order[count:]))
        first = self._batch(self.views[0], held)
        self.views = [view.rows(kept) for view in self.views]
        return first

    def _batch(self, view: View, rows: torch.Tensor | slice) -> PairBatch:
        batch = {role: embeddings[rows].float() for role, embeddings in view.embeddings.items()}
        return PairBatch(batch["old"], batch.get("side_info"), batch["new"], view.labels[rows])

    def _mixed(self, epoch: int) -> View:
        """Every item in a view drawn for it, the same for every model."""
        drawn = torch.randint(len(self.views), (len(self),), generator=generator(self.seed, Stream.AUGMENT, epoch))
        mixed, drawn = dict(self.views[0].embeddings), drawn.to(self.world.device).unsqueeze(1)
        for number, view in enumerate(self.views[1:], start=1):
            for role, embeddings in view.embeddings.items():
                mixed[role] = torch.where(drawn == number, embeddings, mixed[role])
        return View(mixed, self.views[0].labels)


def embedded_pairs(
    models: Mapping[str, nn.Module],
    images: ImageSet,
    cache: EmbeddingCache,
    *,
    batch_size: int,
    seed: int,
    drawn_views: int | None,
    precision: Resolved,
    world: World,
) -> PairsInMemory:
    """Every image embedded once in every view of the training transform, or in those of `drawn_views` random epochs.

    They are the images that could be read in every view.
    """
    count = drawn_views or images.num_views or 0
    views: list[View] = []
    of_views: list[torch.Tensor] = []  # positions of each view's rows in the image list, ascending
    for view in range(count):
        if drawn_views is None:
            title, batches = "view", images.view_batches(view, world.local_batch(batch_size))
        else:
            title = f"view of every image drawn by seed {seed},"
            batches = images.training_batches(view, batch_size, keep_last=True)
        embeddings, positions = cache.embed(
            models,
            batches,
            view=f"{title} {view + 1} of {count}",
            total=len(range(len(images))[world.share(len(images))]),
            precision=precision,
        )
        views.append(View(embeddings, images.labels[positions].to(world.device)))
        of_views.append(positions)
    common = of_views[0]  # an image may have become unreadable between two views
    for positions in of_views[1:]:
        common = common[torch.isin(common, positions)]
    views = [
        view if torch.equal(positions, common) else view.rows(torch.searchsorted(positions, common).to(world.device))
        for view, positions in zip(views, of_views, strict=True)
    ]
    return PairsInMemory(views, batch_size=batch_size, world=world, seed=seed, exhaustive=drawn_views is None)


@dataclass(frozen=True)
class StreamedPairs:
    """The frozen models run on every batch of every epoch: for transforms that hardly ever draw a view twice."""

    models: Mapping[str, nn.Module]
    images: ImageSet
    batch_size: int
    precision: Resolved
    world: World

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, epoch: int) -> Iterator[PairBatch]:
        for batch in self.images.training_batches(epoch, self.batch_size):
            with torch.no_grad(), autocast(self.precision, self.world.device):
                embedded = {name: embed(model, batch.images).embedding for name, model in self.models.items()}
            yield PairBatch(embedded["old"], embedded.get("side_info"), embedded["new"], batch.labels)

    def views_once(self) -> Iterator[PairBatch]:
        return self.batches(0)


def build_pairs(
    models: Mapping[str, nn.Module],
    images: ImageSet,
    config: TransformationConfig,
    precision: Resolved,
    world: World,
    *,
    hashes: Mapping[str, str],
    seen: Preprocessing | None = None,
) -> Pairs:
    """Embedded pairs where the transform has few views or the config says how many to draw, else streamed ones.

    Of few views each epoch draws one for each item, as the transform would; drawn ones take turns.

    Args:
        models: role -> frozen model.
        hashes: role -> hash of the model, by which its embeddings are kept for other runs.
        seen: how `images` are prepared; None: as the config alone says.
    """
    batch_size = config.dataset_params.batch_size
    drawn_views = config.cached_views if images.num_views is None else None
    if config.cache_embeddings == "off" or (images.num_views is None and drawn_views is None):
        if world.is_main:
            print("embedding every epoch: the frozen models run on every batch", flush=True)
        return StreamedPairs(models, images, batch_size, precision, world)
    if world.is_main:
        number = f"all {images.num_views}" if drawn_views is None else f"{drawn_views} randomly drawn"
        print(f"embedding once: {number} views of each image", flush=True)
    beside = Path(config.output_transformation_path).parent / "embeddings"
    folder = None if config.cache_embeddings == "memory" else Path(config.embeddings_dir or beside)
    cache = EmbeddingCache.of(config.dataset_params, hashes, folder, precision, world, seen)
    return embedded_pairs(
        models,
        images,
        cache,
        batch_size=batch_size,
        seed=config.seed,
        drawn_views=drawn_views,
        precision=precision,
        world=world,
    )


def hold_out(pairs: Pairs, params: HowToFit) -> PairBatch | None:
    """Take what a refinement and a calibration are chosen on out of `pairs`, before any training; None for neither.

    Raises:
        UserError: the pairs are not kept.
    """
    if not params.kept_from_training:
        return None
    if not isinstance(pairs, PairsInMemory):
        key = "calibration_held_out" if params.refinement_params is None else "refinement_params"
        raise UserError(
            f"{key}: needs embeddings that are computed once; set cached_views, and leave cache_embeddings=off out"
        )
    return pairs.set_aside(params.kept_from_training)
