"""Which log variance a transformation gets, and whether orders help: both seen on held-out pairs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from data.lengths import zeros_kept
from models.modes import in_eval_mode
from models.standardisation import Standardisation, mean_and_scale
from trainers.transformation.division import FittingData
from trainers.transformation.fitting import Fitted
from trainers.transformation.residuals import Regression, residual_head, set_level
from utils.distributed import World

# (h (n, d), new (n, d), labels (n,) or None, name -> score (n,), the largest first) -> what each brings beyond chance
Gains = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor | None, Mapping[str, torch.Tensor]], dict[str, dict[str, Any]]
]


@torch.no_grad()
def choose_uncertainty(
    fitted: Fitted, regression: Regression | None, data: FittingData, gains: Gains, world: World
) -> dict[str, dict[str, Any]]:
    """Give a transformation the log variance whose order brings most on held-out pairs; say which orders help.

    There is its own, if it has one, and the residual head; and either relative to the distance from the mean of the new
    embeddings too. Where items differ in length, what lies far out is found easily, and has the larger errors.

    Returns:
        Order -> what it brings, as plain values: `sigma`, and `confidence` where there is a classifier. Empty where
        nothing is held out.
    """
    if regression is None:
        return {}
    assert data.judged is not None
    items, transformation = data.judged, fitted.transformation
    head = residual_head(regression, world.device)
    centre = Standardisation(data.dims["new"]).to(world.device)
    mean, scale = mean_and_scale(data.training.views[0].embeddings["new"])
    centre.mean.copy_(mean)
    centre.scale.fill_(scale or 1.0)
    choices = {
        (own, relative): (None if own else head, centre if relative else None)
        for relative in (False, True)
        for own in ([True, False] if transformation.has_uncertainty else [False])
    }
    scores: dict[str, torch.Tensor] = {}
    h = items.new
    for choice, (chosen_head, chosen_centre) in choices.items():
        transformation.residual_head, transformation.centre = chosen_head, chosen_centre
        with in_eval_mode(transformation):
            h, log_variance = transformation(items.old, items.side_info)
        assert log_variance is not None
        scores[str(choice)] = log_variance.float().mean(1)
    h = zeros_kept(h, items.old)
    if data.classifier is not None:
        logits = h @ data.classifier.to(h.device).T
        scores["confidence"] = -logits.log_softmax(1).amax(1)
    found = gains(h, items.new, items.labels if data.has_labels else None, scores)
    best = max(choices, key=lambda choice: found[str(choice)]["gain"])  # of equal ones, the first
    transformation.residual_head, transformation.centre = choices[best]
    if transformation.residual_head is not None:
        set_level(transformation, items)
        fitted.arguments["residual_inputs"] = transformation.residual_head.in_features
    if transformation.centre is not None:
        fitted.arguments["relative"] = True
    orders = {"sigma": found[str(best)]} | {name: found[name] for name in ("confidence",) if name in found}
    if world.is_main:
        for name, order in orders.items():
            beyond = f"{100 * order['gain']:+.2f} points of {order['measure']} beyond random order on held-out pairs"
            helps = "" if order["beats_random"] else ": no better than chance, so `auto` never chooses it"
            print(f"order {name}: {beyond}, standard error {100 * order['error']:.2f}{helps}", flush=True)
    return orders
