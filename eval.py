"""Evaluate retrieval: CMC, mAP, and the curve of a gallery that is backfilled a part at a time.

    python eval.py --config configs/cifar100_eval_old_new_fastfill.yaml --output result.json [key=value ...]
    torchrun --nproc_per_node=8 eval.py --config configs/imagenet_eval_old_new_fastfill.yaml

Queries and gallery come from models and images, or from embedding files (`embeddings_params`).
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data.embeddings import ClassVectors, EmbeddingSet, read_query_and_gallery, write_embeddings
from retrieval import (
    BackfillingCurve,
    RetrievalMetrics,
    RiskCoverage,
    backfilling_curve,
    backfilling_order,
    cutoffs,
    evaluate,
    uncertainty_quality,
)
from retrieval.report import curve_array, per_query_arrays, result_json, table
from trainers.extraction import embed_queries_and_gallery, transform_gallery
from utils.config import load_config
from utils.distributed import World, process_group
from utils.errors import UserError, run_script
from utils.files import write_array, write_arrays, write_json
from utils.schema import EvalConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", metavar="FILE", help="result file (JSON)")
    config = load_config(EvalConfig, parser)
    with process_group() as world:
        files = config.embeddings_params
        if files is None:
            query, gallery, classes = embed_queries_and_gallery(config, world)
        else:
            query, gallery = read_query_and_gallery(files, world.device)
            gallery, classes = transform_gallery(gallery, files)
        try:
            metrics, curves = evaluate_sets(config, query, gallery, classes, world)
            uncertainty = judge_sigma(config, query, gallery, world) if "sigma" in curves else None
        except UserError as error:
            source = "" if files is None else f"embeddings_params: {files.query}, {files.gallery}: "
            raise UserError(f"{source}{error}") from None
        if world.is_main:
            write_results(config, query, gallery, metrics, curves, uncertainty)
            if config.eval_params.verbose:
                print(table(metrics, curves, config.eval_params.confidence))
                if uncertainty is not None:
                    correlation = uncertainty["alignment_error"].spearman
                    found = "none, as sigma is the same for all items" if correlation is None else f"{correlation:.2f}"
                    print(f"rank correlation of sigma with the alignment error: {found}")


def evaluate_sets(
    config: EvalConfig, query: EmbeddingSet, gallery: EmbeddingSet, classes: ClassVectors, world: World
) -> tuple[RetrievalMetrics, dict[str, BackfillingCurve]]:
    """The metrics before any backfilling and, if the config asks for it, the curve of each order."""
    params = config.eval_params
    assert query.labels is not None
    share = len(range(len(query))[world.share(len(query))])
    hidden = None if params.verbose and world.is_main else True
    with tqdm(total=share, desc="ranking", unit="query", leave=False, disable=hidden) as bar:
        shared: dict[str, Any] = {
            "query_ids": query.ids,
            "gallery_ids": gallery.ids,
            "distance": params.distance_metric_name,
            "recall_at": params.recall_at,
            "precision_at": params.precision_at,
            "compute_map": params.compute_map,
            "confidence": params.confidence,
            "seed": config.seed,
            "per_query": params.per_query is not None,
            "world": world,
            "progress": lambda done: bar.update(done - bar.n),
        }
        if params.backfilling is None or not params.backfilling_list:
            return evaluate(query.embeddings, gallery.embeddings, query.labels, gallery.labels, **shared), {}
        if not query.same_items(gallery):
            raise UserError("eval_params.backfilling: needs queries and gallery of the same items in the same order")
        new, transformed = query.embeddings, gallery.embeddings
        orders: dict[str, torch.Tensor] = {
            name: backfilling_order(
                name,
                transformed=transformed,
                new=new,
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
        points = cutoffs(len(gallery), params.backfilling)
        curves = backfilling_curve(
            new, transformed, new, query.labels, gallery.labels, orders=orders, cutoffs=points, **shared
        )
    return next(iter(curves.values())).points[0], curves


def judge_sigma(
    config: EvalConfig, query: EmbeddingSet, gallery: EmbeddingSet, world: World
) -> dict[str, RiskCoverage]:
    """How well the gallery's sigma tells the items that the transformation places well, by each kind of risk."""
    assert query.labels is not None
    assert gallery.log_variance is not None
    return uncertainty_quality(
        gallery.embeddings,
        query.embeddings,
        query.labels,
        gallery.log_variance,
        distance=config.eval_params.distance_metric_name,
        compute_map=config.eval_params.compute_map,
        world=world,
    )


def write_results(
    config: EvalConfig,
    query: EmbeddingSet,
    gallery: EmbeddingSet,
    metrics: RetrievalMetrics,
    curves: dict[str, BackfillingCurve],
    uncertainty: dict[str, RiskCoverage] | None,
) -> None:
    """Write what the config asks for: the embeddings, the curves as an array, the figures of each query, the result."""
    params = config.eval_params
    if params.embeddings_output_dir is not None:
        write_embeddings(Path(params.embeddings_output_dir) / "query.npz", query)
        write_embeddings(Path(params.embeddings_output_dir) / "gallery.npz", gallery)
    if params.backfilling_result_path is not None and curves:
        write_array(params.backfilling_result_path, curve_array(curves))
    if params.per_query is not None:
        write_arrays(params.per_query, per_query_arrays(metrics, curves, query.ids))
    if config.output is not None:
        write_json(config.output, result_json(metrics, curves, params.confidence, uncertainty))


if __name__ == "__main__":
    run_script(main)
