"""Train an embedding model: old, new or side-information (FCT, FastFill; SimCLR; BCT).

python train_backbone.py --config configs/cifar100_backbone_old.yaml [optimizer_params.lr=0.5 ...]

It runs on every GPU that is visible; `processes=N` chooses another number (docs/multi_node.md).
"""

import argparse
from dataclasses import asdict

from trainers.backbone.config import BackboneConfig
from utils.config import load_config, to_dict
from utils.errors import UserError, run_script
from utils.launch import launch
from utils.preemption import Preemption


def main() -> None:
    config = load_config(BackboneConfig, argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    launch(config.processes)

    import torch

    from data.datasets import contents_of, open_images, resolve_image_size, resolve_preprocessing
    from data.preprocessing import Preprocessing
    from embedding.extraction import embedding_dim
    from models.backbones import backbone_arguments, build_backbone, wanted_images
    from models.export import check_formats, export_model
    from models.model_files import describe_backbone, load_model, save_model
    from models.modes import in_eval_mode
    from trainers.backbone.bct import load_old_model
    from trainers.backbone.training import train_backbone
    from utils.distributed import process_group
    from utils.runs import Run

    check_formats(config.export_formats)
    with Preemption() as preemption, process_group() as world:
        world.announce(config.precision)
        world.local_batch(config.dataset_params.batch_size)
        torch.manual_seed(config.seed)
        arch = config.arch_params
        defaults = Preprocessing(**wanted_images(arch))
        preprocessing = asdict(resolve_preprocessing(config.dataset_params, defaults))
        size = resolve_image_size(config.dataset_params, defaults)
        arguments = backbone_arguments(arch, size)
        model = build_backbone(**arguments, weights=arch.weights).to(world.device)
        with in_eval_mode(model):
            dim = embedding_dim(model, size, world, where=f"dataset_params.image_size: {arch.arch}")
        old = None
        if config.bct_params is not None:
            old = load_old_model(config.bct_params, dim, preprocessing, world)
        training = open_images(config.dataset_params, "training", world, seed=config.seed, defaults=defaults)
        validation = None
        if config.validate_every:
            validation = open_images(config.dataset_params, "validation", world, seed=config.seed, defaults=defaults)
        classes = int(training.labels.max()) + 1
        if config.objective == "classification" and classes > arch.num_classes:
            raise UserError(
                f"arch_params.num_classes: the classifier has {arch.num_classes} outputs, "
                f"the training set {classes} classes"
            )
        contents = contents_of(config.dataset_params, world, training=training, validation=validation)
        run = Run(config.output_model_path, config, world, contents)
        train_backbone(model, config, training, validation, run, world, preemption, old, size)
        if world.is_main:
            path = config.output_model_path
            description = describe_backbone(model, arguments, preprocessing=preprocessing, classes=training.classes)
            save_model(path, description, config=to_dict(config), seed=config.seed)
            print(f"model: {path}")
            if config.export_formats:
                export_model(load_model(path), (torch.zeros(2, 3, size, size),), path, config.export_formats)
        run.finish()


if __name__ == "__main__":
    run_script(main)
