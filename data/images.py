"""What a set of labelled images gives: normalised batches on the device, each process its own share."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from data.contrastive_views import ViewRecipe
from data.folders import ImageList, refusal
from data.preprocessing import Channels
from utils.distributed import World
from utils.errors import UserError
from utils.seeds import Stream, generator


class Batch(NamedTuple):
    """Images of one process's share of a step."""

    images: torch.Tensor  # (B, 3, H, W) float32, normalised, channels last, on the device
    labels: torch.Tensor  # (B,) int64, on the device
    indices: torch.Tensor  # (B,) int64, on the CPU: positions in the image list


class ViewPairs(NamedTuple):
    """Two random views of each image of one process's share of a step. They come without labels."""

    images: torch.Tensor  # (2 B, 3, H, W) as in a batch; rows i and B + i are views of one image


class ImageSet(Protocol):
    """The images of one split."""

    listed: ImageList  # n images
    labels: torch.Tensor  # (n,) int64, on the CPU
    classes: list[str]  # names of the classes, by label
    num_views: int | None  # of the training transform; None where they are too many to enumerate

    def __len__(self) -> int:
        """The number of images listed, n."""

    def training_batches(self, epoch: int, batch_size: int, *, keep_last: bool = False) -> Iterator[Batch]:
        """This process's share of an epoch: every image once, shuffled globally, in random views.

        A function of (seed, epoch) alone. The last global batch is left out where it is not full, unless `keep_last`.
        Each process has as many batches as the others, whatever images are unreadable.
        """

    def view_pairs(self, recipe: ViewRecipe, epoch: int, batch_size: int) -> Iterator[ViewPairs]:
        """As `training_batches`, but two views of each image that `recipe` draws in place of the set's transform."""

    def view_batches(self, view: int, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """This process's share of all images in order, in a certain view; 0 is the evaluation transform.

        Args:
            limit: at most so many images over all processes, evenly spaced.
        """


@dataclass(frozen=True)
class Feed:
    """How the images of a set become batches, whatever kind of set it is."""

    image_size: int  # pixels a side
    augmentation: str  # name of the random training transform
    mean: Channels  # of the levels, as fractions
    std: Channels
    unreadable: "Unreadable"
    world: World
    seed: int  # of the shuffling and the augmentation
    interpolation: str = "bilinear"  # or bicubic
    whole_image: bool = False  # squeezed into the square in evaluation, in place of its middle


class Unreadable:
    """The images of a set that could not be decoded: each is named once, and too many of them stop the run."""

    def __init__(self, max_share: float) -> None:
        self.max_share = max_share
        self.paths: set[Path] = set()

    def report(self, path: Path, total: int) -> None:
        """Name an unreadable image of `total`.

        Raises:
            UserError: more than the allowed share of the set is unreadable.
        """
        if path in self.paths:
            return
        self.paths.add(path)
        why = refusal(path)
        image = str(path) if why is None else f"{path} ({why})"
        print(f"unreadable image, left out ({len(self.paths)} of {total} so far): {image}", flush=True)
        if len(self.paths) > self.max_share * total:
            raise UserError(
                f"{image}: {len(self.paths)} of {total} images are unreadable, more than the share of "
                f"{self.max_share:g} that dataset_params.max_unreadable allows"
            )


def shuffled_batches(
    count: int, batch_size: int, world: World, *, seed: int, epoch: int, keep_last: bool = False
) -> list[torch.Tensor]:
    """This process's shares of an epoch's global batches: a list of index tensors, a function of (seed, epoch).

    A last batch that is not full is left out, unless it is the only one or `keep_last` says otherwise. ml-fct keeps it
    in training: of CIFAR-100's 50,000 images in batches of 1,024 it takes 49 steps an epoch, here there are 48.
    """
    world.local_batch(batch_size)
    order = torch.randperm(count, generator=generator(seed, Stream.SHUFFLE, epoch))
    batches = list(order.split(batch_size))
    if not keep_last and len(batches) > 1 and len(batches[-1]) < batch_size:
        batches.pop()
    return [batch[world.share(len(batch))] for batch in batches]


def evenly_spaced(count: int, limit: int | None, world: World) -> torch.Tensor:
    """This process's share of the positions of `count` items, or of `limit` of them that are evenly spaced."""
    chosen = count if limit is None else min(count, limit)
    return (torch.arange(chosen) * count // chosen)[world.share(chosen)]
