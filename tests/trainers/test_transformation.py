"""Training a transformation: from half of the epochs on, BN statistics may freeze; nothing else may."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from models.transformations import build_transformation
from tests.tiny import TRANSFORMATION
from trainers.objectives import TransformationObjective
from trainers.pairs import PairBatch
from trainers.transformation import train_transformation
from utils.config import build, parse_yaml
from utils.distributed import World
from utils.preemption import Preemption
from utils.runs import Run
from utils.schema import TransformationConfig
from utils.sections import ObjectiveParams


class Recorded:
    """Random pairs; before every epoch it notes the transformation's state."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.states: list[dict[str, torch.Tensor]] = []

    def __len__(self) -> int:
        return 32

    def batches(self, epoch: int) -> Iterator[PairBatch]:
        self.states.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        g = torch.Generator().manual_seed(epoch)
        for _ in range(2):
            old = torch.randn(16, 4, generator=g)
            yield PairBatch(old, None, old.cumsum(1), torch.zeros(16, dtype=torch.int64))


@pytest.mark.parametrize("switch", [False, True])
@pytest.mark.parametrize("epochs", [4, 5])
def test_bn_statistics_freeze_half_way_while_the_weights_train_on(tmp_path: Path, switch: bool, epochs: int) -> None:
    values = {**parse_yaml(TRANSFORMATION), "epochs": epochs, "switch_mode_to_eval": switch, "precision": "fp32"}
    config = build(TransformationConfig, values, source="tiny")
    torch.manual_seed(0)
    model = build_transformation("fct", old_embedding_dim=4, new_embedding_dim=4, side_info_dim=4, inner_dim=8)
    pairs, objective = Recorded(model), TransformationObjective(ObjectiveParams(), None)
    run = Run(str(tmp_path / "t.pt"), config, World())
    train_transformation(model, objective, config, pairs, run, World(), Preemption())
    states = [*pairs.states, model.state_dict()]
    for epoch in range(epochs):
        before, after = states[epoch], states[epoch + 1]
        frozen = switch and epoch >= epochs / 2
        for name in before:
            is_statistic = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
            assert torch.equal(before[name], after[name]) == (is_statistic and frozen), (epoch, name)
