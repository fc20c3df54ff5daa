"""Train an embedding model: old, new or side-information (FCT, FastFill; SimCLR; BCT).

python train_backbone.py --config configs/cifar100_backbone_old.yaml [optimizer_params.lr=0.5 ...]

It runs on every GPU that is visible; `processes=N` chooses another number (docs/multi_node.md).
"""

import argparse

from trainers.backbone.config import BackboneConfig
from utils.config import load_config, to_dict
from utils.errors import UserError, run_script
from utils.launch import launch
from utils.preemption import Preemption


def main() -> None:
    config = load_config(BackboneConfig, argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    launch(config.processes)

    import torch

    from data.datasets import contents_of, open_images, resolve_image_size
    from models.export import check_formats, export_model
    from models.model_files import describe_backbone, load_model, save_model
    from models.resnet import build_backbone
    from trainers.backbone.bct import load_old_model
    from trainers.backbone.training import train_backbone
    from utils.distributed import process_group
    from utils.runs import Run

    check_formats(config.export_formats)
    with Preemption() as preemption, process_group() as world:
        world.announce(config.precision)
        world.local_batch(config.dataset_params.batch_size)
        torch.manual_seed(config.seed)
        arguments = to_dict(config.arch_params)
        model = build_backbone(**arguments)
        old = None
        if config.bct_params is not None:
            old = load_old_model(config.bct_params, config.arch_params.embedding_dim, world)
        training = open_images(config.dataset_params, "training", world, seed=config.seed)
        validation = None
        if config.validate_every:
            validation = open_images(config.dataset_params, "validation", world, seed=config.seed)
        classes = int(training.labels.max()) + 1
        if config.objective == "classification" and classes > config.arch_params.num_classes:
            raise UserError(
                f"arch_params.num_classes: the classifier has {config.arch_params.num_classes} outputs, "
                f"the training set {classes} classes"
            )
        contents = contents_of(config.dataset_params, world, training=training, validation=validation)
        run = Run(config.output_model_path, config, world, contents)
        train_backbone(model, config, training, validation, run, world, preemption, old)
        if world.is_main:
            save_model(
                config.output_model_path, describe_backbone(model, arguments), config=to_dict(config), seed=config.seed
            )
            print(f"model: {config.output_model_path}")
            if config.export_formats:
                size, path = resolve_image_size(config.dataset_params), config.output_model_path
                export_model(load_model(path), (torch.zeros(2, 3, size, size),), path, config.export_formats)
        run.finish()


if __name__ == "__main__":
    run_script(main)
