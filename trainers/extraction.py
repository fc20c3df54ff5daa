"""Running frozen models over a set of images."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import nn
from tqdm import tqdm

from data.datasets import open_images
from data.embeddings import EmbeddingSet
from data.evaluation_files import ClassVectors, read_class_vectors
from data.images import Batch
from data.lengths import about_zeros, lengths_of, zeros_kept
from models.embedding import TransformedModel, embed
from models.model_files import build_model, check_inputs, classifier_of, load_model, read_description
from models.refinement import RefinedTransformation
from models.transformed import Transformation, Transformed
from trainers.memory import in_parts_that_fit
from utils.distributed import World
from utils.errors import UserError
from utils.precision import autocast, resolve_precision
from utils.schema import EmbedConfig, EvalConfig
from utils.sections import EmbeddingsParams, Precision

TRANSFORMED_AT_ONCE = 1 << 14  # items


def freeze(model: nn.Module, world: World) -> nn.Module:
    """Put a model on the device, in eval mode, without gradients."""
    model = model.to(world.device).eval()
    for parameter in model.parameters():  # a TorchScript module has no requires_grad_ of its own
        parameter.requires_grad_(False)
    return model


def embedding_dim(model: nn.Module, image_size: int, world: World) -> int:
    """The dimension of a frozen model's embedding."""
    with torch.inference_mode():
        return embed(model, torch.zeros(1, 3, image_size, image_size, device=world.device)).embedding.shape[1]


def embed_images(
    models: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    *,
    total: int,
    precision: Precision,
    world: World,
    title: str,
) -> tuple[dict[str, Transformed], torch.Tensor]:
    """Embed images with every model, each process its share; all get all.

    Args:
        models: name -> frozen model, on the device. Models that are the same object run once.
        batches: this process's share of the images.
        total: images in it, for the progress bar.
        title: of the progress bar.

    Returns:
        name -> embeddings (m, d) float32 with log variance (m, s) or None, and the positions (m,) in the image list of
        the m readable images.

    Raises:
        UserError: a process that decodes images died, or the memory is too small for a single image.
    """
    resolved = resolve_precision(precision, world.device)
    distinct = {id(model): model for model in models.values()}
    outputs: dict[int, list[Transformed]] = {key: [] for key in distinct}
    indices = []

    def embed_with_all(images: torch.Tensor) -> None:
        for model in distinct.values():
            embed(model, images)

    with (
        torch.inference_mode(),
        autocast(resolved, world.device),
        tqdm(total=total, desc=title, unit="img", leave=False, disable=None if world.is_main else True) as bar,
    ):
        for batch in in_parts_that_fit(batches, embed_with_all, distinct.values(), world):
            for key, model in distinct.items():
                outputs[key].append(embed(model, batch.images))
            indices.append(batch.indices)
            bar.update(len(batch.indices))
    gathered = {key: _gather(parts, world) for key, parts in outputs.items()}
    positions = world.gather_rows(torch.cat(indices).to(world.device)).cpu()
    return {name: gathered[id(model)] for name, model in models.items()}, positions


def _gather(parts: list[Transformed], world: World) -> Transformed:
    embeddings = world.gather_rows(torch.cat([part.embedding for part in parts]))
    if parts[0].log_variance is None:
        return Transformed(embeddings, None)
    log_variances = [part.log_variance for part in parts if part.log_variance is not None]
    return Transformed(embeddings, world.gather_rows(torch.cat(log_variances)))


def embed_split(model: nn.Module, config: EmbedConfig, world: World) -> EmbeddingSet:
    """Embed the images of a split in one view or all of them, one after another.

    The ids of view v are v n + the images' positions in the list of the split.

    Raises:
        UserError: the data set cannot be read, all of its views are asked for and cannot be enumerated, or an embedding
            goes beyond `embedding_dtype`.
    """
    every_class = config.dataset_params.num_classes is None
    images = open_images(config.dataset_params, config.split, world, seed=0, all_classes=every_class)
    if config.views == "all" and images.num_views is None:
        raise UserError(
            "views: random crops are too many to embed; set dataset_params.augmentation=flip or views=first"
        )
    views = range(images.num_views or 1) if config.views == "all" else range(1)
    batch_size, share = world.local_batch(config.dataset_params.batch_size), world.share(len(images))
    parts: list[Transformed] = []
    positions = []
    for view in views:
        outputs, embedded = embed_images(
            {"model": model},
            images.view_batches(view, batch_size),
            total=len(range(len(images))[share]),
            precision=config.precision,
            world=world,
            title=f"view {view + 1} of {len(views)}",
        )
        output, row = outputs["model"], sum(len(part.embedding) for part in parts)
        parts.append(output._replace(embedding=_rounded(output.embedding, config.embedding_dtype, row)))
        positions.append(embedded)
    log_variances = [part.log_variance for part in parts if part.log_variance is not None]
    return EmbeddingSet(
        torch.cat([part.embedding for part in parts]),
        torch.cat([view * len(images) + embedded for view, embedded in zip(views, positions, strict=True)]).numpy(),
        images.labels[torch.cat(positions)],
        torch.cat(log_variances) if log_variances else None,
    )


def _rounded(embeddings: torch.Tensor, dtype: str, first_row: int) -> torch.Tensor:
    """Embeddings (n, d) float32, from a row of the file on, in another type; a UserError where it cannot hold one."""
    rounded = embeddings.to(getattr(torch, dtype))
    if rounded.dtype == embeddings.dtype:
        return embeddings
    beyond = (rounded.isinf() & embeddings.isfinite()).any(1).nonzero()
    if len(beyond):
        low, high = embeddings.aminmax()
        raise UserError(
            f"embedding_dtype: {dtype} holds values up to {torch.finfo(rounded.dtype).max:.0f}, but the embeddings go "
            f"from {float(low):.6g} to {float(high):.6g} (too far in {len(beyond)} rows, the first is "
            f"row {first_row + int(beyond[0])}); set embedding_dtype=float32"
        )
    return rounded


def transform_gallery(
    gallery: EmbeddingSet, side_info: torch.Tensor | None, files: EmbeddingsParams, world: World
) -> tuple[EmbeddingSet, ClassVectors]:
    """Put a gallery of old embeddings through the transformation that `embeddings_params` names, if any.

    Zero vectors stay zero, and a line says how many there are. The second is what is known of the classes: of a refined
    transformation, else of the files.

    Args:
        side_info: (n, d_side) of the gallery's items, if there is any.

    Raises:
        UserError: the file holds no transformation, or embeddings or side-information do not fit it; see also
            `read_class_vectors`.
    """
    classes = read_class_vectors(files, gallery.embeddings.device)
    if files.transformation is None:
        return gallery, classes
    where = "embeddings_params.transformation"
    description = read_description(files.transformation, where=where)
    transformation = build_model(description, where=where)
    if not isinstance(transformation, Transformation):
        raise UserError(f"{where}: {files.transformation} is a model of images, not a transformation of embeddings")
    side_dim = None if side_info is None else side_info.shape[1]
    check_inputs(description, gallery.embeddings.shape[1], side_dim, where=f"{where}: {files.transformation}")
    transformation.to(gallery.embeddings.device)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(gallery), TRANSFORMED_AT_ONCE):
            rows = slice(start, start + TRANSFORMED_AT_ONCE)
            old, side = gallery.embeddings[rows].float(), None if side_info is None else side_info[rows].float()
            transformed = transformation(old, side)
            parts.append(transformed._replace(embedding=zeros_kept(transformed.embedding, old)))
    lengths = lengths_of(gallery.embeddings)
    if lengths.zero and world.is_main:
        print(about_zeros(f"embeddings_params.gallery: {files.gallery}", lengths.zero, lengths.first_zero), flush=True)
    log_variances = [part.log_variance for part in parts if part.log_variance is not None]
    in_new_space = replace(
        gallery,
        embeddings=torch.cat([part.embedding for part in parts]),
        log_variance=torch.cat(log_variances) if log_variances else None,
    )
    return in_new_space, _classes_of(transformation) or classes


def embed_queries_and_gallery(config: EvalConfig, world: World) -> tuple[EmbeddingSet, EmbeddingSet, ClassVectors]:
    """Embed the validation split of all classes as query set, by the query model, and as gallery, by the gallery model.

    The ids are the images' positions in the list of the split; unreadable images are in neither set. The third is what
    the models know of the classes, and their names.

    Raises:
        UserError: a model file or the data set cannot be read.
    """
    assert config.query_model_path is not None
    assert config.gallery_model_path is not None
    assert config.dataset_params is not None
    description = read_description(config.query_model_path, where="query_model_path", transformation=False)
    query_model = freeze(build_model(description, where="query_model_path"), world)
    gallery_model = query_model
    if config.gallery_model_path != config.query_model_path:
        gallery_model = load_model(config.gallery_model_path, where="gallery_model_path", transformation=False)
        gallery_model = freeze(gallery_model, world)
    images = open_images(config.dataset_params, "validation", world, seed=config.seed, all_classes=True)
    embedded, ids = embed_images(
        {"query": query_model, "gallery": gallery_model},
        images.view_batches(0, world.local_batch(config.dataset_params.batch_size)),
        total=len(range(len(images))[world.share(len(images))]),
        precision=config.precision,
        world=world,
        title="embedding",
    )
    numbers, labels = ids.to(world.device), images.labels[ids].to(world.device)
    query, gallery = (
        EmbeddingSet(output.embedding, ids.numpy(), labels, output.log_variance, numbers)
        for output in (embedded["query"], embedded["gallery"])
    )
    classes = _classes_of(gallery_model.transformation) if isinstance(gallery_model, TransformedModel) else None
    classes = classes or ClassVectors(classifier_of(query_model, description))
    return query, gallery, replace(classes, names=images.classes)


def _classes_of(transformation: Transformation) -> ClassVectors | None:
    """What a refined transformation knows of the classes; None of another."""
    if not isinstance(transformation, RefinedTransformation):
        return None
    return ClassVectors(transformation.classifier, transformation.bias, transformation.class_means)
