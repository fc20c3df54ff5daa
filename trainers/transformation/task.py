"""Training a transformation h(old, side-information) -> new (FCT, section 4.2; FastFill, section 4)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from models.modes import in_eval_mode
from models.transformed import Transformation
from trainers.loop import HELD_OUT, Loss
from trainers.transformation.config import FitConfig, TransformationConfig
from trainers.transformation.losses import TransformationObjective
from trainers.transformation.mixup import mixed
from trainers.transformation.pairs import Epochs, PairBatch
from utils.batches import check_parts, share_of_batch, split_batch
from utils.distributed import World
from utils.precision import Resolved, autocast


@dataclass
class TransformationTask:
    """A `trainers.loop.Task`: h(old, side-information) of paired embeddings.

    Raises:
        UserError: the batch is too small for batch normalisation, or the number of processes does not divide it.
    """

    transformation: Transformation
    objective: TransformationObjective  # L; goes to the device
    pairs: Epochs  # what is trained on
    config: TransformationConfig | FitConfig
    precision: Resolved
    world: World
    held_out: PairBatch | None = None  # not trained on, the same on every process
    score: Callable[[], tuple[str, float]] | None = None  # of retrieval with them: its name and value

    def __post_init__(self) -> None:
        self.objective.to(self.world.device)
        self.items, self.params = len(self.pairs), self.config.loop
        self.share = self.world.local_batch(self.params.batch_size, self.config.BATCH_SIZE)
        has_batch_norm = any(isinstance(module, nn.BatchNorm1d) for module in self.transformation.modules())
        check_parts(
            self.items,
            self.params.batch_size,
            None,
            self.world,
            key=self.config.BATCH_SIZE,
            trains_on_one=lambda: not has_batch_norm,
        )

    def batches(self, epoch: int) -> Iterator[PairBatch]:
        """This process's batches, mixed where the config says so."""
        if self.config.mixup is None:
            return self.pairs.batches(epoch)
        draws = {"seed": self.config.seed, "epoch": epoch, "rank": self.world.rank}
        return mixed(self.pairs.batches(epoch), self.config.mixup, self.objective.num_classes, **draws)

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        """Train mode; from half-way on `switch_mode_to_eval` freezes the BN statistics, not the weights."""
        model.train(not (self.config.switch_mode_to_eval and epoch >= self.params.epochs / 2))

    def loss(self, model: nn.Module, batch: PairBatch) -> Loss:
        """L of a batch."""
        with autocast(self.precision, self.world.device):
            transformed = model(batch.old, batch.side_info)
        return Loss(self.objective(transformed, batch.new, batch.labels), len(batch.labels))

    def validate(self, model: nn.Module) -> dict[str, float]:
        """L of the held-out pairs, if there are any, as they are: not mixed; and the score that there is of them."""
        if self.held_out is None:
            return {}
        sums = torch.zeros(2, dtype=torch.float64, device=self.world.device)  # loss, items
        own: PairBatch = share_of_batch(self.held_out, self.world)
        with in_eval_mode(model), torch.no_grad():
            # A contrast depends on the number of items, so the parts are as large as the batches.
            for part, count in split_batch(own, self.share):
                if count:  # or there are more processes than pairs
                    sums[0] += self.loss(model, part).mean.double() * count
                    sums[1] += count
        loss, count = self.world.sum(sums).tolist()  # so that all processes stop at the same epoch
        found = {HELD_OUT: loss / count}
        if self.score is not None:
            measure, value = self.score()
            found[measure] = value
        return found
