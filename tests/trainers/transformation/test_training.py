"""Training a transformation: from half of the epochs on, BN statistics may freeze; nothing else may."""

import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.transformations import build_transformation
from models.transformed import Transformation
from tests.tiny import TRANSFORMATION, same_bits
from tests.utils.processes import run_processes
from trainers.loop import HELD_OUT, train
from trainers.transformation.config import FitConfig, ObjectiveParams, TransformationConfig
from trainers.transformation.losses import TransformationObjective
from trainers.transformation.pairs import PairBatch, PairsInMemory, View
from trainers.transformation.task import TransformationTask
from utils.config import build, parse_yaml
from utils.distributed import World
from utils.errors import UserError
from utils.preemption import Preemption
from utils.runs import Run

DIMS = {"old_embedding_dim": 4, "new_embedding_dim": 4, "side_info_dim": 4, "inner_dim": 8}


def pairs_of(count: int) -> PairBatch:
    """Pairs of dimension 4, the later ones farther out."""
    old = torch.randn(count, 4, generator=torch.Generator().manual_seed(3)) + torch.linspace(0, 3, count)[:, None]
    return PairBatch(old, None, old.cumsum(1), torch.zeros(count, dtype=torch.int64))


def fct() -> Transformation:
    torch.manual_seed(0)
    return build_transformation("fct", **DIMS)


def task_of(
    model: Transformation, config: Any, world: World | None = None, held_out: PairBatch | None = None
) -> TransformationTask:
    """FCT, without a classifier, by 40 pairs."""
    world, pairs = world or World(), pairs_of(40)
    view = View({"old": pairs.old, "new": pairs.new}, pairs.labels)
    training = PairsInMemory([view], batch_size=8, world=world, seed=0)
    objective = TransformationObjective(ObjectiveParams(), None)
    return TransformationTask(model, objective, training, config, "fp32", world, held_out)


def run(task: TransformationTask, output: str) -> None:
    """Train to the end."""
    config, world = task.config, task.world
    train(task, task.transformation, config.loop, Run(output, config, world), world, Preemption())


@pytest.mark.parametrize("switch", [False, True])
@pytest.mark.parametrize("epochs", [4, 5])
def test_bn_statistics_freeze_half_way_while_the_weights_train_on(
    tmp_path: Path, switch: bool, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**parse_yaml(TRANSFORMATION), "epochs": epochs, "switch_mode_to_eval": switch, "precision": "fp32"}
    model, states = fct(), list[dict[str, torch.Tensor]]()
    task = task_of(model, build(TransformationConfig, values, source="tiny"))
    start_epoch = task.start_epoch

    def noted(parallel: nn.Module, epoch: int) -> None:
        states.append(copy.deepcopy(model.state_dict()))
        start_epoch(parallel, epoch)

    monkeypatch.setattr(task, "start_epoch", noted)
    run(task, str(tmp_path / "t.pt"))
    for epoch, (before, after) in enumerate(pairwise([*states, model.state_dict()])):
        frozen = switch and epoch >= epochs / 2
        for name in before:
            is_statistic = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
            assert torch.equal(before[name], after[name]) == (is_statistic and frozen), (epoch, name)


def train_with_held_out_pairs(world: World, folder: str) -> None:
    """Three epochs with 16 pairs for validation; every process saves its transformation."""
    config = FitConfig(old="", new="", output=f"{folder}/t.pt", epochs=3, batch_size=8, precision="fp32", patience=3)
    model = fct()
    run(task_of(model, config, world, held_out=pairs_of(16)), config.output)
    torch.save(model.state_dict(), f"{folder}/{world.rank}.pt")


def test_what_several_processes_validate_is_what_the_main_one_saves(tmp_path: Path) -> None:
    """The held-out loss, by which training ends, is that of one transformation: its batch statistics are rank 0's."""
    run_processes(train_with_held_out_pairs, 2, str(tmp_path))
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert same_bits(*states)
    records = [json.loads(line) for line in (tmp_path / "t.log.jsonl").read_text().splitlines()]
    model, pairs = fct().eval(), pairs_of(16)
    model.load_state_dict(states[0])
    with torch.no_grad():
        squared = (model(pairs.old, None).embedding - pairs.new).square().mean()
    assert min(record[HELD_OUT] for record in records) == pytest.approx(float(squared), rel=1e-5)


@pytest.mark.parametrize(
    ("processes", "message"),
    [(2, "2 items a step over 2 .*; take at least 4"), (3, "2 is the batch over all processes and cannot be divided")],
)
def test_a_batch_that_does_not_do_for_the_processes_is_refused_before_any_training(
    processes: int, message: str
) -> None:
    of_images = build(TransformationConfig, parse_yaml(TRANSFORMATION), source="tiny")
    of_images.dataset_params.batch_size = 2
    of_files = FitConfig(old="", new="", output="", batch_size=2)
    for config, key in ((of_images, "dataset_params.batch_size"), (of_files, "batch_size")):
        with pytest.raises(UserError, match=f"^{key}: {message}"):
            task_of(fct(), config, World(1, processes))


def test_training_and_validation_leave_every_module_in_its_mode(tmp_path: Path) -> None:
    """Also a part that is frozen in eval mode, and one that is left to train."""
    model = fct()
    model.get_submodule("mixer.0").eval()
    before = [module.training for module in model.modules()]
    config = FitConfig(old="", new="", output=str(tmp_path / "t.pt"), epochs=2, batch_size=8, precision="fp32")
    task = task_of(model, config, held_out=pairs_of(40))
    assert task.validate(model) == task.validate(model)  # no batch statistics: it is in eval mode
    assert [module.training for module in model.modules()] == before
    run(task, config.output)
    assert [module.training for module in model.modules()] == before
    assert 0 < sum(before) < len(before)
