"""Calibrating a transformation for mixed galleries, on the pairs that it was not trained on."""

from collections.abc import Callable
from typing import cast

import torch

from data.lengths import zeros_kept
from models.model_files import Description, build_model
from models.transformed import Transformation
from trainers.transformation.pairs import PairBatch
from utils.distributed import World

DISTANCES = ("l2", "cosine")
FEWEST_PAIRS = 100  # to choose by; fewer show nothing but chance

# (new (n, d), h (n, d), distance) -> the `value` for a search by that distance, and how well it does
Choose = Callable[[torch.Tensor, torch.Tensor, str], dict[str, float]]


@torch.no_grad()
def with_calibration(description: Description, held_out: PairBatch | None, choose: Choose, world: World) -> Description:
    """The description of a transformation with its calibration for each distance, chosen on the held-out pairs.

    As it is where nothing is held out, and, which a line says, where that is too little.
    """
    if held_out is None:
        return description
    if len(held_out.new) < FEWEST_PAIRS:
        if world.is_main:
            print(f"not calibrated: {len(held_out.new)} pairs are held out, and fewer than {FEWEST_PAIRS} show little")
        return description
    transformation = cast(Transformation, build_model(description, where="transformation")).to(world.device)
    h = zeros_kept(transformation(held_out.old, held_out.side_info).embedding.float(), held_out.old)
    chosen = {distance: choose(held_out.new, h, distance) for distance in DISTANCES}
    if world.is_main:
        for distance, values in chosen.items():
            print(
                f"calibration, {distance}: {values['value']:.4g}; mixed galleries of held-out pairs agree with the new "
                f"model by {values['agreement']:.1%}, by {values['uncalibrated']:.1%} without it"
            )
    return {**description, "calibration": chosen}
