"""A backbone as a classifier: the label-smoothed cross-entropy (FCT, section 4.1)."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from data.images import Batch, ImageSet
from embedding.memory import in_parts_that_fit
from models.resnet import ResNet
from trainers.backbone.config import BackboneConfig
from trainers.loop import Step
from utils.distributed import World
from utils.precision import Resolved, autocast


class Classification:
    """A `BackboneObjective`: predict the labels; its figure is the accuracy."""

    def __init__(
        self,
        model: ResNet,
        config: BackboneConfig,
        training: ImageSet,
        validation: ImageSet,
        precision: Resolved,
        world: World,
    ) -> None:
        self.module: nn.Module = model
        self.config, self.precision, self.world = config, precision, world
        self.training, self.validation = training, validation

    def batches(self, epoch: int) -> Iterable[Batch]:
        return self.training.training_batches(epoch, self.config.dataset_params.batch_size)

    def step(self, model: nn.Module, batch: Batch) -> Step:
        with autocast(self.precision, self.world.device):
            logits, _ = model(batch.images)
        return self.classify(logits.float(), batch.labels)

    def classify(self, logits: torch.Tensor, labels: torch.Tensor) -> Step:
        """The loss of logits (B, C) for labels (B,), and how many of them are right."""
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        return Step(loss, len(labels), (logits.argmax(1) == labels).sum())

    def validate(self) -> dict[str, float]:
        counts = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        batch_size = self.world.local_batch(self.config.dataset_params.batch_size)
        with torch.inference_mode(), autocast(self.precision, self.world.device):
            batches = self.validation.view_batches(0, batch_size)
            for batch in in_parts_that_fit(batches, self.module, [self.module], self.world):
                logits, _ = self.module(batch.images)
                counts += torch.stack([(logits.argmax(1) == batch.labels).sum(), counts.new_tensor(len(batch.labels))])
        correct, count = self.world.sum(counts).tolist()
        return {"validation_accuracy": correct / count}
