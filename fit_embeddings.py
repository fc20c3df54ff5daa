"""Fit a transformation to a sample of paired embeddings: the same items by the old and by the new model.

python fit_embeddings.py --config configs/fit_embeddings.yaml old=FILE new=FILE [method=fastfill ...] output=FILE.pt

It chooses the method by held-out pairs. With `held_out: 0` it is the papers' training, fed from files.
"""

import argparse

from trainers.transformation.config import AUTO, FitConfig
from utils.config import load_config, to_dict
from utils.errors import run_script
from utils.launch import launch
from utils.preemption import Preemption


def main() -> None:
    config = load_config(FitConfig, argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    launch(config.processes)

    import torch

    from data.paired_embeddings import read_paired_embeddings
    from models.export import check_formats, export_model
    from models.model_files import load_model, save_model
    from retrieval import choose_calibration, order_gains, retrieval_qualities, upgrade_quality
    from trainers.budget import Clock, seconds_of
    from trainers.transformation.calibration import with_calibration
    from trainers.transformation.division import divide
    from trainers.transformation.fitting import provenance
    from trainers.transformation.refinement import describe_with_refinement, material_of_files
    from trainers.transformation.residuals import regression_of
    from trainers.transformation.selection import choose, comparison, fit_methods
    from trainers.transformation.uncertainty import choose_uncertainty
    from utils.distributed import process_group
    from utils.runs import Run

    check_formats(config.export_formats)
    with Preemption() as preemption, process_group() as world:
        clock = Clock(None if config.budget is None else seconds_of(config.budget))
        data = divide(read_paired_embeddings(config, world), config, world)
        material = material_of_files(data, config.refinement_params)
        regression = regression_of(data, config, world)
        fitted = fit_methods(config, data, regression, retrieval_qualities, world, preemption, clock)
        if config.method == AUTO:
            Run(config.output, config, world)  # the config beside the output
        if world.is_main:
            print(comparison(fitted), end="", flush=True)
        best = choose(fitted)
        orders = choose_uncertainty(best, regression, data, order_gains, world)
        description = describe_with_refinement(best.transformation, best.arguments, material, upgrade_quality, world)
        held_out = data.held_out if config.calibrates else None
        if orders:
            description["orders"] = orders
        description = with_calibration(description, held_out, choose_calibration, world)
        if world.is_main:
            origin = provenance(config, data, fitted)
            save_model(config.output, description, config=to_dict(config), seed=config.seed, embeddings=origin)
            print(f"transformation: {config.output}")
            if config.export_formats:
                inputs = tuple(torch.zeros(2, dim) for role, dim in data.dims.items() if role != "new")
                export_model(load_model(config.output), inputs, config.output, config.export_formats)
        for one in fitted.values():
            one.run.finish()


if __name__ == "__main__":
    run_script(main)
