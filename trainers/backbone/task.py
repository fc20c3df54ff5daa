"""What the tasks of a backbone have in common: images, and how they are run."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from data.images import ImageSet
from trainers.backbone.config import BackboneConfig
from utils.distributed import World
from utils.precision import Resolved
from utils.seeds import Stream, seed_of

BatchT = TypeVar("BatchT")


@dataclass
class BackboneTask:
    """A part of a `trainers.loop.Task`, of images.

    Args:
        training: what is trained on.
        validation: images of the trained classes, for the figures in the log; None where `validate` is never called.
    """

    config: BackboneConfig
    training: ImageSet
    validation: ImageSet | None
    precision: Resolved
    world: World

    @property
    def items(self) -> int:
        return len(self.training)

    def seeded(self, batches: Iterable[BatchT], epoch: int) -> Iterator[BatchT]:
        """`batches` of an epoch, before each of which what a network draws (dropout) is seeded anew.

        So the masks of a step are a function of (seed, epoch, step, process), and a resumed run draws them again.
        """
        for step, batch in enumerate(batches):
            torch.manual_seed(seed_of(self.config.seed, Stream.DROPOUT, epoch, step, self.world.rank))
            yield batch

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        model.train()
