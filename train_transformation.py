"""Train a transformation from old embeddings to the space of a new model (FCT, FastFill, plain baselines).

python train_transformation.py --config configs/cifar100_fastfill_transformation.yaml [optimizer_params.lr=1e-3 ...]
torchrun --nproc_per_node=8 train_transformation.py --config configs/imagenet_fct_transformation.yaml

From models and images, or from embedding files of a sample (`embeddings_params`).
"""

import argparse

import torch

from data.datasets import contents_of, open_images, resolve_image_size
from data.paired_embeddings import read_paired_embeddings
from embedding.extraction import embedding_dim, freeze
from models.export import check_formats, export_model
from models.model_files import (
    build_model,
    classifier_of,
    describe_transformed,
    holds_torchscript,
    load_model,
    read_description,
    save_model,
)
from models.transformations import build_transformation, transformation_arguments
from retrieval import retrieval_quality, upgrade_quality
from trainers.transformation.config import TransformationConfig
from trainers.transformation.losses import build_objective
from trainers.transformation.pairs import build_pairs
from trainers.transformation.refinement import check_classifier, describe_with_refinement, hold_out, material_of
from trainers.transformation.sample import divide, provenance
from trainers.transformation.selection import choose, comparison, fit_methods
from trainers.transformation.training import fit_transformation
from utils.config import load_config, to_dict
from utils.distributed import World, process_group
from utils.errors import run_script
from utils.preemption import Preemption
from utils.runs import Run


def main() -> None:
    config = load_config(TransformationConfig, argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    with Preemption() as preemption, process_group() as world:
        if config.embeddings_params is None:
            fit_to_models(config, world, preemption)
        else:
            fit_to_embedding_files(config, world, preemption)


def fit_to_models(config: TransformationConfig, world: World, preemption: Preemption) -> None:
    """From two models and images -> a transformation, and a model of images -> transformed embedding."""
    assert config.old_model_path is not None
    assert config.new_model_path is not None
    assert config.dataset_params is not None
    assert config.output_transformed_old_model_path is not None
    # The frozen models, by role: old, new and, if there is one, side_info.
    model_paths = {"old": config.old_model_path, "new": config.new_model_path}
    if config.side_info_model_path is not None:
        model_paths["side_info"] = config.side_info_model_path
    needs_classifier = config.objective_params.needs_classifier
    descriptions = {
        role: read_description(
            path,
            where=f"{role}_model_path",
            torchscript=not (role == "new" and needs_classifier),
            transformation=False,
        )
        for role, path in model_paths.items()
    }
    inside = any(holds_torchscript(descriptions[role]) for role in descriptions if role != "new")
    check_formats(config.export_formats, torchscript_inside=inside)
    models = {
        role: freeze(build_model(description, where=f"{role}_model_path"), world)
        for role, description in descriptions.items()
    }
    image_size = resolve_image_size(config.dataset_params)
    dims = {role: embedding_dim(model, image_size, world) for role, model in models.items()}

    torch.manual_seed(config.seed)
    arguments = transformation_arguments(config.arch_params, dims)
    transformation = build_transformation(**arguments)
    classifier = classifier_of(models["new"], descriptions["new"])
    objective = build_objective(config.objective_params, classifier, transformation)
    check_classifier(config.refinement_params, classifier)
    images = open_images(config.dataset_params, "training", world, seed=config.seed)
    objective.check_labels(images.labels)

    contents = contents_of(config.dataset_params, world, training=images)
    run = Run(config.output_transformation_path, config, world, contents)
    pairs = build_pairs(models, images, config, run.precision, world)
    material = hold_out(pairs, config.refinement_params, classifier)
    fit_transformation(transformation, objective, config, pairs, run, world, preemption)
    fitted = describe_with_refinement(transformation, arguments, material, upgrade_quality, world)
    if world.is_main:
        transformed = describe_transformed(descriptions["old"], descriptions.get("side_info"), fitted)
        for path, description in (
            (config.output_transformation_path, fitted),
            (config.output_transformed_old_model_path, transformed),
        ):
            save_model(path, description, config=to_dict(config), seed=config.seed)
        print(f"transformation: {config.output_transformation_path}")
        print(f"transformed old model: {config.output_transformed_old_model_path}")
        if config.export_formats:
            path, example = config.output_transformed_old_model_path, torch.zeros(2, 3, image_size, image_size)
            export_model(load_model(path), (example,), path, config.export_formats)
    run.finish()


def fit_to_embedding_files(config: TransformationConfig, world: World, preemption: Preemption) -> None:
    """From a sample of paired embeddings -> a transformation with uncertainty; with `arch: auto`, the best of all."""
    assert config.embeddings_params is not None
    check_formats(config.export_formats)
    sample = divide(read_paired_embeddings(config.embeddings_params, world), config, world)
    material = material_of(sample, config.refinement_params)
    fitted = fit_methods(config, sample, retrieval_quality, world, preemption)
    best, path = choose(fitted), config.output_transformation_path
    description = describe_with_refinement(best.transformation, best.arguments, material, upgrade_quality, world)
    if world.is_main:
        print(comparison(fitted), end="")
        origin = provenance(config.embeddings_params, sample, fitted)
        save_model(path, description, config=to_dict(config), seed=config.seed, embeddings=origin)
        print(f"transformation: {path}")
        if config.export_formats:
            inputs = tuple(torch.zeros(2, dim) for role, dim in sample.dims.items() if role != "new")
            export_model(load_model(path), inputs, path, config.export_formats)
    for one in fitted.values():
        one.run.finish()


if __name__ == "__main__":
    run_script(main)
