"""The loop: what it logs, that an interruption leaves no trace in the weights, and that N processes are one."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from models.resnet import build_backbone
from tests.tiny import same_bits
from tests.utils.processes import run_processes
from trainers.config import LoopParams, LrPolicyParams, OptimizerParams
from trainers.loop import HELD_OUT, Loss, train
from utils.config import key
from utils.distributed import World
from utils.errors import UserError
from utils.precision import Precision, kernels
from utils.preemption import Preempted, Preemption
from utils.runs import Run
from utils.seeds import Stream, generator

ITEMS, CLASSES, STEPS = 12, 3, 3
SGD = OptimizerParams("sgd", lr=0.1, momentum=0.9, weight_decay=1e-3)
ADAM = OptimizerParams("adam", lr=0.01)


@dataclass
class Config:
    resume: bool = key(True, doc="neutral")
    precision: Precision = key("fp32", doc="arithmetic")


class Data(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor


def epoch_of(epoch: int) -> Iterator[Data]:
    for step in range(STEPS):
        g = generator(0, Stream.SHUFFLE, epoch, step)
        yield Data(torch.randn(ITEMS, 3, 8, 8, generator=g), torch.randint(CLASSES, (ITEMS,), generator=g))


def classify(model: nn.Module, batch: Data) -> Loss:
    logits, _ = model(batch.images)
    return Loss(F.cross_entropy(logits, batch.labels), len(batch.labels), (logits.argmax(1) == batch.labels).sum())


def small_resnet() -> nn.Module:
    torch.manual_seed(0)
    options = {"num_classes": CLASSES, "embedding_dim": 8, "stem": "cifar", "width": 0.0625}
    return build_backbone("ResNet18", **options)


def new_run(folder: Path, world: World | None = None) -> Run:
    return Run(str(folder / "m.pt"), Config(), world or World())


@dataclass
class Classify:
    """A task that is told by the epoch what its parts do."""

    batches: Callable[[int], Iterable[Data]] = epoch_of
    loss: Callable[[nn.Module, Data], Loss] = classify
    found: Callable[[int], dict[str, float]] = lambda epoch: {}
    train_mode: bool = True
    items: int = ITEMS * STEPS

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        self.epoch = epoch
        model.train(self.train_mode)

    def validate(self, model: nn.Module) -> dict[str, float]:
        return self.found(self.epoch)


def fit(
    folder: Path,
    model: nn.Module,
    optimizer: OptimizerParams = SGD,
    task: Classify | None = None,
    *,
    world: World | None = None,
    preemption: Preemption | None = None,
    policy: LrPolicyParams = LrPolicyParams(warmup_length=0),  # noqa: B008
    epochs: int = 4,
    **options: Any,
) -> None:
    """Train `model`; the length of the schedule does not hang on the number of epochs."""
    world = world or World()
    params = LoopParams(optimizer, replace(policy, epochs=12), epochs, ITEMS, **options)
    train(task or Classify(), model, params, new_run(folder, world), world, preemption or Preemption())


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "m.log.jsonl").read_text().splitlines()]


class Killed(Exception):
    """An end that the loop does not expect."""


@pytest.mark.parametrize("params", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, params: OptimizerParams, epoch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "whole").mkdir()
    whole = small_resnet()
    fit(tmp_path / "whole", whole, params)

    def dies(at: int) -> Iterator[Data]:
        batches = epoch_of(at)
        yield next(batches)
        if at == epoch:
            raise Killed
        yield from batches

    with pytest.raises(Killed):
        fit(tmp_path, small_resnet(), params, Classify(dies))
    torch.manual_seed(99)
    torch.rand(7)
    resumed, seen = small_resnet(), list[int]()
    if epoch > 0:
        nn.init.zeros_(resumed.get_parameter("fc.weight"))  # the checkpoint overwrites it

    def noted(at: int) -> Iterator[Data]:
        seen.append(at)
        return epoch_of(at)

    fit(tmp_path, resumed, params, Classify(noted))
    assert seen == list(range(epoch, 4))
    assert same_bits(resumed.state_dict(), whole.state_dict())
    logs = [log_of(folder) for folder in (tmp_path, tmp_path / "whole")]
    for record in logs[0] + logs[1]:
        del record["seconds"], record["images_per_second"]
    assert logs[0] == logs[1]
    assert (f"resuming after epoch {epoch} of 4" in capsys.readouterr().out) == (epoch > 0)


@pytest.mark.parametrize("step", [1, STEPS])
def test_a_run_that_is_told_to_stop_goes_on_within_the_epoch(
    tmp_path: Path, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "whole").mkdir()
    whole = small_resnet()
    fit(tmp_path / "whole", whole)

    def told(at: int) -> Iterator[Data]:
        for number, batch in enumerate(epoch_of(at), start=1):
            if (at, number) == (2, step):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    message = rf"after step {step} of epoch 3 of 4; .* {tmp_path}/m.checkpoint.pt"
    with Preemption() as preemption, pytest.raises(Preempted, match=message):
        fit(tmp_path, small_resnet(), task=Classify(told), preemption=preemption)
    resumed = small_resnet()
    fit(tmp_path, resumed)
    assert f"resuming after epoch 2 and step {step} of the next of 4" in capsys.readouterr().out
    assert same_bits(resumed.state_dict(), whole.state_dict())
    for record, expected in zip(log_of(tmp_path), log_of(tmp_path / "whole"), strict=True):
        for name in ("epoch", "lr", "loss", "accuracy"):
            assert record[name] == expected[name]


@pytest.mark.parametrize("size", [5, 6, 100])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(tmp_path: Path, size: int) -> None:
    results = []
    for micro_batch in (None, size):
        folder = tmp_path / str(micro_batch)
        folder.mkdir()
        train_a_share(World(), str(folder), micro_batch)
        results.append(torch.load(folder / "0_of_1.pt"))
    whole, parts = results
    torch.testing.assert_close(parts["gradients"], whole["gradients"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(parts["weights"], whole["weights"], rtol=1e-3, atol=1e-5)
    assert len(parts["gradients"]) == len(whole["gradients"])
    for record, expected in zip(log_of(tmp_path / str(size)), log_of(tmp_path / "None"), strict=True):
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert record["accuracy"] == pytest.approx(expected["accuracy"])


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    first = small_resnet()
    fit(tmp_path, first)
    again = small_resnet()
    fit(tmp_path, again, task=Classify(lambda epoch: pytest.fail("trained again")))
    assert same_bits(again.state_dict(), first.state_dict())


def test_the_log_has_a_line_an_epoch_with_the_means_over_its_items(tmp_path: Path) -> None:
    model = small_resnet().eval()
    batches = [
        Data(images[:size], labels[:size]) for (images, labels), size in zip(epoch_of(0), (12, 5, 1), strict=True)
    ]
    task = Classify(
        lambda epoch: batches,
        found=lambda epoch: {"validation_accuracy": 0.5} if epoch == 3 else {},
        train_mode=False,
    )
    fit(tmp_path, model, OptimizerParams("sgd", lr=0.0, momentum=0.0), task)
    with torch.inference_mode():
        logits = model(torch.cat([batch.images for batch in batches]))[0]
    labels = torch.cat([batch.labels for batch in batches])
    records = log_of(tmp_path)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    for record in records:
        assert record["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert record["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
        assert record["lr"] == 0.0
    assert [record.get("validation_accuracy") for record in records] == [None, None, None, 0.5]


def test_the_schedule_sets_the_rate_of_every_epoch(tmp_path: Path) -> None:
    seen: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    fit(tmp_path, small_resnet(), OptimizerParams("sgd", lr=0.04), policy=LrPolicyParams("constant_lr", 4))
    hook.remove()
    assert seen == pytest.approx([0.01 * (epoch + 1) for epoch in range(4) for _ in range(STEPS)])
    assert [record["lr"] for record in log_of(tmp_path)] == pytest.approx([0.01, 0.02, 0.03, 0.04])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, value: float, epoch: int) -> None:
    def batches(at: int) -> Iterator[Data]:
        for step, batch in enumerate(epoch_of(at)):
            yield batch._replace(images=batch.images * value) if (at, step) == (epoch, 1) else batch

    checkpoint = re.escape(str(tmp_path / "m.checkpoint.pt"))
    good = rf"the last good checkpoint is {checkpoint} \(epoch {epoch}\)" if epoch else "no checkpoint yet"
    with pytest.raises(UserError, match=rf"not finite by step [23] of epoch {epoch + 1}; {good}"):
        fit(tmp_path, small_resnet(), task=Classify(batches))
    if epoch:
        assert len(log_of(tmp_path)) == epoch
        restored = new_run(tmp_path).restore()
        assert restored is not None
        state, history = restored
        assert len(history) == epoch
        assert all(tensor.isfinite().all() for tensor in state["model"].values())
    else:
        assert new_run(tmp_path).restore() is None


def test_an_epoch_without_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="epoch 1: there is no image to train on"):
        fit(tmp_path, small_resnet(), task=Classify(lambda epoch: []))


def test_a_log_file_gets_a_line_an_epoch_and_no_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = Classify(found=lambda epoch: {"validation_accuracy": 0.5} if epoch else {})
    fit(tmp_path, small_resnet(), task=task)
    shown = capsys.readouterr()
    assert "img" not in shown.err
    lines, records = shown.out.splitlines(), log_of(tmp_path)
    for number, (line, record) in enumerate(zip(lines, records, strict=True), start=1):
        validation = "validation accuracy 0.5, " if number > 1 else ""
        assert line == f"epoch {number}: {validation}loss {record['loss']:.4g}, accuracy {record['accuracy']:.4g}"


def test_training_steps_alone_are_fast_and_less_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the flags are there without one."""
    seen: dict[str, set[bool]] = {"step": set(), "validation": set()}

    def note(where: str) -> None:
        backends = torch.backends
        seen[where] |= {backends.cudnn.benchmark, backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32}

    def loss(model: nn.Module, batch: Data) -> Loss:
        note("step")
        return classify(model, batch)

    def found(epoch: int) -> dict[str, float]:
        note("validation")
        return {}

    monkeypatch.setattr("trainers.loop.kernels", lambda device, fast: kernels(torch.device("cuda"), fast=fast))
    with kernels(torch.device("cuda"), fast=False):  # as every script runs
        note("validation")
        fit(tmp_path, small_resnet(), task=Classify(loss=loss, found=found))
        note("validation")
    assert seen == {"step": {True}, "validation": {False}}


def train_a_share(world: World, folder: str, micro_batch: int | None = None, epochs: int = 2) -> None:
    """Train on this process's share of the same global batches, with the BN statistics frozen at odd values.

    In float64: what float32 rounds otherwise in smaller batches grows with the steps, and differs by processor.
    """

    def batches(epoch: int) -> Iterator[Data]:
        for batch in epoch_of(epoch):
            own = Data(*(tensor[world.share(ITEMS)] for tensor in batch))
            yield own._replace(images=own.images.double())

    model = small_resnet().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.fill_(2.0)
    gradients: list[dict[str, torch.Tensor]] = []

    def loss(parallel: nn.Module, batch: Data) -> Loss:
        if micro_batch is None and any(p.grad is not None for p in model.parameters()):
            pytest.fail("gradients of the last step are still there")
        return classify(parallel, batch)

    hook = register_optimizer_step_pre_hook(
        lambda *_: gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    )
    task = Classify(batches, loss, train_mode=False)
    fit(Path(folder), model, task=task, world=world, epochs=epochs, micro_batch=micro_batch)
    hook.remove()
    result = {"weights": model.state_dict(), "gradients": gradients}
    torch.save(result, Path(folder) / f"{world.rank}_of_{world.size}.pt")


def train_in_three_ways(world: World, folder: str) -> None:
    """Two epochs in whole batches; in parts whose gradients are exchanged once; after two that one process trained."""
    train_a_share(world, f"{folder}/whole")
    train_a_share(world, f"{folder}/parts", 4)
    train_a_share(world, f"{folder}/alone", epochs=4)


def test_two_processes_have_the_gradients_and_weights_of_one(tmp_path: Path) -> None:
    for name in ("alone", "whole", "parts", "longer"):
        (tmp_path / name).mkdir()
    train_a_share(World(), str(tmp_path / "alone"))
    alone, log = torch.load(tmp_path / "alone" / "0_of_1.pt"), log_of(tmp_path / "alone")
    run_processes(train_in_three_ways, 2, str(tmp_path))
    assert len(alone["gradients"]) == 2 * STEPS
    for way in ("whole", "parts"):
        results = [torch.load(tmp_path / way / f"{rank}_of_2.pt") for rank in range(2)]
        assert same_bits(results[0]["weights"], results[1]["weights"])
        for result in results:
            torch.testing.assert_close(result["gradients"], alone["gradients"], rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(result["weights"], alone["weights"], rtol=1e-6, atol=1e-9)
        for record, expected in zip(log_of(tmp_path / way), log, strict=True):
            assert record["loss"] == pytest.approx(expected["loss"], rel=1e-4)
            assert record["accuracy"] == pytest.approx(expected["accuracy"])
    # A checkpoint of one process serves two, and the other way round.
    train_a_share(World(), str(tmp_path / "longer"), epochs=4)
    train_a_share(World(), str(tmp_path / "whole"), epochs=4)
    longer = torch.load(tmp_path / "longer" / "0_of_1.pt")["weights"]
    for resumed in (tmp_path / "alone" / "0_of_2.pt", tmp_path / "whole" / "0_of_1.pt"):
        result = torch.load(resumed)
        assert len(result["gradients"]) == 2 * STEPS  # the first two epochs were not trained again
        torch.testing.assert_close(result["weights"], longer, rtol=1e-6, atol=1e-9)


# ------------------------------------------------------------------------------------------------------- early stopping

LOSSES = [5.0, 3.0, 4.0, 2.0, 2.0, 9.0, 1.0]  # on held-out data, by epoch


def stopped_early(
    folder: Path, model: nn.Module, patience: int | None, epochs: int = len(LOSSES)
) -> list[dict[str, torch.Tensor]]:
    """Train with these held-out losses -> the weights after each epoch."""
    states: list[dict[str, torch.Tensor]] = []

    def found(epoch: int) -> dict[str, float]:
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {HELD_OUT: LOSSES[epoch]}

    fit(folder, model, ADAM, Classify(found=found), epochs=epochs, patience=patience)
    return states


@pytest.mark.parametrize(("patience", "epochs", "best"), [(1, 3, 1), (2, 6, 3), (3, 7, 6), (None, 7, 6)])
def test_it_ends_where_nothing_gets_better_at_the_best_weights(
    tmp_path: Path, patience: int | None, epochs: int, best: int
) -> None:
    model = small_resnet()
    states = stopped_early(tmp_path, model, patience)
    assert len(states) == epochs
    assert same_bits(model.state_dict(), states[best])


@pytest.mark.parametrize("done", [2, 6])
def test_an_interruption_does_not_change_where_it_ends(tmp_path: Path, done: int) -> None:
    """After 6 epochs its patience is at an end already."""
    whole, first, resumed = small_resnet(), small_resnet(), small_resnet()
    stopped_early(tmp_path / "whole", whole, 2)
    stopped_early(tmp_path / "part", first, 2, epochs=done)
    more = stopped_early(tmp_path / "part", resumed, 2)
    assert len(more) == 6 - done
    assert same_bits(resumed.state_dict(), whole.state_dict())
