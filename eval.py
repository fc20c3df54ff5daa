"""Evaluate retrieval: CMC, mAP, and the curve of a gallery that is backfilled a part at a time.

    python eval.py --config configs/cifar100_eval_old_new_fastfill.yaml --output result.json [key=value ...]
    torchrun --nproc_per_node=8 eval.py --config configs/imagenet_eval_old_new_fastfill.yaml

Queries and gallery come from models and images, or from embedding files (`embeddings_params`).
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from evaluation.sets import embed_queries_and_gallery, transform_gallery
from tqdm import tqdm

from data.embeddings import EmbeddingSet, write_embeddings
from evaluation.config import EvalConfig
from evaluation.files import ClassVectors, read_query_and_gallery
from evaluation.subsets import take_subset
from retrieval import (
    EVEN_SPREAD,
    BackfillingCurve,
    RetrievalMetrics,
    backfilling_curve,
    backfilling_order,
    class_spread,
    cutoffs,
    evaluate,
    order_quality,
    place_representatives,
)
from retrieval.evaluation import Progress
from retrieval.report import (
    Quality,
    class_table,
    correlations,
    curve_array,
    per_query_arrays,
    result_json,
    table,
)
from utils.config import check_outputs, load_config
from utils.distributed import World, process_group
from utils.errors import UserError, run_script
from utils.files import write_array, write_arrays, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", metavar="FILE", help="result file (JSON)")
    config = load_config(EvalConfig, parser)
    with process_group() as world:
        if world.is_main:
            check_outputs(config)
        files = config.embeddings_params
        if files is None:
            query, gallery, classes = embed_queries_and_gallery(config, world)
        else:
            query, gallery, side_info, by_place = read_query_and_gallery(files, config.eval_params, world.device)
            if by_place and world.is_main:
                print(
                    f"{files.query} and {files.gallery} have no ids, and the same labels: item i of both is taken for "
                    "the same one, which a query never retrieves (else set eval_params.same_items=false)"
                )
            gallery, classes = transform_gallery(gallery, side_info, files, world)
        if config.eval_params.subset is not None:
            query, gallery = take_subset(query, gallery, config.eval_params.subset, config.seed)
        try:
            orders = backfilling_orders(config, query, gallery, classes)
            gallery, placing = with_representatives(config, gallery, classes)
            metrics, curves = evaluate_sets(config, query, gallery, orders, world)
            quality = judge_orders(config, query, gallery, orders, world)
        except UserError as error:
            source = "" if files is None else f"embeddings_params: {files.query}, {files.gallery}: "
            raise UserError(f"{source}{error}") from None
        if world.is_main:
            write_results(config, query, gallery, metrics, curves, quality, placing, classes.names)
            if config.eval_params.verbose or config.output is None:  # else the figures would be lost
                if placing is not None and not placing["placed"]:
                    print(
                        f"no representatives: the gallery spreads over {placing['class_spread']:.0%} of the known "
                        f"classes, less than {EVEN_SPREAD:.0%}"
                    )
                print(table(metrics, curves, config.eval_params.confidence))
                if metrics.per_class:
                    print(class_table(metrics, classes.names))
                if quality:
                    print(correlations(quality))


def backfilling_orders(
    config: EvalConfig, query: EmbeddingSet, gallery: EmbeddingSet, classes: ClassVectors
) -> dict[str, torch.Tensor]:
    """The orders that the config asks for, each a permutation (n,) of the gallery; none without backfilling."""
    params = config.eval_params
    if params.backfilling is None or not params.backfilling_list:
        return {}
    if not query.same_items(gallery):
        raise UserError("eval_params.backfilling: needs queries and gallery of the same items")
    return {
        name: backfilling_order(
            name,
            transformed=gallery.embeddings,
            new=query.embeddings,
            log_variance=gallery.log_variance,
            classifier=classes.classifier,
            classifier_bias=classes.bias,
            class_means=classes.means,
            labels=gallery.labels,
            seed=config.seed,
            distance=params.distance_metric_name,
        )
        for name in params.backfilling_list
    }


def with_representatives(
    config: EvalConfig, gallery: EmbeddingSet, classes: ClassVectors
) -> tuple[EmbeddingSet, dict[str, Any] | None]:
    """The gallery with its representatives in their places, if the config asks for it and `auto` does not object.

    The second is what was found and done, as plain values; None where nothing was asked for.

    Raises:
        UserError: classifier or class means are not known.
    """
    if config.eval_params.representatives == "off":
        return gallery, None
    if classes.classifier is None or classes.means is None:
        raise UserError(
            "eval_params.representatives: need a classifier and class means; evaluate a transformation with a "
            "refinement, or give embeddings_params.classifier and .class_means"
        )
    spread = class_spread(gallery.embeddings, classes.classifier, classes.bias)
    placed = config.eval_params.representatives == "on" or spread >= EVEN_SPREAD
    if placed:
        embeddings = place_representatives(gallery.embeddings, classes.classifier, classes.means, classes.bias)
        gallery = replace(gallery, embeddings=embeddings)
    return gallery, {"class_spread": spread, "placed": placed}


def evaluate_sets(
    config: EvalConfig, query: EmbeddingSet, gallery: EmbeddingSet, orders: dict[str, torch.Tensor], world: World
) -> tuple[RetrievalMetrics, dict[str, BackfillingCurve]]:
    """The metrics before any backfilling and the curve of each order."""
    params = config.eval_params
    assert query.labels is not None
    with ranking_progress(config, query, world) as progress:
        shared: dict[str, Any] = {
            "query_ids": query.numbers,
            "gallery_ids": gallery.numbers,
            "distance": params.distance_metric_name,
            "recall_at": params.recall_at,
            "precision_at": params.precision_at,
            "compute_map": params.compute_map,
            "confidence": params.confidence,
            "seed": config.seed,
            "per_query": params.per_query is not None,
            "per_class": params.per_class,
            "world": world,
            "progress": progress,
        }
        if not orders:
            return evaluate(query.embeddings, gallery.embeddings, query.labels, gallery.labels, **shared), {}
        new, transformed = query.embeddings, gallery.embeddings
        assert params.backfilling is not None
        points = cutoffs(len(gallery), params.backfilling)
        curves = backfilling_curve(
            new, transformed, new, query.labels, gallery.labels, orders=orders, cutoffs=points, **shared
        )
    return next(iter(curves.values())).points[0], curves


def judge_orders(
    config: EvalConfig, query: EmbeddingSet, gallery: EmbeddingSet, orders: dict[str, torch.Tensor], world: World
) -> Quality:
    """How well each order finds the items that the transformation places badly, by each kind of risk.

    Not the random order, whose risk-coverage curve is known: the mean risk.
    """
    judged = {name: order for name, order in orders.items() if name != "random"}
    if not judged:
        return {}
    assert query.labels is not None
    with ranking_progress(config, query, world) as progress:
        return order_quality(
            gallery.embeddings,
            query.embeddings,
            query.labels,
            judged,
            distance=config.eval_params.distance_metric_name,
            compute_map=config.eval_params.compute_map,
            world=world,
            progress=progress,
        )


@contextmanager
def ranking_progress(config: EvalConfig, query: EmbeddingSet, world: World) -> Iterator[Progress]:
    """A progress bar over this process's share of the queries: a function to call with the number that are done."""
    share = len(range(len(query))[world.share(len(query))])
    hidden = None if config.eval_params.verbose and world.is_main else True
    with tqdm(total=share, desc="ranking", unit="query", leave=False, disable=hidden) as bar:

        def progress(done: int) -> None:
            bar.update(done - bar.n)

        yield progress


def write_results(
    config: EvalConfig,
    query: EmbeddingSet,
    gallery: EmbeddingSet,
    metrics: RetrievalMetrics,
    curves: dict[str, BackfillingCurve],
    quality: Quality,
    placing: dict[str, Any] | None,
    class_names: Sequence[str],
) -> None:
    """Write what the config asks for: the embeddings, the curves as an array, the figures of each query, the result."""
    params = config.eval_params
    if params.embeddings_output_dir is not None:
        write_embeddings(Path(params.embeddings_output_dir) / "query.npz", query)
        write_embeddings(Path(params.embeddings_output_dir) / "gallery.npz", gallery)
    if params.backfilling_result_path is not None and curves:
        write_array(params.backfilling_result_path, curve_array(curves))
    if params.per_query is not None:
        assert query.numbers is not None
        ids = query.numbers.cpu().numpy() if query.ids is None else query.ids  # the number of a query is its row's
        write_arrays(params.per_query, per_query_arrays(metrics, curves, ids))
    if config.output is not None:
        result = result_json(metrics, curves, params.confidence, quality, class_names)
        write_json(config.output, result if placing is None else {**result, "representatives": placing})


if __name__ == "__main__":
    run_script(main)
