"""A backbone as a classifier: the label-smoothed cross-entropy (FCT, section 4.1)."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from data.images import Batch
from embedding.memory import in_parts_that_fit
from models.modes import in_eval_mode
from trainers.backbone.task import BackboneTask
from trainers.loop import Loss
from utils.precision import autocast


class Classification(BackboneTask):
    """Predict the labels; its figure is the accuracy. The model is the backbone."""

    def batches(self, epoch: int) -> Iterable[Batch]:
        return self.seeded(self.training.training_batches(epoch, self.config.dataset_params.batch_size), epoch)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        with autocast(self.precision, self.world.device):
            logits, _ = model(batch.images)
        return self.classify(logits.float(), batch.labels)

    def classify(self, logits: torch.Tensor, labels: torch.Tensor) -> Loss:
        """The loss of logits (B, C) for labels (B,), and how many of them are right."""
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        return Loss(loss, len(labels), (logits.argmax(1) == labels).sum())

    def validate(self, model: nn.Module) -> dict[str, float]:
        assert self.validation is not None
        counts = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        batches = self.validation.view_batches(0, self.world.local_batch(self.config.dataset_params.batch_size))
        with in_eval_mode(model), torch.inference_mode(), autocast(self.precision, self.world.device):
            for batch in in_parts_that_fit(batches, model, [model], self.world):
                logits, _ = model(batch.images)
                counts += torch.stack([(logits.argmax(1) == batch.labels).sum(), counts.new_tensor(len(batch.labels))])
        correct, count = self.world.sum(counts).tolist()
        return {"validation_accuracy": correct / count}
