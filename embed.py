"""Embed images: a model and a split of a data set -> an embedding file, for work on embeddings alone.

    python embed.py --config configs/glyphs_embed.yaml model_path=checkpoints/glyphs_new.pt [key=value ...]

With `views=all` the file holds every view that a training transform of few views can draw, as the papers train their
transformations on; with `output_classifier_path` the backbone's classifier is written as well. That is all that a
machine without the images and the models needs to train and to evaluate a transformation.
"""

import argparse

from embedding.config import EmbedConfig
from utils.config import load_config
from utils.config_files import check_outputs
from utils.errors import UserError, run_script
from utils.launch import launch


def main() -> None:
    config = load_config(EmbedConfig, argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    launch(config.processes)

    from data.datasets import resolve_image_size
    from data.embeddings import write_embeddings
    from data.sources.arrays import check_writable
    from embedding.extraction import embed_split, embedding_dim, freeze
    from embedding.preprocessing import build_for, wanted_by
    from models.model_files import classifier_of, read_description
    from utils.distributed import process_group
    from utils.files import write_array

    check_writable(config.output_embeddings_path, where="output_embeddings_path")
    with process_group() as world:
        world.announce(config.precision)
        if world.is_main:
            check_outputs(config)
        description = read_description(config.model_path, where="model_path", transformation=False)
        classifier = classifier_of(description)
        if classifier is None and config.output_classifier_path is not None:
            raise UserError(f"output_classifier_path: {config.model_path} has no classifier; leave the key out")
        defaults = wanted_by({"model_path": description}, config.dataset_params)
        model = freeze(build_for(description, config.dataset_params, defaults, where="model_path"), world)
        embedding_dim(model, resolve_image_size(config.dataset_params, defaults), world, where="model_path")
        items = embed_split(model, config, world, defaults)
        if world.is_main:
            write_embeddings(config.output_embeddings_path, items)
            print(
                f"embeddings: {config.output_embeddings_path}, {tuple(items.embeddings.shape)} {config.embedding_dtype}"
            )
            if classifier is not None and config.output_classifier_path is not None:
                write_array(config.output_classifier_path, classifier)
                print(f"classifier: {config.output_classifier_path}, {tuple(classifier.shape)}")


if __name__ == "__main__":
    run_script(main)
