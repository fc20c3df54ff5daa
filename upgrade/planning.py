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
from upgrade.columns import values
from upgrade.computing import transform_rows
from upgrade.config import PlanParams, UpgradeConfig
from upgrade.inputs import output_of, present_transformation
from upgrade.old import read_checked
from upgrade.priorities import Chosen
from upgrade.spaces import have_unit_length, open_new
from upgrade.state import State
from upgrade.table import Table
from utils.errors import UserError

METRICS = {"recall": "recall@{k} of what the new model retrieves", "map": "mAP"}


@dataclass(frozen=True)
class Sample:
    """Transformed and new embeddings of m items that the transformation has not seen."""

    transformed: Tensor  # (m, d)
    new: Tensor  # the same
    sigma: Tensor | None  # (m,)
    labels: Tensor | None  # (m,)
    calibration: Tensor | None = None  # (m,), where each has its own


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
    def reached(self) -> tuple[float, float, float]:
        """The share of the full upgrade there, and its band."""
        return self.curves[self.order].relative().at(self.fraction)

    @property
    def sentence(self) -> str:
        """The answer in one line."""
        reached, low, high = self.reached
        interval = f"{100 * self.confidence:g} % interval {100 * low:.1f} to {100 * high:.1f} %"
        reach = f"{100 * reached:.1f} % of the full upgrade ({interval})"
        text = f"re-embed {self.items:,} items ({100 * self.fraction:.1f} %) to reach {reach}"
        if self.items_per_second:
            hours = self.items / self.items_per_second / 3600
            text += f"; at {self.items_per_second:g} items/s that is {hours:.3g} hours"
        return text

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values; fractions in [0, 1]."""
        reached, *interval = self.reached
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
                "interval": interval,
            },
            "curves": {name: asdict(curve) for name, curve in self.curves.items()},
        }


def predict(config: UpgradeConfig, table: Table, chosen: Chosen) -> Plan:
    """Predict the curves of the re-embedding from the sample that the config names.

    Args:
        config: names the sample.
        table: of the gallery.
        chosen: the order.

    Raises:
        UserError: the pairs cannot be read or do not fit the gallery, or a file has changed since the transformation.
    """
    params, state = config.plan_params, table.state
    sample = read_sample(config, state) if params.old is not None else look_up_sample(config, table)
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
        transformed, new = calibration.transformed(transformed, sample.calibration), calibration.exact(new)
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
        table.dataset.count_rows(),
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
    if state.earlier is not None:
        raise UserError(
            f"plan_params.old: the gallery's items are of {state.earlier['model']} and of {state.old_model}; leave it "
            "out, and give `new` with ids of items of the gallery"
        )
    sources = _open_pairs(params, state)
    transformation = present_transformation(config, state)
    side_info = sources.get("side_info")
    named, where = f"plan_params.old: {params.old}", f"transformation_path: {config.transformation_path}"
    output_of(transformation, where, named, sources["old"].dim, None if side_info is None else side_info.dim)
    count, labels = len(sources["old"]), sources["new"].labels
    rows = np.sort(np.random.default_rng(config.seed).permutation(count)[: params.max_pairs])
    arrays = {name: _rows_of(source, f"plan_params.{name}", rows) for name, source in sources.items()}
    _check_lengths(arrays["new"], config, state)
    inputs = [arrays[name] for name in ("old", "side_info") if name in arrays]
    where = f"plan_params.old: {params.old}, drawn and transformed by {config.transformation_path}"
    vectors, sigma = transform_rows(transformation, inputs, state, torch.device("cpu"), where, 0)
    return Sample(
        torch.from_numpy(vectors).float(),
        torch.from_numpy(arrays["new"]).float(),
        None if sigma is None else torch.from_numpy(sigma),
        None if labels is None else torch.from_numpy(labels.take(rows)),
    )


def look_up_sample(config: UpgradeConfig, table: Table) -> Sample:
    """New embeddings, at most `max_pairs` of them, drawn evenly, and what the table has of their items.

    Items that are re-embedded already are left out.

    Raises:
        UserError: the embeddings cannot be read, have no ids, or do not fit the gallery.
    """
    params, state = config.plan_params, table.state
    assert params.new is not None
    source, where = open_new(params.new, state, where="plan_params.new"), f"plan_params.new: {params.new}"
    if source.ids is None or source.has_text_ids != table.has_text_ids:
        raise UserError(f"{where}: has no ids of the gallery's kind; without plan_params.old items are told by those")
    ids = source.ids.read(0, len(source))
    place, found = table.lookup(ids, ["batch"])
    if (place < 0).any():
        raise UserError(f"{where}: the gallery has no id {ids[place < 0][0]} ({(place < 0).sum():,} such ids)")
    left = np.flatnonzero(values(found["batch"])[place] == 0)
    drawn = np.sort(left[np.random.default_rng(config.seed).permutation(len(left))[: params.max_pairs]])
    vectors, labels = _rows_of(source, where, drawn), source.labels
    _check_lengths(vectors, config, state)
    columns = ["embedding", "sigma", *(["calibration"] if state.has_calibrations else [])]
    place, found = table.lookup(ids[drawn], columns)
    rows = found.take(place)
    kept = {name: torch.from_numpy(values(rows[name])) for name in columns if rows[name].null_count == 0}
    return Sample(
        kept["embedding"].float(),
        torch.from_numpy(vectors).float(),
        kept.get("sigma"),
        None if labels is None else torch.from_numpy(labels.take(drawn)),
        kept.get("calibration"),
    )


def _rows_of(source: Source, where: str, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The vectors in some rows (m,), which rise; all are read, a part at a time, and checked."""
    parts = ((start, stop, rows[(rows >= start) & (rows < stop)]) for start, stop in parts_of(len(source)))
    return np.concatenate([read_checked(source.vectors, where, start, stop)[of - start] for start, stop, of in parts])


def _check_lengths(new: np.ndarray[Any, Any], config: UpgradeConfig, state: State) -> None:
    if have_unit_length(new) != state.normalised:
        raise UserError(
            f"plan_params.new: {config.plan_params.new}: embeddings of length 1 are those of one of the two, file and "
            "gallery; see `normalised`"
        )


def _open_pairs(params: PlanParams, state: State) -> dict[str, Source]:
    """The sources of the sample, by their keys, of the same items in the order of the new ones; dimensions checked."""
    assert params.new is not None
    new = open_new(params.new, state, where="plan_params.new")
    named = {"old": params.old, "side_info": params.side_info}
    sources = {name: open_source(path, where=f"plan_params.{name}") for name, path in named.items() if path is not None}
    if (state.side_info is None) != ("side_info" not in sources):
        raise UserError("plan_params.side_info: should be given if, and only if, the gallery has side-information")
    return {name: source.in_order_of(new, f"plan_params.{name}") for name, source in sources.items()} | {"new": new}
