"""The second step: which items to re-embed first, what that will bring, and what it will cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.sources.embeddings import Source, open_source
from data.sources.rows import parts_of
from retrieval import backfilling_order, cutoffs
from retrieval.prediction import Curve, predict_map, predict_recall
from upgrade.computing import transform_rows
from upgrade.config import PlanParams, UpgradeConfig
from upgrade.inputs import output_of, present_transformation
from upgrade.old import read_checked
from upgrade.priorities import Chosen
from upgrade.spaces import have_unit_length
from upgrade.state import State
from utils.errors import UserError

METRICS = {"recall": "recall@{k} of what the new model retrieves", "map": "mAP"}


@dataclass(frozen=True)
class Sample:
    """Pairs of old and new embeddings of m items that the transformation has not seen."""

    transformed: Tensor  # (m, d)
    new: Tensor  # the same
    sigma: Tensor | None  # (m,)
    labels: Tensor | None  # (m,)


@dataclass(frozen=True)
class Plan:
    """The predicted curves, and the price of the target."""

    curves: Mapping[str, Curve]  # by order: that of the answer, and random
    order: str  # the order of the answer
    metric: str
    pairs: int
    rows: int
    fraction: float  # of the gallery, to reach ...
    target: float  # ... this share of the full upgrade
    confidence: float  # level of the bands
    items_per_second: float | None

    @property
    def items(self) -> int:
        """How many items to re-embed."""
        return ceil(self.fraction * self.rows)

    @property
    def sentence(self) -> str:
        """The answer in one line."""
        reached, low, high = self.curves[self.order].relative().at(self.fraction)
        interval = f"{100 * self.confidence:g} % interval {100 * low:.1f} to {100 * high:.1f} %"
        reach = f"{100 * reached:.1f} % of the full upgrade ({interval})"
        text = f"re-embed {self.items:,} items ({100 * self.fraction:.1f} %) to reach {reach}"
        if self.items_per_second:
            hours = self.items / self.items_per_second / 3600
            text += f"; at {self.items_per_second:g} items/s that is {hours:.3g} hours"
        return text

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values; fractions in [0, 1]."""
        reached, low, high = self.curves[self.order].relative().at(self.fraction)
        return {
            "metric": self.metric,
            "pairs": self.pairs,
            "items": self.rows,
            "answer": {
                "text": self.sentence,
                "order": self.order,
                "target": self.target,
                "items": self.items,
                "fraction": self.fraction,
                "reached": reached,
                "confidence": self.confidence,
                "interval": [low, high],
            },
            "curves": {name: asdict(curve) for name, curve in self.curves.items()},
        }


def predict(config: UpgradeConfig, state: State, chosen: Chosen, rows: int) -> Plan:
    """Predict the curves of the re-embedding from the sample of pairs that the config names.

    Args:
        config: names the pairs.
        state: of the table.
        chosen: the order.
        rows: of the gallery.

    Raises:
        UserError: the pairs cannot be read or do not fit the gallery, or a file has changed since the transformation.
    """
    params = config.plan_params
    sample = read_sample(config, state)
    m = len(sample.new)
    if params.metric == "recall" and params.k >= m / 2:
        raise UserError(f"plan_params.k: {params.k} is too deep for a sample of {m} pairs")
    names = list(dict.fromkeys([chosen.name, "random"]))
    orders = {
        name: backfilling_order(
            name,
            transformed=sample.transformed,
            new=sample.new,
            log_variance=sample.sigma,
            classifier=chosen.classifier,
            seed=config.seed,
        )
        for name in names
    }
    transformed, new = sample.transformed, sample.new
    calibration = state.calibrated()
    if calibration is not None:
        transformed, new = calibration.transformed(transformed), calibration.exact(new)
    shared: dict[str, Any] = {
        "orders": orders,
        "cutoffs": cutoffs(m, params.points),
        "confidence": params.confidence,
        "seed": config.seed,
    }
    if params.metric == "map":
        if sample.labels is None:
            raise UserError(f"plan_params.metric: map needs `labels` in {params.new}")
        curves = predict_map(new, transformed, sample.labels, **shared)
    else:
        curves = predict_recall(new, transformed, k=params.k, **shared)
    return Plan(
        curves,
        names[0],
        METRICS[params.metric].format(k=params.k),
        m,
        rows,
        curves[names[0]].relative().reaching(params.target),
        params.target,
        params.confidence,
        params.items_per_second,
    )


def read_sample(config: UpgradeConfig, state: State) -> Sample:
    """The pairs of a config, at most `max_pairs` of them, drawn evenly; the old ones as the gallery has them now.

    Raises:
        UserError: as `predict`.
    """
    params = config.plan_params
    sources = _open_pairs(params, state)
    transformation = present_transformation(config, state)
    side_info = sources.get("side_info")
    output_of(transformation, config, sources["old"].dim, None if side_info is None else side_info.dim)
    count = len(sources["old"])
    drawn = np.random.default_rng(config.seed).permutation(count)[: params.max_pairs]
    chosen = np.zeros(count, bool)
    chosen[drawn] = True
    columns: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in (*sources, "labels")}
    labels = sources["new"].labels
    for start, stop in parts_of(count):
        here = chosen[start:stop]
        for name, source in sources.items():
            columns[name].append(read_checked(source.vectors, f"plan_params.{name}", start, stop)[here])
        if labels is not None:
            columns["labels"].append(labels.read(start, stop)[here])
    arrays = {name: np.concatenate(parts) for name, parts in columns.items() if parts}
    if have_unit_length(arrays["new"]) != state.normalised:
        raise UserError(
            f"plan_params.new: {params.new}: embeddings of length 1 are those of one of the two, file and gallery; "
            "see `normalised`"
        )
    inputs = [arrays[name] for name in ("old", "side_info") if name in arrays]
    where = f"plan_params.old: {params.old}, drawn and transformed by {config.transformation_path}"
    vectors, sigma = transform_rows(transformation, inputs, state, torch.device("cpu"), where, 0)
    return Sample(
        torch.from_numpy(vectors).float(),
        torch.from_numpy(arrays["new"]).float(),
        None if sigma is None else torch.from_numpy(sigma),
        torch.from_numpy(arrays["labels"]) if "labels" in arrays else None,
    )


def _open_pairs(params: PlanParams, state: State) -> dict[str, Source]:
    """The sources of the sample, by their keys, of the same items in the order of the new ones; dimensions checked."""
    named = {"old": params.old, "new": params.new, "side_info": params.side_info}
    sources = {name: open_source(path, where=f"plan_params.{name}") for name, path in named.items() if path is not None}
    new = sources["new"]
    if new.dim != state.dim:
        raise UserError(f"plan_params.new: {new.path} is {new.dim}-d, but the gallery's embeddings are {state.dim}-d")
    if (state.side_info is None) != ("side_info" not in sources):
        raise UserError("plan_params.side_info: should be given if, and only if, the gallery has side-information")
    del sources["new"]
    return {name: source.in_order_of(new, f"plan_params.{name}") for name, source in sources.items()} | {"new": new}
