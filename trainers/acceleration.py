"""What makes the training step faster without changing what it computes: compilation."""

import shutil
from typing import cast

import torch
from torch import nn

from trainers.config import Compile
from utils.distributed import World

# Below so many steps, `auto` takes it that compilation (a minute or so) costs more than it saves.
COMPILE_PAYS_AFTER = 5_000


def maybe_compiled(model: nn.Module, choice: Compile, world: World, *, steps: int) -> nn.Module:
    """`model`, or what torch.compile makes of it; the parameters and their names stay those of `model`.

    `auto` never compiles for a CPU: there the 32 px ResNet took 47 s to compile and then saved 4 % of a step, so that a
    run would need some 10,000 steps to win it back. On a GPU it compiles where a C compiler is at hand and the run has
    at least `COMPILE_PAYS_AFTER` steps, those before a resumption included.
    """
    has_compiler = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    pays = world.device.type == "cuda" and has_compiler and steps >= COMPILE_PAYS_AFTER
    if choice == "off" or (choice == "auto" and not pays):
        return model
    return cast(nn.Module, torch.compile(model))
