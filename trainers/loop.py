"""The training loop that backbones and transformations share: epochs, progress, log, checkpoint, resume."""

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from models.modes import modes_kept
from trainers.acceleration import maybe_compiled
from trainers.budget import Limit, in_words
from trainers.config import LoopParams
from trainers.optimizers import build_optimizer, build_schedule
from utils.batches import split_batch
from utils.distributed import LaterAny, World
from utils.errors import UserError
from utils.memory import keep_freed_memory
from utils.precision import kernels
from utils.preemption import Preempted, Preemption
from utils.runs import Run

BatchT = TypeVar("BatchT", bound=tuple[torch.Tensor | None, ...])
HELD_OUT = "held_out_loss"  # in a log record: what early stopping looks at
TRAINING = ("loss", "accuracy")  # in a log record: what the bar shows
REFRESH_SECONDS = 0.5  # between looks at the loss: each waits for the device


class Loss(NamedTuple):
    """What one forward pass found, on the device."""

    mean: torch.Tensor  # () over this process's part of the batch
    items: int  # in that part
    correct: torch.Tensor | None = None  # () rightly classified items; None where nothing is classified


class Task(Protocol[BatchT]):
    """What a model is trained for; each task is one class, read top to bottom."""

    @property
    def items(self) -> int:
        """In an epoch, over all processes."""

    def batches(self, epoch: int) -> Iterable[BatchT]:
        """This process's share of an epoch: a function of its argument, so that a resumed run equals another."""

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        """Put the model into the mode in which it trains in this epoch."""

    def loss(self, model: nn.Module, batch: BatchT) -> Loss:
        """The forward pass of a batch, or a part of one, through the model given, which is the data-parallel one."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Further values of an epoch's log record, which are also shown. The model's mode stays as it is."""


class Outcome(NamedTuple):
    """How a training ended."""

    history: list[dict[str, Any]]  # a log record for each epoch
    best: int  # the epoch, from 0, whose weights the model has; -1: none was better than those that it began with
    ending: str  # why it ended before the last epoch; empty where it did not


def train(
    task: Task[BatchT],
    model: nn.Module,
    params: LoopParams,
    run: Run,
    world: World,
    preemption: Preemption,
    limit: Limit | None = None,
) -> Outcome:
    """Train `model` to the last epoch, from the last checkpoint where there is one; its mode stays as it is.

    Args:
        task: what it is trained for.
        model: goes to the device.
        params: for how long, and by which steps.
        run: config, log and checkpoint on disk.
        world: the processes.
        preemption: asks the loop to stop after a step.
        limit: ends it earlier; only with patience, as it then is the best epoch whose weights the model has. Where that
            is -1 the model has others than it began with.

    Raises:
        UserError: the loss is not finite, there is no image to train on, or a process that decodes images died.
        Preempted: SIGTERM came; the step was finished and the checkpoint written.
    """
    keep_freed_memory()
    model.to(world.device)
    optimizer = build_optimizer(model, params.optimizer)
    rate = build_schedule(params.lr_policy, params.optimizer, params.epochs)
    parallel = DistributedDataParallel(model) if world.size > 1 else model
    forward = maybe_compiled(parallel, params.compile, world, steps=params.epochs * task.items // params.batch_size)
    progress = Progress(model, optimizer, params, task.items, run, world, limit)
    stops, over = LaterAny(world), LaterAny(world)
    preemption.defer()
    with modes_kept(model), progress.bar:
        for epoch in progress.epochs_left():
            with kernels(world.device, fast=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate(epoch)
                task.start_epoch(forward, epoch)
                for batch in progress.steps_left(task.batches(epoch)):
                    optimizer.zero_grad(set_to_none=True)
                    for part, share, exchange in parts_of(batch, params.micro_batch, parallel):
                        with exchange:
                            loss = task.loss(forward, part)
                            (loss.mean * share).backward()
                        progress.count(loss)
                    optimizer.step()
                    progress.after_step(stop=stops(preemption.requested))
                    if limit is not None and over(limit.is_over()):
                        break  # what there is of the epoch counts as one
                record = progress.record(rate(epoch))
            world.share_buffers(model)  # so that what is validated is what is saved
            every = params.validate_every
            validates = every and ((epoch + 1) % every == 0 or epoch + 1 == params.epochs)
            progress.after_epoch(record, task.validate(model) if validates else {})
    return progress.return_to_the_best()


def parts_of(
    batch: BatchT, size: int | None, parallel: nn.Module
) -> Iterator[tuple[BatchT, float, AbstractContextManager[None]]]:
    """The parts of a batch that fit into memory, with their shares of its items.

    Within the context of a part but for the last, processes keep their gradients to themselves.
    """
    parts = split_batch(batch, size)
    items = sum(count for _, count in parts)
    for number, (part, count) in enumerate(parts, start=1):
        context: AbstractContextManager[None] = nullcontext()
        if number < len(parts) and isinstance(parallel, DistributedDataParallel):
            context = parallel.no_sync()
        yield part, count / items, context


@dataclass
class EpochSoFar:
    """What a checkpoint in the middle of an epoch must know beside the weights."""

    sums: torch.Tensor  # (3,) of this process: loss, items, right ones; on the device, as reading them waits for it
    steps: int = 0
    seconds: float = 0.0
    classified: bool = False  # whether the steps count right ones


class Progress:
    """How far a training is: its log, the epoch under way, the best weights, the bar; and the checkpoint of all that.

    It begins where the run's checkpoint is, and sets model and optimizer to what that holds.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        params: LoopParams,
        items: int,
        run: Run,
        world: World,
        limit: Limit | None = None,
    ) -> None:
        self.model, self.optimizer, self.params, self.run, self.world = model, optimizer, params, run, world
        self.limit, self.ending = limit, ""
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, torch.Tensor] = {}  # weights, where there is patience
        self.so_far = self._new_epoch()
        self._started = self._refreshed = self._began = 0.0
        self._first = 0  # epoch of this process
        self._unseen = 0  # items since the last look at the loss
        self._restore()
        self.bar = tqdm(
            total=params.epochs * items,
            initial=len(self.history) * items,
            unit="img",
            unit_scale=True,
            disable=None if world.is_main else True,  # None: where no terminal would show it
            mininterval=REFRESH_SECONDS,
        )

    def epochs_left(self) -> Iterator[int]:
        """The epochs, from 0, that are to be trained: to the last one, or until patience or time is at an end."""
        self._began, self._first = time.perf_counter(), len(self.history)
        while (epoch := len(self.history)) < self.params.epochs:
            self.ending = self._ending()
            if self.ending:
                return
            yield epoch

    def _ending(self) -> str:
        """Why no further epoch is to be trained; empty where one is."""
        epoch, patience, limit = len(self.history), self.params.patience, self.limit
        if limit is not None and self.world.any(limit.is_over()):
            return f"out of time after {epoch} epochs"
        if patience is not None and epoch and epoch - 1 - self._best_epoch() >= patience:
            return f"best by epoch {self._best_epoch() + 1}"
        if limit is not None and limit.is_hopeless(
            [record[limit.measure] for record in self.history], self.params.epochs
        ):
            return f"dropped after {epoch} epochs: {limit.to_beat:.1%} is out of reach"
        return ""

    def _best_epoch(self) -> int:
        """The first epoch, from 0, with the best score, or held-out loss without one; -1: none beats the start."""
        if self.limit is None:
            return best_epoch(self.history)
        scores = [self.limit.start, *(record[self.limit.measure] for record in self.history)]
        return scores.index(max(scores)) - 1

    def _title(self) -> str:
        """What is trained, where that is told, to set before a line of progress."""
        return "" if self.limit is None else f"{self.limit.title}: "

    def _time_left(self) -> str:
        """How long it will take at most, by the epochs so far."""
        if self.limit is None:
            return ""
        pace = (time.perf_counter() - self._began) / (len(self.history) - self._first)
        left = min((self.params.epochs - len(self.history)) * pace, self.limit.until - self.limit.clock.spent())
        return f"; {in_words(max(0.0, left))} to go at most"

    def steps_left(self, batches: Iterable[BatchT]) -> Iterator[BatchT]:
        """The batches of the epoch that are still to come.

        Those before a checkpoint are drawn again and passed over, so that the same ones follow.
        """
        self._started = self._refreshed = time.perf_counter() - self.so_far.seconds
        self._unseen = 0
        yield from islice(batches, self.so_far.steps, None)

    def count(self, loss: Loss) -> None:
        """Add what a forward pass found."""
        self.so_far.sums[0] += loss.mean.detach() * loss.items
        self.so_far.sums[1] += loss.items
        if loss.correct is not None:
            self.so_far.classified = True
            self.so_far.sums[2] += loss.correct
        self._unseen += loss.items * self.world.size

    def after_step(self, *, stop: bool) -> None:
        """Look at the loss from time to time; with `stop`, end here with a checkpoint.

        Raises:
            UserError: the loss is not finite.
            Preempted: for `stop`.
        """
        self.so_far.steps += 1
        if stop or time.perf_counter() - self._refreshed > REFRESH_SECONDS:
            self._refreshed = time.perf_counter()
            self._refresh()
        if not stop:
            return
        self.so_far.seconds = time.perf_counter() - self._started
        self.world.sum(self.so_far.sums)
        self._save()
        self.world.barrier()  # no process ends before the main one has written
        raise Preempted(
            f"stopped by SIGTERM after step {self.so_far.steps} of epoch {len(self.history) + 1} of "
            f"{self.params.epochs}; run the same command again to go on from {self.run.checkpoint_path}"
        )

    def record(self, lr: float) -> dict[str, Any]:
        """The log record of an epoch whose steps are done: means over its items.

        Raises:
            UserError: there was no step, or the loss is not finite.
        """
        epoch = len(self.history) + 1
        if self.so_far.steps == 0:
            raise UserError(f"epoch {epoch}: there is no image to train on")
        self._refresh()
        loss, count, correct = self.world.sum(self.so_far.sums).tolist()
        seconds = time.perf_counter() - self._started
        accuracy = {"accuracy": correct / count} if self.so_far.classified else {}
        speed = {"images_per_second": round(count / seconds, 1), "seconds": round(seconds, 2)}
        return {"epoch": epoch, "lr": lr, "loss": loss / count, **accuracy, **speed}

    def after_epoch(self, record: dict[str, Any], found: dict[str, float]) -> None:
        """Show and log what an epoch came to and what its validation found, and write the checkpoint."""
        self.history.append({**record, **found})
        shown = {**found, **({n: record[n] for n in TRAINING if n in record} if self.bar.disable else {})}
        if shown and self.world.is_main:
            figures = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in shown.items()]
            tqdm.write(f"{self._title()}epoch {record['epoch']}: {', '.join(figures)}{self._time_left()}")
        if self.params.patience is not None and self._best_epoch() == len(self.history) - 1:
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.so_far = self._new_epoch()
        self._save()

    def return_to_the_best(self) -> Outcome:
        """Give the model the weights of the best epoch, where that counts."""
        if self.best:
            self.model.load_state_dict(self.best)
        best = len(self.history) - 1 if self.params.patience is None else self._best_epoch()
        return Outcome(self.history, best, self.ending)

    def _new_epoch(self) -> EpochSoFar:
        return EpochSoFar(torch.zeros(3, dtype=torch.float64, device=self.world.device))

    def _refresh(self) -> None:
        """Look at the sums: move the bar, and stop where the loss is not finite."""
        loss, count, correct = self.so_far.sums.tolist()
        mean, epoch = loss / max(count, 1), len(self.history)
        if not abs(mean) < float("inf"):
            checkpoint = f"the last good checkpoint is {self.run.checkpoint_path} (epoch {epoch})"
            raise UserError(
                f"the loss is not finite by step {self.so_far.steps} of epoch {epoch + 1}; "
                f"{checkpoint if epoch else 'no checkpoint yet'}; lower the learning rate"
            )
        accuracy = f", accuracy {correct / max(count, 1):.1%}" if self.so_far.classified else ""
        self.bar.set_description_str(f"{self._title()}epoch {epoch + 1}/{self.params.epochs}", refresh=False)
        self.bar.set_postfix_str(f"loss {mean:.4f}{accuracy}", refresh=False)
        self.bar.update(self._unseen)
        self._unseen = 0

    def _save(self) -> None:
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
        }
        if self.limit is not None:
            state["spent"] = self.limit.clock.spent()
        self.run.save({**state, "so_far": vars(self.so_far)}, self.history)

    def _restore(self) -> None:
        restored = self.run.restore()
        if restored is None:
            return
        state, self.history = restored
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = {name: tensor.to(self.world.device) for name, tensor in state.get("best", {}).items()}
        self.so_far = EpochSoFar(**state["so_far"])
        if self.limit is not None:
            self.limit.clock.went_on(state.get("spent", 0.0))
        # They are the sums over all processes: kept by one, they stay that.
        self.so_far.sums = self.so_far.sums.to(self.world.device) * self.world.is_main
        if self.world.is_main:
            within = f" and step {self.so_far.steps} of the next" if self.so_far.steps else ""
            where = f"epoch {len(self.history)}{within} of {self.params.epochs}"
            print(f"resuming after {where} ({self.run.checkpoint_path})", flush=True)


def best_epoch(history: list[dict[str, Any]]) -> int:
    """The first epoch, from 0, with the smallest held-out loss; one that is not a number is no smaller than any."""
    losses = [record[HELD_OUT] if record[HELD_OUT] == record[HELD_OUT] else float("inf") for record in history]
    return losses.index(min(losses))
