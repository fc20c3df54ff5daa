"""The training loop that backbones and transformations share: epochs, progress, log, checkpoint, resume."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from trainers.acceleration import maybe_compiled
from trainers.config import Compile
from utils.batches import split_batch
from utils.distributed import World
from utils.errors import UserError
from utils.precision import kernels
from utils.preemption import Preempted, Preemption
from utils.runs import Run

BatchT = TypeVar("BatchT", bound=tuple[torch.Tensor | None, ...])
HELD_OUT = "held_out_loss"  # in a log record: what early stopping looks at
TRAINING = ("loss", "accuracy")  # in a log record: what the bar shows
REFRESH_SECONDS = 0.5  # between looks at the loss: each waits for the device


class Step(NamedTuple):
    """What one forward pass found, on the device."""

    loss: torch.Tensor  # () mean over this process's part of the batch
    items: int  # in that part
    correct: torch.Tensor | None = None  # () rightly classified items; None where nothing is classified


@dataclass
class EpochSoFar:
    """What a checkpoint in the middle of an epoch must know beside the weights."""

    sums: torch.Tensor  # (3,) of this process: loss, items, right ones; on the device, as reading them waits for it
    steps: int = 0
    seconds: float = 0.0
    classified: bool = False  # whether the steps count right ones


class Trainer(Generic[BatchT]):
    """Trains `model` for `epochs` epochs.

    Args:
        model: what is trained; on the device.
        optimizer: over its parameters.
        schedule: epoch -> learning rate.
        epochs: in all, those before a resumption included.
        items: in an epoch, over all processes; for the progress bar.
        batch_size: items a step, over all processes.
        batches: epoch -> this process's batches. A function of its argument, so that a resumed run equals another.
        step: (model, batch) -> loss; runs the forward pass through the model given, which is the data-parallel one.
        run: config, log and checkpoint on disk.
        world: the processes.
        preemption: asks the loop to stop after a step.
        micro_batch: items a forward pass of this process; the gradients of a larger batch are accumulated.
        compilation: whether torch.compile makes the forward and backward pass.
        set_mode: called with (model, epoch) before each; train mode by default.
        validate: called after an epoch for further values of its log record, which are also shown.
        patience: end after so many epochs without a smaller `HELD_OUT`, a value that `validate` then gives, and with
            the weights that had the smallest; None: train to the last epoch, whose weights are the model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        *,
        epochs: int,
        items: int,
        batch_size: int,
        batches: Callable[[int], Iterable[BatchT]],
        step: Callable[[nn.Module, BatchT], Step],
        run: Run,
        world: World,
        preemption: Preemption,
        micro_batch: int | None = None,
        compilation: Compile = "off",
        set_mode: Callable[[nn.Module, int], object] = lambda model, epoch: model.train(),
        validate: Callable[[int], dict[str, float]] = lambda epoch: {},
        patience: int | None = None,
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.epochs, self.items, self.batches, self.step = epochs, items, batches, step
        self.run, self.world, self.preemption = run, world, preemption
        self.micro_batch, self.set_mode, self.validate = micro_batch, set_mode, validate
        self.patience = patience
        self.best: dict[str, torch.Tensor] = {}  # weights, where there is patience
        self.parallel = model
        if world.size > 1:
            self.parallel = DistributedDataParallel(model)
        self.forward = maybe_compiled(self.parallel, compilation, world, steps=epochs * items // batch_size)

    def fit(self) -> None:
        """Train to the last epoch, from the last checkpoint where there is one.

        Raises:
            UserError: the loss is not finite, there is no image to train on, or a process that decodes images died.
            Preempted: SIGTERM came; the step was finished and the checkpoint written.
        """
        history, so_far = self._restore()
        self.preemption.defer()
        with self._progress(len(history)) as bar:
            for epoch in range(len(history), self.epochs):
                if self._has_lost_patience(history):
                    break
                with kernels(self.world.device, fast=True):
                    record = self._train_epoch(epoch, so_far, history, bar)
                self.world.share_buffers(self.model)  # so that what is validated is what is saved
                so_far = self._new_epoch()
                found = self.validate(epoch)
                shown = {**found, **({n: record[n] for n in TRAINING if n in record} if bar.disable else {})}
                record.update(found)
                if shown and self.world.is_main:
                    figures = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in shown.items()]
                    tqdm.write(f"epoch {epoch + 1}: {', '.join(figures)}")
                history.append(record)
                if self.patience is not None and best_epoch(history) == epoch:
                    self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
                self._save(history, so_far)
        if self.best:
            self.model.load_state_dict(self.best)

    def _has_lost_patience(self, history: list[dict[str, Any]]) -> bool:
        return self.patience is not None and bool(history) and len(history) - 1 - best_epoch(history) >= self.patience

    def _train_epoch(self, epoch: int, so_far: EpochSoFar, history: list[dict[str, Any]], bar: tqdm) -> dict[str, Any]:
        lr = self.schedule(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.set_mode(self.forward, epoch)
        started = refreshed = time.perf_counter() - so_far.seconds
        unseen = 0
        # The batches before a checkpoint are drawn again and passed over, so that the same ones follow.
        for batch in islice(self.batches(epoch), so_far.steps, None):
            self.optimizer.zero_grad(set_to_none=True)
            for step in self._accumulate(batch):
                so_far.sums[0] += step.loss.detach() * step.items
                so_far.sums[1] += step.items
                if step.correct is not None:
                    so_far.classified = True
                    so_far.sums[2] += step.correct
                unseen += step.items * self.world.size
            self.optimizer.step()
            so_far.steps += 1
            stop = self.world.any(self.preemption.requested)
            if stop or time.perf_counter() - refreshed > REFRESH_SECONDS:
                refreshed = time.perf_counter()
                self._refresh(bar, unseen, so_far, epoch)
                unseen = 0
            if stop:
                so_far.seconds = time.perf_counter() - started
                self._stop(history, so_far)
        if so_far.steps == 0:
            raise UserError(f"epoch {epoch + 1}: there is no image to train on")
        self._refresh(bar, unseen, so_far, epoch)
        loss, count, correct = self.world.sum(so_far.sums).tolist()
        seconds = time.perf_counter() - started
        record = {"epoch": epoch + 1, "lr": lr, "loss": loss / count}
        if so_far.classified:
            record["accuracy"] = correct / count
        return {**record, "images_per_second": round(count / seconds, 1), "seconds": round(seconds, 2)}

    def _accumulate(self, batch: BatchT) -> Iterator[Step]:
        """Add the gradients of the mean loss over `batch`, one part that fits into memory after another."""
        parts = split_batch(batch, self.micro_batch)
        items = sum(count for _, count in parts)
        for number, (part, count) in enumerate(parts, start=1):
            with nullcontext() if number == len(parts) else self._without_exchange():
                step = self.step(self.forward, part)
                (step.loss * (count / items)).backward()
            yield step

    def _without_exchange(self) -> AbstractContextManager[None]:
        """A context in which processes keep their gradients to themselves."""
        return self.parallel.no_sync() if isinstance(self.parallel, DistributedDataParallel) else nullcontext()

    def _refresh(self, bar: tqdm, new_items: int, so_far: EpochSoFar, epoch: int) -> None:
        """Look at the sums: move the bar, and stop where the loss is not finite."""
        loss, count, correct = so_far.sums.tolist()
        mean = loss / max(count, 1)
        if not abs(mean) < float("inf"):
            good = (
                f"the last good checkpoint is {self.run.checkpoint_path} (epoch {epoch})"
                if epoch
                else "no checkpoint yet"
            )
            raise UserError(
                f"the loss is not finite by step {so_far.steps} of epoch {epoch + 1}; {good}; lower the learning rate"
            )
        accuracy = f", accuracy {correct / max(count, 1):.1%}" if so_far.classified else ""
        bar.set_description_str(f"epoch {epoch + 1}/{self.epochs}", refresh=False)
        bar.set_postfix_str(f"loss {mean:.4f}{accuracy}", refresh=False)
        bar.update(new_items)

    def _new_epoch(self) -> EpochSoFar:
        return EpochSoFar(torch.zeros(3, dtype=torch.float64, device=self.world.device))

    def _save(self, history: list[dict[str, Any]], so_far: EpochSoFar) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best}
        self.run.save({**state, "so_far": vars(so_far)}, history)

    def _stop(self, history: list[dict[str, Any]], so_far: EpochSoFar) -> None:
        """End in the middle of an epoch, with a checkpoint there."""
        self.world.sum(so_far.sums)
        self._save(history, so_far)
        self.world.barrier()  # no process ends before the main one has written
        raise Preempted(
            f"stopped by SIGTERM after step {so_far.steps} of epoch {len(history) + 1} of {self.epochs}; "
            f"run the same command again to go on from {self.run.checkpoint_path}"
        )

    def _restore(self) -> tuple[list[dict[str, Any]], EpochSoFar]:
        restored = self.run.restore()
        if restored is None:
            return [], self._new_epoch()
        state, history = restored
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = {name: tensor.to(self.world.device) for name, tensor in state.get("best", {}).items()}
        so_far = EpochSoFar(**state["so_far"])
        # They are the sums over all processes: kept by one, they stay that.
        so_far.sums = so_far.sums.to(self.world.device) * self.world.is_main
        if self.world.is_main:
            within = f" and step {so_far.steps} of the next" if so_far.steps else ""
            where = f"epoch {len(history)}{within} of {self.epochs}"
            print(f"resuming after {where} ({self.run.checkpoint_path})", flush=True)
        return history, so_far

    @contextmanager
    def _progress(self, epochs_done: int) -> Iterator[tqdm]:
        with tqdm(
            total=self.epochs * self.items,
            initial=epochs_done * self.items,
            unit="img",
            unit_scale=True,
            disable=None if self.world.is_main else True,  # None: where no terminal would show it
            mininterval=REFRESH_SECONDS,
        ) as bar:
            yield bar


def best_epoch(history: list[dict[str, Any]]) -> int:
    """The first epoch, from 0, with the smallest held-out loss; one that is not a number is no smaller than any."""
    losses = [record[HELD_OUT] if record[HELD_OUT] == record[HELD_OUT] else float("inf") for record in history]
    return losses.index(min(losses))
