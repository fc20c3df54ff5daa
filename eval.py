"""Evaluate retrieval: CMC, mAP, and the curve of a gallery that is backfilled a part at a time.

    python eval.py --config configs/cifar100_eval_old_new_fastfill.yaml --output result.json [key=value ...]

Queries and gallery come from models and images, or from embedding files (`embeddings_params`).
"""

import argparse

from evaluation.config import EvalConfig
from utils.config import load_config
from utils.config_files import check_outputs
from utils.errors import run_script
from utils.launch import launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", metavar="FILE", help="result file (JSON)")
    config = load_config(EvalConfig, parser)
    launch(config.processes)

    from evaluation.items import query_and_gallery
    from evaluation.outputs import write_outputs
    from evaluation.run import evaluate_retrieval
    from evaluation.tables import tables
    from utils.distributed import process_group

    with process_group() as world:
        if config.eval_params.verbose:
            world.announce(config.precision)
        if world.is_main:
            check_outputs(config)
        evaluation = evaluate_retrieval(query_and_gallery(config, world), config, world)
        if world.is_main:
            write_outputs(evaluation, config)
            if config.eval_params.verbose or config.output is None:  # else the figures would be lost
                print(tables(evaluation, config.eval_params.interval_level))


if __name__ == "__main__":
    run_script(main)
