"""The queries and the gallery of an evaluation: from models and images, or from embedding files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from data.datasets import named_split, open_images, resolve_image_size
from data.embeddings import EmbeddingSet
from data.images import ImageSet
from data.items import numbers_of_gallery
from data.lengths import about_zeros, lengths_of, zeros_kept
from data.preprocessing import Preprocessing
from embedding.extraction import embed_images, embedded_items, embedding_dim, freeze
from embedding.preprocessing import build_for, wanted_by
from evaluation.config import EarlierUpgrade, EmbeddingsParams, EvalConfig
from evaluation.files import Calibrations, ClassVectors, QueryAndGallery, read_class_vectors, read_query_and_gallery
from evaluation.groups import check_groups, group_queries
from evaluation.subsets import take_subset
from models.embedding import TransformedModel
from models.model_files import (
    Description,
    build_model,
    calibration_of,
    check_inputs,
    classifier_of,
    read_description,
    unhelpful_orders,
    wider_new,
)
from models.refinement import RefinedTransformation
from models.transformed import Prefix, Transformation, Transformed
from utils.distributed import World
from utils.errors import UserError
from utils.seeds import Stream, generator

TRANSFORMED_AT_ONCE = 1 << 14  # items


@dataclass(frozen=True)
class Compared:
    """What an evaluation compares, and what is known of it."""

    query: EmbeddingSet
    gallery: EmbeddingSet
    classes: ClassVectors
    calibrations: Calibrations
    unhelpful: Sequence[str] = ()  # orders that brought nothing when the transformation was fitted
    group_names: Sequence[str] = ()  # of the groups of queries, by their `group_numbers`


def query_and_gallery(config: EvalConfig, world: World) -> Compared:
    """What an evaluation compares, by models and images or by embedding files.

    Raises:
        UserError: a file that is missing, cannot be read or does not fit the others.
    """
    files, params = config.embeddings_params, config.eval_params
    if files is None:
        compared = embed_queries_and_gallery(config, world)
    else:
        read = read_query_and_gallery(files, params, world.device)
        if read.by_place and world.is_main:
            print(
                f"{files.query} and {files.gallery} have no ids, and the same labels: item i of both is taken for "
                "the same one, which a query never retrieves (else set eval_params.same_items=false)"
            )
        compared = in_new_space(read, files, world)
    if params.groups is not None:
        grouping = group_queries(compared.query, params.groups)
        query = replace(compared.query, group_numbers=grouping.of_query.to(world.device))
        compared = replace(compared, query=query, group_names=grouping.names)
    if params.subset is not None:
        query, gallery = take_subset(compared.query, compared.gallery, params.subset, config.seed)
        compared = replace(compared, query=query, gallery=gallery)
    if params.groups is not None:
        check_groups(compared.query, compared.group_names, params.groups)
    return compared


def embed_queries_and_gallery(config: EvalConfig, world: World) -> Compared:
    """Embed the query split by the query model, and the gallery split by the gallery model; all classes of both.

    Where both are one split, its images are read once. Where they are two, the query model embeds the gallery as well,
    if it is to be backfilled. Unreadable images are in neither set.

    Raises:
        UserError: a model file or the data set cannot be read.
    """
    query_model, gallery_model, of_query, of_gallery, defaults = query_and_gallery_models(config, world)
    models, earlier = {"gallery": gallery_model}, config.earlier_upgrade
    if earlier is not None:
        models |= after_earlier_upgrade(gallery_model, config, defaults, world)
        gallery_model = models["gallery"]
    if config.eval_params.two_fields is not None and isinstance(gallery_model, TransformedModel):
        raise UserError(
            f"eval_params.two_fields: is for the old model as it is; {config.gallery_model_path} transforms its vectors"
        )
    query_images, gallery_images = open_query_and_gallery(config, defaults, world)
    two_sets = query_images is not gallery_images
    if not two_sets or config.eval_params.backfilling is not None:
        models["new"] = query_model
    embedded, positions = _embed(models, gallery_images, config, world)
    if earlier is not None and "re_embedded" in embedded:
        embedded["gallery"] = half_way(embedded["gallery"], embedded["re_embedded"], earlier, config.seed)
    gallery = embedded_items(gallery_images, positions, embedded["gallery"])
    if two_sets:
        outputs, positions = _embed({"query": query_model}, query_images, config, world)
        query = embedded_items(query_images, positions, outputs["query"])
        query, gallery = numbered_apart(query, gallery, query_images.listed.ids is None)
        gallery = replace(gallery, new=embedded["new"].embedding if "new" in embedded else None)
    else:
        numbers = positions.to(world.device)
        gallery = replace(gallery, numbers=numbers)
        query = replace(gallery, embeddings=embedded["new"].embedding, log_variance=embedded["new"].log_variance)
    classes = _classes_of(gallery_model.transformation) if isinstance(gallery_model, TransformedModel) else None
    classifier = classifier_of(of_query)
    classes = classes or ClassVectors(None if classifier is None else classifier.to(world.device))
    calibrations = {} if earlier is not None else calibration_of(of_gallery)  # two ways, of a constant each
    names = max(query_images.classes, gallery_images.classes, key=len)  # one goes on where the other ends
    return Compared(query, gallery, replace(classes, names=names), calibrations, unhelpful_orders(of_gallery))


def query_and_gallery_models(
    config: EvalConfig, world: World
) -> tuple[nn.Module, nn.Module, Description, Description, Preprocessing]:
    """The query model and the gallery model, on the device, what describes each, and how they want the images.

    Raises:
        UserError: one cannot be read, or does not take images of the size that is asked for.
    """
    assert config.query_model_path is not None
    assert config.gallery_model_path is not None
    assert config.dataset_params is not None
    paths = {"query_model_path": config.query_model_path, "gallery_model_path": config.gallery_model_path}
    if config.gallery_model_path == config.query_model_path:  # one model, which is built once
        del paths["gallery_model_path"]
    described = {key: read_description(path, where=key, transformation=False) for key, path in paths.items()}
    defaults = wanted_by(described, config.dataset_params)
    size, built = resolve_image_size(config.dataset_params, defaults), []
    for key, description in described.items():
        built.append(freeze(build_for(description, config.dataset_params, defaults, where=key), world))
        embedding_dim(built[-1], size, world, where=key)
    of_each = list(described.values())
    return built[0], built[-1], of_each[0], of_each[-1], defaults


def open_query_and_gallery(config: EvalConfig, defaults: Preprocessing, world: World) -> tuple[ImageSet, ImageSet]:
    """The images of the query split and of the gallery split; one set where these are the same.

    Args:
        defaults: how the models want the images, where the config does not say.
    """
    params = config.dataset_params
    assert params is not None
    splits = [split or "validation" for split in (config.eval_params.query_split, config.eval_params.gallery_split)]
    if params.held_out is None:
        splits = [named_split(params, split) for split in splits]
    opened = {
        split: open_images(params, split, world, seed=config.seed, all_classes=True, defaults=defaults)
        for split in dict.fromkeys(splits)
    }
    return opened[splits[0]], opened[splits[1]]


def _embed(
    models: Mapping[str, nn.Module], images: ImageSet, config: EvalConfig, world: World
) -> tuple[dict[str, Transformed], torch.Tensor]:
    """Embed all images as in evaluation, as `embed_images` does."""
    assert config.dataset_params is not None
    return embed_images(
        models,
        images.view_batches(0, world.local_batch(config.dataset_params.batch_size)),
        total=len(range(len(images))[world.share(len(images))]),
        precision=config.precision,
        world=world,
        title="embedding",
    )


def numbered_apart(query: EmbeddingSet, gallery: EmbeddingSet, by_place: bool) -> tuple[EmbeddingSet, EmbeddingSet]:
    """Two splits with the numbers that tell which images are in both: those of the same id.

    Args:
        by_place: ids are positions in either split, and no image is in both.
    """
    if by_place:
        assert gallery.ids is not None
        gallery = replace(gallery, ids=len(query) + np.arange(len(gallery)))
        query = replace(query, ids=np.arange(len(query)))
    numbers = numbers_of_gallery(query.named("query_split"), gallery.named("gallery_split"), None)
    device = query.embeddings.device
    return (
        replace(query, numbers=torch.arange(len(query), device=device)),
        replace(gallery, numbers=torch.from_numpy(numbers).to(device)),
    )


def after_earlier_upgrade(
    gallery: nn.Module, config: EvalConfig, defaults: Preprocessing, world: World
) -> dict[str, nn.Module]:
    """The models of a gallery that was upgraded before: of its items, and, if there are any, of those `re_embedded`.

    Args:
        gallery: model of the items that the model in between has not re-embedded.
        defaults: how the images are prepared, where the config does not say.

    Raises:
        UserError: the model in between cannot be read, is not transformed, or does not take what `gallery` gives.
    """
    earlier, where = config.earlier_upgrade, "earlier_upgrade.model_path"
    assert earlier is not None
    assert config.dataset_params is not None
    description = read_description(earlier.model_path, where=where)
    between = freeze(build_for(description, config.dataset_params, defaults, where=where), world)
    if not isinstance(between, TransformedModel):
        raise UserError(f"{where}: {earlier.model_path} is no transformed model, as train_transformation.py writes it")
    if earlier.chained:
        size, side = resolve_image_size(config.dataset_params, defaults), between.side_info
        old_dim, side_dim = (
            embedding_dim(gallery, size, world, where="gallery_model_path"),
            None if side is None else embedding_dim(side, size, world, where=where),
        )
        named = f"{where}: the transformation in {earlier.model_path}"
        check_inputs(description["transformation"], old_dim, side_dim, where=named)
        gallery = TransformedModel(gallery, side, between.transformation)
    return {"gallery": gallery} | ({"re_embedded": between} if earlier.re_embedded_share else {})


def half_way(others: Transformed, re_embedded: Transformed, earlier: EarlierUpgrade, seed: int) -> Transformed:
    """The gallery (n, d) of which an earlier upgrade has re-embedded a share of the items, given all n on either way.

    Raises:
        UserError: the two ways do not lead to one dimension.
    """
    (n, dim), (_, other) = others.embedding.shape, re_embedded.embedding.shape
    if dim != other:
        raise UserError(
            f"earlier_upgrade.model_path: {earlier.model_path} gives {other}-d embeddings, gallery_model_path {dim}-d"
        )
    drawn = torch.randperm(n, generator=generator(seed, Stream.EARLIER_UPGRADE))[: round(earlier.re_embedded_share * n)]
    is_drawn = torch.zeros(n, 1, dtype=torch.bool).index_fill(0, drawn, value=True).to(others.embedding.device)
    embedding = torch.where(is_drawn, re_embedded.embedding, others.embedding)
    if others.log_variance is None or re_embedded.log_variance is None:
        return Transformed(embedding, None)
    first, second = (part.flatten(1).mean(1, keepdim=True) for part in (re_embedded.log_variance, others.log_variance))
    return Transformed(embedding, torch.where(is_drawn, first, second))


def in_new_space(read: QueryAndGallery, files: EmbeddingsParams, world: World) -> Compared:
    """What is compared, of embedding files: a gallery of old embeddings goes through the transformation that they name.

    Where the gallery's space is of the first dimensions of what the new model gives, new embeddings that have all are
    cut to these. What a refined transformation knows of the classes comes before what the files say.

    Raises:
        UserError: the file holds no transformation, or embeddings or side-information do not fit it; see also
            `read_class_vectors`.
    """
    query, gallery, wider = read.query, read.gallery, read.wider_new
    classes = read_class_vectors(files, gallery.embeddings.device)
    calibrations, unhelpful = read.calibrations, []
    if files.transformation is not None:
        where = "embeddings_params.transformation"
        description = read_description(files.transformation, where=where)
        transformation = build_model(description, where=where)
        if not isinstance(transformation, Transformation):
            raise UserError(f"{where}: {files.transformation} is a model of images, not a transformation of embeddings")
        side_dim = None if read.side_info is None else read.side_info.shape[1]
        check_inputs(description, gallery.embeddings.shape[1], side_dim, where=f"{where}: {files.transformation}")
        lengths = lengths_of(gallery.embeddings)
        if lengths.zero and world.is_main:
            named = f"embeddings_params.gallery: {files.gallery}"
            print(about_zeros(named, lengths.zero, lengths.first_zero), flush=True)
        gallery = _transformed(gallery, read.side_info, transformation)
        classes = _classes_of(transformation) or classes
        calibrations, unhelpful = calibration_of(description), unhelpful_orders(description)
        wider = wider_new(description)
    if wider is not None:
        prefix = Prefix(gallery.embeddings.shape[1], wider["dim"], wider["of_length_1"])
        query = replace(query, embeddings=prefix.of(query.embeddings))
        gallery = replace(gallery, new=None if gallery.new is None else prefix.of(gallery.new))
    return Compared(query, gallery, classes, calibrations, unhelpful)


def _transformed(gallery: EmbeddingSet, side_info: torch.Tensor | None, transformation: Transformation) -> EmbeddingSet:
    """A gallery of old embeddings in the new space; zero vectors stay zero.

    Args:
        side_info: (n, d_side) of the gallery's items, if there is any.
    """
    transformation.to(gallery.embeddings.device)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(gallery), TRANSFORMED_AT_ONCE):
            rows = slice(start, start + TRANSFORMED_AT_ONCE)
            old, side = gallery.embeddings[rows].float(), None if side_info is None else side_info[rows].float()
            transformed = transformation(old, side)
            parts.append(transformed._replace(embedding=zeros_kept(transformed.embedding, old)))
    log_variances = [part.log_variance for part in parts if part.log_variance is not None]
    return replace(
        gallery,
        embeddings=torch.cat([part.embedding for part in parts]),
        log_variance=torch.cat(log_variances) if log_variances else None,
    )


def _classes_of(transformation: Transformation) -> ClassVectors | None:
    """What a refined transformation knows of the classes; None of another."""
    if not isinstance(transformation, RefinedTransformation):
        return None
    return ClassVectors(transformation.classifier, transformation.bias, transformation.class_means)
