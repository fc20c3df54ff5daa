"""An evaluation: queries and a gallery -> metrics, and the curve of a gallery that is backfilled in each order."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from data.embeddings import EmbeddingSet
from evaluation.config import EvalConfig, EvalParams
from evaluation.files import Calibrations, ClassVectors
from evaluation.items import Compared
from retrieval import (
    EVEN_SPREAD,
    BackfillingCurve,
    Calibration,
    Progress,
    RetrievalMetrics,
    RiskCoverage,
    backfilling_curve,
    backfilling_order,
    class_spread,
    cutoffs,
    evaluate,
    order_quality,
    place_representatives,
    two_field_curve,
)
from retrieval.results import Wanted
from utils.distributed import World
from utils.errors import UserError

Curves = Mapping[str, BackfillingCurve]  # by order
Quality = Mapping[str, Mapping[str, RiskCoverage]]  # order -> risk -> how good the order is


@dataclass(frozen=True)
class Placing:
    """Whether a gallery's representatives were placed, and what that hung on."""

    class_spread: float  # the share of the known classes over which the gallery spreads
    placed: bool


@dataclass(frozen=True)
class Evaluation:
    """What was evaluated, and what was found."""

    query: EmbeddingSet
    gallery: EmbeddingSet  # with its representatives in their places
    class_names: Sequence[str]  # by label; empty where there are none
    metrics: RetrievalMetrics  # before any backfilling
    curves: Curves
    calibration: Calibration | None  # of the curves
    quality: Quality
    placing: Placing | None  # None where no representatives were asked for
    group_names: Sequence[str] = ()  # by the number of a group of queries; empty without groups


def evaluate_retrieval(compared: Compared, config: EvalConfig, world: World) -> Evaluation:
    """Compute what the config asks for; every process calls it with the same items, and all get the same figures.

    Raises:
        UserError: an order or the representatives need what is not known, or labels or embeddings that cannot be
            evaluated; of embedding files, it names them.
    """
    query, gallery, classes = compared.query, compared.gallery, compared.classes
    try:
        orders = backfilling_orders(compared, config)
        if "auto" in orders and compared.unhelpful and world.is_main:
            found = ", ".join(compared.unhelpful)
            print(f"order auto: no better than random when the transformation was fitted: {found}", flush=True)
        gallery, placing = with_representatives(gallery, classes, config.eval_params.representatives)
        is_mixed = bool(orders) or gallery.re_embedded is not None
        calibration = calibration_for(config.eval_params, compared.calibrations) if is_mixed else None
        metrics, curves = metrics_and_curves(query, gallery, orders, calibration, config, world)
        for number, name in enumerate(compared.group_names):
            if number not in metrics.per_group:
                raise UserError(f"eval_params.groups: no query of the group {name} has a relevant item in the gallery")
        quality = judge_orders(query, gallery, orders, config, world)
    except UserError as error:
        files = config.embeddings_params
        source = "" if files is None else f"embeddings_params: {files.query}, {files.gallery}: "
        raise UserError(f"{source}{error}") from None
    return Evaluation(
        query, gallery, classes.names, metrics, curves, calibration, quality, placing, compared.group_names
    )


def backfilling_orders(compared: Compared, config: EvalConfig) -> dict[str, torch.Tensor]:
    """The orders that the config asks for, each a permutation (n,) of the gallery; none without backfilling."""
    params, query, gallery, classes = config.eval_params, compared.query, compared.gallery, compared.classes
    if params.backfilling is None or not params.backfilling_list:
        return {}
    if params.two_fields is not None and (gallery.cameras is not None or not query.same_items(gallery)):
        raise UserError("eval_params.two_fields: needs queries and gallery of the same items, without cameras")
    new = new_of_gallery(query, gallery)
    return {
        name: backfilling_order(
            name,
            # With two fields nothing is transformed, and the old vectors may have another dimension.
            transformed=gallery.embeddings if params.two_fields is None else new,
            new=new,
            log_variance=gallery.log_variance,
            classifier=classes.classifier,
            classifier_bias=classes.bias,
            class_means=classes.means,
            labels=gallery.labels,
            seed=config.seed,
            distance=params.distance_metric_name,
            unhelpful=compared.unhelpful,
        )
        for name in params.backfilling_list
    }


def new_of_gallery(query: EmbeddingSet, gallery: EmbeddingSet) -> torch.Tensor:
    """The new model's embeddings of the gallery's items, (n, d): those of the queries where both are the same items.

    Raises:
        UserError: they are not known.
    """
    if gallery.new is not None:
        return gallery.new
    if not query.same_items(gallery):
        raise UserError(
            "eval_params.backfilling: needs queries and gallery of the same items, or embeddings_params.new_gallery"
        )
    return query.embeddings


def with_representatives(
    gallery: EmbeddingSet, classes: ClassVectors, wanted: str
) -> tuple[EmbeddingSet, Placing | None]:
    """The gallery with its representatives in their places, if they are wanted and `auto` does not object.

    Raises:
        UserError: classifier or class means are not known.
    """
    if wanted == "off":
        return gallery, None
    if classes.classifier is None or classes.means is None:
        raise UserError(
            "eval_params.representatives: need a classifier and class means; evaluate a transformation with a "
            "refinement, or give embeddings_params.classifier and .class_means"
        )
    spread = class_spread(gallery.embeddings, classes.classifier, classes.bias)
    placing = Placing(spread, placed=wanted == "on" or spread >= EVEN_SPREAD)
    if placing.placed:
        embeddings = place_representatives(gallery.embeddings, classes.classifier, classes.means, classes.bias)
        gallery = replace(gallery, embeddings=embeddings)
    return gallery, placing


def calibration_for(params: EvalParams, recorded: Calibrations) -> Calibration | None:
    """The calibration that an evaluation is asked for, if any."""
    distance, wanted = params.distance_metric_name, params.calibration
    if isinstance(wanted, float):
        return Calibration(distance, wanted)
    if wanted == "off" or distance not in recorded:
        return None
    return Calibration(distance, recorded[distance]["value"])


def metrics_and_curves(
    query: EmbeddingSet,
    gallery: EmbeddingSet,
    orders: Mapping[str, torch.Tensor],
    calibration: Calibration | None,
    config: EvalConfig,
    world: World,
) -> tuple[RetrievalMetrics, Curves]:
    """The metrics before any backfilling and the curve of each order."""
    params = config.eval_params
    assert query.labels is not None
    if params.two_fields is not None:
        curves = two_field_curves(query, gallery, orders, config, world)
        return next(iter(curves.values())).points[0], curves
    with ranking_progress(query, config, world) as progress:
        shared: dict[str, Any] = {
            "query_ids": query.numbers,
            "gallery_ids": gallery.numbers,
            "query_cameras": query.cameras,
            "gallery_cameras": gallery.cameras,
            "distance": params.distance_metric_name,
            "recall_at": params.recall_at,
            "precision_at": params.precision_at,
            "compute_map": params.compute_map,
            "interval_level": params.interval_level,
            "seed": config.seed,
            "per_query": params.per_query is not None,
            "per_class": params.per_class,
            "query_groups": query.group_numbers,
            "world": world,
            "progress": progress,
        }
        queries, transformed = query.embeddings, gallery.embeddings
        new = new_of_gallery(query, gallery) if orders else None
        if calibration is not None:
            queries, new = calibration.exact(queries), None if new is None else calibration.exact(new)
            if gallery.re_embedded is None:
                transformed = calibration.transformed(transformed)
            else:
                own = None if isinstance(params.calibration, float) else gallery.calibration
                transformed = calibration.mixed(transformed, gallery.re_embedded, own)
        if new is None:
            return evaluate(queries, transformed, query.labels, gallery.labels, **shared), {}
        assert params.backfilling is not None
        points = cutoffs(len(gallery), params.backfilling)
        curves = backfilling_curve(
            queries, transformed, new, query.labels, gallery.labels, orders=orders, cutoffs=points, **shared
        )
    return next(iter(curves.values())).points[0], curves


def two_field_curves(
    query: EmbeddingSet,
    gallery: EmbeddingSet,
    orders: Mapping[str, torch.Tensor],
    config: EvalConfig,
    world: World,
) -> Curves:
    """The curve of each order where both models' vectors are kept, each in a field of its own."""
    params = config.eval_params
    assert query.labels is not None
    assert params.backfilling is not None
    assert params.two_fields is not None
    if gallery.re_embedded is not None:
        raise UserError("eval_params.two_fields: is for a gallery of the old model; this one is being upgraded")
    points = cutoffs(len(gallery), params.backfilling)
    curves = {}
    for name, order in orders.items():
        with shown_progress(len(points), "points", config, world) as progress:
            curves[name] = two_field_curve(
                query.embeddings,
                gallery.embeddings,
                query.labels,
                order=order,
                cutoffs=points,
                merge=params.two_fields,
                distance=params.distance_metric_name,
                groups=query.group_numbers,
                wanted=Wanted(
                    recall_at=params.recall_at, precision_at=params.precision_at, compute_map=params.compute_map
                ),
                world=world,
                progress=progress,
            )
    return curves


def judge_orders(
    query: EmbeddingSet, gallery: EmbeddingSet, orders: Mapping[str, torch.Tensor], config: EvalConfig, world: World
) -> Quality:
    """How well each order finds the items that the transformation places badly, by each kind of risk.

    Not the random order, whose risk-coverage curve is known: the mean risk.
    """
    judged = {name: order for name, order in orders.items() if name != "random"}
    if not judged:
        return {}
    assert gallery.labels is not None
    with ranking_progress(gallery, config, world) as progress:
        return order_quality(
            gallery.embeddings,
            new_of_gallery(query, gallery),
            gallery.labels,
            judged,
            cameras=gallery.cameras,
            distance=config.eval_params.distance_metric_name,
            compute_map=config.eval_params.compute_map,
            world=world,
            progress=progress,
        )


def ranking_progress(query: EmbeddingSet, config: EvalConfig, world: World) -> AbstractContextManager[Progress]:
    """A progress bar over this process's share of the queries: a function to call with the number that are done."""
    return shown_progress(len(range(len(query))[world.share(len(query))]), "query", config, world)


@contextmanager
def shown_progress(total: int, unit: str, config: EvalConfig, world: World) -> Iterator[Progress]:
    """A progress bar: a function to call with the number that are done."""
    hidden = None if config.eval_params.verbose and world.is_main else True
    with tqdm(total=total, desc="ranking", unit=unit, leave=False, disable=hidden) as bar:

        def progress(done: int) -> None:
            bar.update(done - bar.n)

        yield progress
