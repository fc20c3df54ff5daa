"""The loop: what it logs, that an interruption leaves no trace in the weights, and that N processes are one."""

import json
import os
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

from models.backbones import build_backbone
from tests.tiny import same_bits
from tests.utils.processes import run_processes
from trainers.config import LoopParams, LrPolicyParams, OptimizerParams
from trainers.loop import HELD_OUT, Loss, train
from utils.choices import Precision
from utils.config import key
from utils.distributed import World
from utils.errors import UserError
from utils.precision import kernels
from utils.preemption import Preempted, Preemption
from utils.runs import Run
from utils.seeds import Stream, generator

ITEMS, CLASSES, STEPS = 12, 3, 3
SGD = OptimizerParams("sgd", lr=0.1, momentum=0.9, weight_decay=1e-3)
ADAM = OptimizerParams("adam", lr=0.01)


@dataclass
class Config:
    resume: bool = key(True, doc="neutral")
    tensorboard: bool = key(False, doc="neutral")
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
    options: dict[str, Any] = {"num_classes": CLASSES, "embedding_dim": 8, "stem": "cifar", "width": 0.0625}
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
    """The records of a run, less what hangs on how fast it was."""
    records = [json.loads(line) for line in (folder / "m.log.jsonl").read_text().splitlines()]
    return [{n: v for n, v in record.items() if n not in ("seconds", "images_per_second")} for record in records]


class Killed(Exception):
    """An end that the loop does not expect."""


@pytest.mark.parametrize("params", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize(
    ("end", "epoch", "step", "said"),
    [
        (Killed, 0, 2, ""),
        (Killed, 2, 2, "resuming after epoch 2 of 4"),
        (Preempted, 2, 1, "resuming after epoch 2 and step 1 of the next of 4"),
        (Preempted, 2, STEPS, f"resuming after epoch 2 and step {STEPS} of the next of 4"),
    ],
)
def test_an_interrupted_run_ends_with_the_weights_and_the_log_of_one_that_was_not(
    tmp_path: Path,
    params: OptimizerParams,
    end: type[BaseException],
    epoch: int,
    step: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, resumed, seen = small_resnet(), small_resnet(), list[int]()
    fit(tmp_path / "whole", whole, params)

    def interrupted(at: int) -> Iterator[Data]:
        for number, batch in enumerate(epoch_of(at), start=1):
            if (at, number) == (epoch, step):
                if end is Killed:
                    raise Killed
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    def noted(at: int) -> Iterator[Data]:
        seen.append(at)
        return epoch_of(at)

    message = rf"after step {step} of epoch 3 of 4; .* {tmp_path}/m.checkpoint.pt" if end is Preempted else None
    with Preemption() as preemption, pytest.raises(end, match=message):
        fit(tmp_path, small_resnet(), params, Classify(interrupted), preemption=preemption)
    torch.manual_seed(99)
    if epoch > 0:
        nn.init.zeros_(resumed.get_parameter("fc.weight"))  # the checkpoint overwrites it
    for _ in range(2):  # the second time there is nothing left to do
        fit(tmp_path, resumed, params, Classify(noted))
        assert seen == list(range(epoch, 4))
        assert same_bits(resumed.state_dict(), whole.state_dict())
        assert log_of(tmp_path) == log_of(tmp_path / "whole")
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("size", [5, 6, 100])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(tmp_path: Path, size: int) -> None:
    for micro_batch in (None, size):
        train_a_share(World(), f"{tmp_path}/{micro_batch}", micro_batch)
    assert_trained_alike(tmp_path / str(size) / "0_of_1.pt", tmp_path / "None" / "0_of_1.pt")


@pytest.mark.parametrize(("every", "validated"), [(0, []), (1, [1, 2, 3, 4]), (3, [3, 4]), (10, [4])])
def test_the_log_has_a_line_an_epoch_with_the_means_over_its_items(
    tmp_path: Path, every: int, validated: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_resnet().eval()
    batches = [Data(*(rows[:size] for rows in batch)) for batch, size in zip(epoch_of(0), (12, 5, 1), strict=True)]
    task = Classify(lambda epoch: batches, found=lambda epoch: {"validation_accuracy": 0.5}, train_mode=False)
    fit(tmp_path, model, OptimizerParams("sgd", lr=0.0, momentum=0.0), task, validate_every=every)
    images, labels = (torch.cat(rows) for rows in zip(*batches, strict=True))
    with torch.inference_mode():
        logits = model(images)[0]
    loss, accuracy = F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()
    shown, records = capsys.readouterr(), log_of(tmp_path)
    assert len(records) == 4
    assert "img" not in shown.err  # no bar where there is no terminal
    for epoch, (record, line) in enumerate(zip(records, shown.out.splitlines(), strict=True), start=1):
        found = {"validation_accuracy": 0.5} if epoch in validated else {}
        figures = {"loss": pytest.approx(loss, rel=1e-5), "accuracy": pytest.approx(accuracy)}
        assert record == {"epoch": epoch, "lr": 0.0, **figures, **found}
        validation = "validation accuracy 0.5, " if found else ""
        assert line == f"epoch {epoch}: {validation}loss {record['loss']:.4g}, accuracy {record['accuracy']:.4g}"


def test_the_schedule_sets_the_rate_of_every_epoch(tmp_path: Path) -> None:
    seen: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    fit(tmp_path, small_resnet(), OptimizerParams("sgd", lr=0.04), policy=LrPolicyParams("constant_lr", 4))
    hook.remove()
    assert seen == pytest.approx([0.01 * (epoch + 1) for epoch in range(4) for _ in range(STEPS)])
    assert [record["lr"] for record in log_of(tmp_path)] == pytest.approx([0.01, 0.02, 0.03, 0.04])


@pytest.mark.parametrize(("value", "epoch"), [(float("nan"), 2), (float("inf"), 0)])
def test_a_loss_that_is_not_finite_stops_the_run_at_its_last_good_checkpoint(
    tmp_path: Path, value: float, epoch: int
) -> None:
    def batches(at: int) -> Iterator[Data]:
        for step, batch in enumerate(epoch_of(at)):
            yield batch._replace(images=batch.images * value) if (at, step) == (epoch, 1) else batch

    good = rf"the last good checkpoint is \S*/m.checkpoint.pt \(epoch {epoch}\)" if epoch else "no checkpoint yet"
    with pytest.raises(UserError, match=rf"not finite by step [23] of epoch {epoch + 1}; {good}"):
        fit(tmp_path, small_resnet(), task=Classify(batches))
    restored = new_run(tmp_path).restore()
    assert (restored is not None) == (epoch > 0)
    if restored is not None:
        state, history = restored
        assert len(history) == len(log_of(tmp_path)) == epoch
        assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_an_epoch_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="epoch 1: there is no image to train on"):
        fit(tmp_path, small_resnet(), task=Classify(lambda epoch: []))


def test_training_steps_alone_are_fast_and_less_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the flags are there without one."""
    seen: dict[str, set[bool]] = {"step": set(), "validation": set()}

    def note(where: str) -> dict[str, float]:
        backends = torch.backends
        seen[where] |= {backends.cudnn.benchmark, backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32}
        return {}

    def batches(epoch: int) -> Iterator[Data]:
        for batch in epoch_of(epoch):
            note("step")
            yield batch

    monkeypatch.setattr("trainers.loop.kernels", lambda device, fast: kernels(torch.device("cuda"), fast=fast))
    with kernels(torch.device("cuda"), fast=False):  # as every script runs
        fit(tmp_path, small_resnet(), task=Classify(batches, found=lambda epoch: note("validation")))
        note("validation")
    assert seen == {"step": {True}, "validation": {False}}


def train_a_share(
    world: World,
    folder: str,
    micro_batch: int | None = None,
    epochs: int = 2,
    at_step: Callable[[int, int], None] = lambda epoch, step: None,
    preemption: Preemption | None = None,
) -> None:
    """Train on this process's share of the same global batches, with the BN statistics frozen at odd values.

    In float64: what float32 rounds otherwise in smaller batches grows with the steps, and differs by processor.
    """

    def batches(epoch: int) -> Iterator[Data]:
        for step, batch in enumerate(epoch_of(epoch), start=1):
            at_step(epoch, step)
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
    options: dict[str, Any] = {"epochs": epochs, "micro_batch": micro_batch}
    fit(Path(folder), model, task=task, world=world, preemption=preemption, **options)
    hook.remove()
    result = {"weights": model.state_dict(), "gradients": gradients}
    torch.save(result, Path(folder) / f"{world.rank}_of_{world.size}.pt")


def assert_trained_alike(first: Path, second: Path) -> None:
    """Of two results of `train_a_share`: their gradients, weights and logs."""
    one, other = torch.load(first), torch.load(second)
    assert len(one["gradients"]) == 2 * STEPS
    for name in ("gradients", "weights"):
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-9)
    for record, expected in zip(log_of(first.parent), log_of(second.parent), strict=True):
        assert record == pytest.approx(expected, rel=1e-4)


def train_in_three_ways(world: World, folder: str) -> None:
    """Two epochs in whole batches; in parts whose gradients are exchanged once; after two that one process trained.

    And once more in whole batches, with an interruption of which process 1 alone is told, in the second epoch.
    """
    train_a_share(world, f"{folder}/whole")
    train_a_share(world, f"{folder}/parts", 4)
    train_a_share(world, f"{folder}/resumed", epochs=4)
    preemption = Preemption()

    def interrupt(epoch: int, step: int) -> None:
        preemption.requested |= (epoch, step) == (1, 1) and world.rank == 1

    with pytest.raises(Preempted, match="after step 2 of epoch 2 of 2"):
        train_a_share(world, f"{folder}/interrupted", at_step=interrupt, preemption=preemption)
    train_a_share(world, f"{folder}/interrupted")


def test_two_processes_have_the_gradients_and_weights_of_one(tmp_path: Path) -> None:
    for name in ("alone", "resumed"):
        train_a_share(World(), str(tmp_path / name))
    run_processes(train_in_three_ways, 2, str(tmp_path))
    for way in ("whole", "parts"):
        results = [tmp_path / way / f"{rank}_of_2.pt" for rank in range(2)]
        for result in results:
            assert_trained_alike(result, tmp_path / "alone" / "0_of_1.pt")
        assert same_bits(*(torch.load(result)["weights"] for result in results))
    whole, interrupted = (torch.load(tmp_path / way / "1_of_2.pt")["weights"] for way in ("whole", "interrupted"))
    assert same_bits(whole, interrupted)
    # A checkpoint of one process serves two, and the other way round: the first two epochs are not trained again.
    for name in ("whole", "longer"):
        train_a_share(World(), str(tmp_path / name), epochs=4)
    expected = torch.load(tmp_path / "longer" / "0_of_1.pt")["weights"]
    for resumed in (tmp_path / "resumed" / "0_of_2.pt", tmp_path / "whole" / "0_of_1.pt"):
        found = torch.load(resumed)
        assert len(found["gradients"]) == 2 * STEPS
        torch.testing.assert_close(found["weights"], expected, rtol=1e-6, atol=1e-9)


# ------------------------------------------------------------------------------------------------------- early stopping

LOSSES = [5.0, 3.0, 4.0, 2.0, 2.0, 9.0, 1.0]  # on held-out data, by epoch


@pytest.mark.parametrize(
    ("patience", "end", "best", "interrupted"),
    [
        (1, 3, 1, 2),
        (2, 6, 3, 2),
        (2, 6, 3, 6),
        (3, 7, 6, 5),
        (None, 7, 6, 3),
    ],  # after 6 epochs a patience of 2 has ended
)
def test_it_ends_where_nothing_gets_better_at_the_best_weights_whether_interrupted_or_not(
    tmp_path: Path, patience: int | None, end: int, best: int, interrupted: int
) -> None:
    def trained(folder: str, epochs: int) -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
        """The model, and its weights after each epoch that was trained."""
        model, states = small_resnet(), list[dict[str, torch.Tensor]]()

        def found(epoch: int) -> dict[str, float]:
            states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            return {HELD_OUT: LOSSES[epoch]}

        fit(tmp_path / folder, model, ADAM, Classify(found=found), epochs=epochs, patience=patience)
        return model, states

    whole, states = trained("whole", len(LOSSES))
    assert len(states) == end
    assert same_bits(whole.state_dict(), states[best])
    trained("parts", interrupted)
    resumed, more = trained("parts", len(LOSSES))
    assert len(more) == end - interrupted
    assert same_bits(resumed.state_dict(), states[best])
