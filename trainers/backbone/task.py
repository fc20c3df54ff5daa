"""What the tasks of a backbone have in common: images, and how they are run."""

from dataclasses import dataclass

from torch import nn

from data.images import ImageSet
from trainers.backbone.config import BackboneConfig
from utils.distributed import World
from utils.precision import Resolved


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

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        model.train()
