"""Evaluate retrieval: CMC, mAP, and the curve of a gallery that is backfilled a part at a time.

    python eval.py --config configs/cifar100_eval_old_new_fastfill.yaml --output result.json [key=value ...]
    torchrun --nproc_per_node=8 eval.py --config configs/imagenet_eval_old_new_fastfill.yaml

Queries and gallery come from models and images, or from embedding files (`embeddings_params`).
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.embeddings import EmbeddingSet, read_embeddings, write_embeddings
from retrieval import BackfillingCurve, RetrievalMetrics, backfilling_curve, backfilling_order, cutoffs, evaluate
from trainers.extraction import embed_queries_and_gallery
from utils.config import check_inputs, load_config
from utils.distributed import World, process_group
from utils.errors import UserError, run_script
from utils.files import atomic_path, write_json
from utils.schema import EvalConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", metavar="FILE", help="result file (JSON)")
    config = load_config(EvalConfig, parser)
    check_inputs(config)
    with process_group() as world:
        if config.embeddings_params is not None:
            query = to_device(read_embeddings(config.embeddings_params.query, where="embeddings_params.query"), world)
            gallery = to_device(
                read_embeddings(config.embeddings_params.gallery, where="embeddings_params.gallery"), world
            )
        else:
            query, gallery = embed_queries_and_gallery(config, world)
        metrics, curves = evaluate_sets(config, query, gallery, world)
        if world.is_main:
            write_results(config, query, gallery, metrics, curves)
            if config.eval_params.verbose:
                print(table(metrics, curves))


def to_device(items: EmbeddingSet, world: World) -> EmbeddingSet:
    """The same items on the device."""
    if items.labels is None:
        raise UserError("embeddings_params: evaluation needs `labels` in both embedding files")
    sigma = items.log_variance
    return EmbeddingSet(
        items.embeddings.to(world.device),
        items.ids.to(world.device),
        items.labels.to(world.device),
        None if sigma is None else sigma.to(world.device),
    )


def evaluate_sets(
    config: EvalConfig, query: EmbeddingSet, gallery: EmbeddingSet, world: World
) -> tuple[RetrievalMetrics, dict[str, BackfillingCurve]]:
    """The metrics before any backfilling and, if the config asks for it, the curve of each order."""
    params = config.eval_params
    assert query.labels is not None
    verbose = params.verbose and world.is_main
    share = len(range(len(query))[world.share(len(query))])
    with tqdm(total=share, desc="ranking", unit="query", leave=False, disable=None if verbose else True) as bar:
        shared: dict[str, Any] = {
            "query_ids": query.ids,
            "gallery_ids": gallery.ids,
            "distance": params.distance_metric_name,
            "compute_map": params.compute_map,
            "world": world,
            "progress": lambda done: bar.update(done - bar.n),
        }
        if params.backfilling is None or not params.backfilling_list:
            return evaluate(query.embeddings, gallery.embeddings, query.labels, gallery.labels, **shared), {}
        if not torch.equal(query.ids, gallery.ids):
            raise UserError("eval_params.backfilling: needs queries and gallery of the same items in the same order")
        new = query.embeddings
        orders: dict[str, torch.Tensor] = {
            name: backfilling_order(
                name,
                transformed=gallery.embeddings,
                new=new,
                log_variance=gallery.log_variance,
                seed=config.seed,
                distance=params.distance_metric_name,
            )
            for name in params.backfilling_list
        }
        curves = backfilling_curve(
            new,
            gallery.embeddings,
            new,
            query.labels,
            gallery.labels,
            orders=orders,
            cutoffs=cutoffs(len(gallery), params.backfilling),
            **shared,
        )
    return next(iter(curves.values())).points[0], curves


def write_results(
    config: EvalConfig,
    query: EmbeddingSet,
    gallery: EmbeddingSet,
    metrics: RetrievalMetrics,
    curves: dict[str, BackfillingCurve],
) -> None:
    """Write what the config asks for: the result JSON, the curves as an array, the embeddings."""
    params = config.eval_params
    if params.embeddings_output_dir is not None:
        write_embeddings(Path(params.embeddings_output_dir) / "query.npz", query)
        write_embeddings(Path(params.embeddings_output_dir) / "gallery.npz", gallery)
    if params.backfilling_result_path is not None and curves:
        columns = ("cmc_top1", "cmc_top5", "map")
        points = [[[point.to_json()[name] for name in columns] for point in curve.points] for curve in curves.values()]
        with atomic_path(params.backfilling_result_path) as temporary, temporary.open("wb") as file:
            np.save(file, np.array(points, dtype=np.float64))  # (orders, points, 3); NaN for mAP that was not computed
    if config.output is not None:
        result: dict[str, Any] = {
            "num_queries": metrics.num_queries,
            "num_skipped": metrics.num_skipped,
            "num_gallery": metrics.num_gallery,
            "distance_metric": metrics.distance_metric,
            "metrics": metrics.to_json(),
        }
        if curves:
            result["backfilling"] = {name: curve.to_json() for name, curve in curves.items()}
        write_json(config.output, result)


def table(metrics: RetrievalMetrics, curves: dict[str, BackfillingCurve]) -> str:
    """The figures in percent, a row for the unfilled gallery and one for the area under each curve."""
    rows = {"no backfilling": metrics, **{f"AUC, {name} order": curve.auc for name, curve in curves.items()}}
    lines = [f"{'':24}{'CMC-1':>8}{'CMC-5':>8}{'mAP':>8}"]
    for title, row in rows.items():
        values = [f"{value:8.2%}".replace("%", "") if value is not None else "-" for value in row.to_json().values()]
        lines.append(f"{title:24}" + "".join(f"{value:>8}" for value in values))
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
