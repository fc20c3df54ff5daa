"""What an evaluation returns, and its JSON. Figures are fractions in [0, 1]."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any


@dataclass(frozen=True)
class Counts:
    """What the figures were computed on."""

    num_queries: int
    """Queries evaluated: those with a relevant item."""
    num_skipped: int
    """Queries without a relevant item."""
    num_gallery: int
    distance_metric: str


@dataclass(frozen=True)
class RetrievalMetrics(Counts):
    """CMC and mAP of one query set against one gallery."""

    cmc: Mapping[int, float]
    """k -> CMC top-k."""
    mean_average_precision: float | None
    """None if it was not computed."""

    def to_json(self) -> dict[str, float | None]:
        """`{"cmc_top1": x, "cmc_top5": x, "map": x}`, "map" null if it was not computed."""
        return {**{f"cmc_top{k}": value for k, value in self.cmc.items()}, "map": self.mean_average_precision}


@dataclass(frozen=True)
class BackfillingCurve(Counts):
    """The metrics while a gallery is backfilled in one order: a point for each cut-off."""

    cutoffs: tuple[int, ...]
    """Items that hold their new embedding."""
    points: tuple[RetrievalMetrics, ...]

    @property
    def fractions(self) -> tuple[float, ...]:
        """The share of the gallery that is backfilled at each point."""
        return tuple(cutoff / self.num_gallery for cutoff in self.cutoffs)

    @property
    def auc(self) -> RetrievalMetrics:
        """The area under the curve of each metric: the plain mean over the points (FastFill)."""
        precisions = [point.mean_average_precision for point in self.points]
        computed = [precision for precision in precisions if precision is not None]
        return RetrievalMetrics(
            self.num_queries,
            self.num_skipped,
            self.num_gallery,
            self.distance_metric,
            cmc={k: fmean(point.cmc[k] for point in self.points) for k in self.points[0].cmc},
            mean_average_precision=fmean(computed) if computed else None,
        )

    def to_json(self) -> dict[str, Any]:
        """`cutoffs`, `fractions`, a list over the points for each metric, and `auc`; "map" null if not computed."""
        points = [point.to_json() for point in self.points]
        auc = self.auc.to_json()
        columns = {name: None if area is None else [point[name] for point in points] for name, area in auc.items()}
        return {"cutoffs": list(self.cutoffs), "fractions": list(self.fractions), **columns, "auc": auc}
