"""The training loop that backbones and transformations share: epochs, progress, log, checkpoint, resume."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from utils.distributed import World
from utils.errors import UserError
from utils.runs import Run

BatchT = TypeVar("BatchT")
REFRESH_SECONDS = 0.5  # between looks at the loss: each waits for the device


class Step(NamedTuple):
    """What one step found, on the device."""

    loss: torch.Tensor  # () mean over this process's part of the batch
    items: int  # in that part
    correct: torch.Tensor | None = None  # () rightly classified items; None where nothing is classified


class Trainer(Generic[BatchT]):
    """Trains `model` for `epochs` epochs.

    Args:
        model: what is trained; on the device.
        optimizer: over its parameters.
        schedule: epoch -> learning rate.
        epochs: in all, those before a resumption included.
        items: in an epoch, over all processes; for the progress bar.
        batches: epoch -> this process's batches. A function of its argument, so that a resumed run equals another.
        step: (model, batch) -> loss; runs the forward pass through the model given, which is the data-parallel one.
        run: config, log and checkpoint on disk.
        world: the processes.
        set_mode: called with (model, epoch) before each; train mode by default.
        validate: called after an epoch for further values of its log record.
        find_unused_parameters: some parameters have no part in the loss (data parallelism must know).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        *,
        epochs: int,
        items: int,
        batches: Callable[[int], Iterable[BatchT]],
        step: Callable[[nn.Module, BatchT], Step],
        run: Run,
        world: World,
        set_mode: Callable[[nn.Module, int], object] = lambda model, epoch: model.train(),
        validate: Callable[[int], dict[str, float]] = lambda epoch: {},
        find_unused_parameters: bool = False,
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.epochs, self.items, self.batches, self.step = epochs, items, batches, step
        self.run, self.world, self.set_mode, self.validate = run, world, set_mode, validate
        self.parallel = model
        if world.size > 1:
            self.parallel = DistributedDataParallel(model, find_unused_parameters=find_unused_parameters)

    def fit(self) -> None:
        """Train to the last epoch, from the last checkpoint where there is one.

        Raises:
            UserError: the loss is not finite, or there is no image to train on.
        """
        history = self._restore()
        with self._progress(len(history)) as bar:
            for epoch in range(len(history), self.epochs):
                record = self._train_epoch(epoch, bar)
                record.update(self.validate(epoch))
                history.append(record)
                self.run.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, history)

    def _restore(self) -> list[dict[str, Any]]:
        restored = self.run.restore()
        if restored is None:
            return []
        state, history = restored
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.world.is_main:
            print(f"resuming after epoch {len(history)} of {self.epochs} ({self.run.checkpoint_path})", flush=True)
        return history

    @contextmanager
    def _progress(self, epochs_done: int) -> Iterator[tqdm]:
        with tqdm(
            total=self.epochs * self.items,
            initial=epochs_done * self.items,
            unit="img",
            unit_scale=True,
            disable=not self.world.is_main,
            mininterval=REFRESH_SECONDS,
        ) as bar:
            yield bar

    def _train_epoch(self, epoch: int, bar: tqdm) -> dict[str, Any]:
        lr = self.schedule(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.set_mode(self.parallel, epoch)
        # Sums over this process's items: loss, items, right ones. Kept on the device: reading them waits for it.
        sums = torch.zeros(3, dtype=torch.float64, device=self.world.device)
        started = refreshed = time.perf_counter()
        unseen, steps, classified = 0, 0, False
        for steps, batch in enumerate(self.batches(epoch), start=1):
            self.optimizer.zero_grad(set_to_none=True)
            step = self.step(self.parallel, batch)
            step.loss.backward()
            self.optimizer.step()
            classified = step.correct is not None
            sums[0] += step.loss.detach() * step.items
            sums[1] += step.items
            if step.correct is not None:
                sums[2] += step.correct
            unseen += step.items * self.world.size
            if time.perf_counter() - refreshed > REFRESH_SECONDS:
                refreshed = time.perf_counter()
                self._refresh(bar, unseen, sums, epoch, steps, classified)
                unseen = 0
        if steps == 0:
            raise UserError(f"epoch {epoch + 1}: there is no image to train on")
        self._refresh(bar, unseen, sums, epoch, steps, classified)
        loss, count, correct = self.world.sum(sums).tolist()
        seconds = time.perf_counter() - started
        record = {"epoch": epoch + 1, "lr": lr, "loss": loss / count}
        if classified:
            record["accuracy"] = correct / count
        return {**record, "images_per_second": round(count / seconds, 1), "seconds": round(seconds, 2)}

    def _refresh(self, bar: tqdm, new_items: int, sums: torch.Tensor, epoch: int, steps: int, classified: bool) -> None:
        """Look at the sums: move the bar, and stop where the loss is not finite."""
        loss, count, correct = sums.tolist()
        mean = loss / count
        if not abs(mean) < float("inf"):
            good = (
                f"the last good checkpoint is {self.run.checkpoint_path} (epoch {epoch})"
                if epoch
                else "no checkpoint yet"
            )
            raise UserError(
                f"the loss is not finite by step {steps} of epoch {epoch + 1}; {good}; lower the learning rate"
            )
        accuracy = f", accuracy {correct / count:.1%}" if classified else ""
        bar.set_description_str(f"epoch {epoch + 1}/{self.epochs}", refresh=False)
        bar.set_postfix_str(f"loss {mean:.4f}{accuracy}", refresh=False)
        bar.update(new_items)
