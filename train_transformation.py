"""Train a transformation from old embeddings to the space of a new model (FCT, FastFill, plain baselines).

python train_transformation.py --config configs/cifar100_fastfill_transformation.yaml [optimizer_params.lr=1e-3 ...]

It runs on every GPU that is visible; `processes=N` chooses another number (docs/multi_node.md).
From two models and images; fit_embeddings.py starts from embedding files.
"""

import argparse
from dataclasses import asdict

from trainers.transformation.config import TransformationConfig
from utils.config import load_config, to_dict
from utils.errors import run_script
from utils.launch import launch
from utils.preemption import Preemption


def main() -> None:
    config = load_config(TransformationConfig, argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    launch(config.processes)

    import torch

    from data.datasets import contents_of, open_images, resolve_image_size, resolve_preprocessing
    from embedding.extraction import embedding_dim, freeze
    from embedding.preprocessing import build_for, wanted_by
    from models.baselines import AffineTransformation
    from models.export import check_formats, export_model
    from models.model_files import (
        build_model,
        classifier_of,
        describe_transformed,
        holds_torchscript,
        identity_of,
        read_description,
        save_model,
    )
    from models.transformations import build_transformation, transformation_arguments
    from retrieval import choose_calibration, upgrade_quality
    from trainers.loop import train
    from trainers.transformation.calibration import with_calibration
    from trainers.transformation.closed_forms import fit_closed_form
    from trainers.transformation.losses import build_objective, check_classes, check_classifier
    from trainers.transformation.pairs import build_pairs, hold_out
    from trainers.transformation.refinement import describe_with_refinement, material_of_pairs
    from trainers.transformation.task import TransformationTask
    from utils.distributed import process_group
    from utils.runs import Run

    with Preemption() as preemption, process_group() as world:
        world.announce(config.precision)
        needs_classifier = config.objective_params.needs_classifier
        descriptions = {
            role: read_description(
                path,
                where=f"{role}_model_path",
                foreign=not (role == "new" and needs_classifier),
                transformation=False,
            )
            for role, path in config.model_paths.items()
        }
        inside = any(holds_torchscript(descriptions[role]) for role in descriptions if role != "new")
        check_formats(config.export_formats, torchscript_inside=inside)
        of_keys = {f"{role}_model_path": description for role, description in descriptions.items()}
        defaults = wanted_by(of_keys, config.dataset_params)
        models = {
            role: freeze(build_for(description, config.dataset_params, defaults, where=f"{role}_model_path"), world)
            for role, description in descriptions.items()
        }
        seen = resolve_preprocessing(config.dataset_params, defaults)
        image_size = resolve_image_size(config.dataset_params, defaults)
        dims = {
            role: embedding_dim(model, image_size, world, where=f"{role}_model_path") for role, model in models.items()
        }

        torch.manual_seed(config.seed)
        arguments = transformation_arguments(config.arch_params, dims)
        transformation = build_transformation(**arguments)
        classifier = classifier_of(descriptions["new"])
        classifier = None if classifier is None else classifier.to(world.device)
        check_classifier(config, classifier)
        objective = build_objective(config.objective_params, classifier, transformation)
        images = open_images(config.dataset_params, "training", world, seed=config.seed, defaults=defaults)
        check_classes(objective.classifier, images.labels, needed_by="L_disc")

        contents = contents_of(config.dataset_params, world, training=images)
        run = Run(config.output_transformation_path, config, world, contents)
        hashes = {role: identity_of(path, descriptions[role]) for role, path in config.model_paths.items()}
        pairs = build_pairs(models, images, config, run.precision, world, hashes=hashes, seen=seen)
        held_out = hold_out(pairs, config)
        material = material_of_pairs(pairs, held_out, config.refinement_params, classifier)
        if isinstance(transformation, AffineTransformation):
            fit_closed_form(transformation, config.arch_params.arch, pairs, run, world)
        else:
            task = TransformationTask(transformation, objective, pairs, config, run.precision, world)
            train(task, transformation, config.loop, run, world, preemption)
        fitted = describe_with_refinement(transformation, arguments, material, upgrade_quality, world)
        fitted = with_calibration(fitted, held_out if config.calibrates else None, choose_calibration, world)
        if world.is_main:
            transformed = describe_transformed(
                descriptions["old"], descriptions.get("side_info"), fitted, preprocessing=asdict(seen)
            )
            for path, description in (
                (config.output_transformation_path, fitted),
                (config.output_transformed_old_model_path, transformed),
            ):
                save_model(path, description, config=to_dict(config), seed=config.seed)
            print(f"transformation: {config.output_transformation_path}")
            print(f"transformed old model: {config.output_transformed_old_model_path}")
            if config.export_formats:
                path, example = config.output_transformed_old_model_path, torch.zeros(2, 3, image_size, image_size)
                export_model(build_model(transformed, where="old_model_path"), (example,), path, config.export_formats)
        run.finish()


if __name__ == "__main__":
    run_script(main)
