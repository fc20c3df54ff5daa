"""Optimizers as `optimizer_params` describes them."""

from collections.abc import Callable

import torch
from torch import nn

from trainers.config import LrPolicyParams, OptimizerParams
from utils.schedules import SCHEDULES

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def build_optimizer(model: nn.Module, params: OptimizerParams) -> torch.optim.Optimizer:
    """The optimizer over the model's parameters; `no_bn_decay` takes the BN parameters (by module) out of the decay."""
    exempt: set[nn.Parameter] = set()
    if params.no_bn_decay:
        exempt = {p for module in model.modules() if isinstance(module, BATCH_NORMS) for p in module.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if p not in exempt], "weight_decay": params.weight_decay},
        {"params": [p for p in model.parameters() if p in exempt], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if params.algorithm == "adam":
        return torch.optim.Adam(groups, lr=params.lr, fused=True)
    return torch.optim.SGD(groups, lr=params.lr, momentum=params.momentum, nesterov=params.nesterov, fused=True)


def build_schedule(policy: LrPolicyParams, optimizer: OptimizerParams, epochs: int) -> Callable[[int], float]:
    """epoch -> learning rate; the policy's `lr` and `epochs` default to the optimizer's and the run's."""
    shape = SCHEDULES[policy.algorithm]
    lr = optimizer.lr if policy.lr is None else policy.lr
    length = policy.epochs or epochs
    return lambda epoch: shape(epoch, lr=lr, epochs=length, warmup_length=policy.warmup_length)
