"""Running frozen models over a set of images."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.datasets import open_images
from data.embeddings import EmbeddingSet
from data.images import Batch, ImageSet
from data.preprocessing import Preprocessing
from embedding.config import EmbedConfig
from embedding.memory import in_parts_that_fit
from models.embedding import embed
from models.transformed import Transformed
from utils.choices import Precision
from utils.distributed import World
from utils.errors import UserError, said
from utils.memory import keep_freed_memory
from utils.precision import autocast, resolve_precision


def freeze(model: nn.Module, world: World) -> nn.Module:
    """Put a model on the device, in eval mode, without gradients."""
    model = model.to(world.device).eval()
    for parameter in model.parameters():  # a TorchScript module has no requires_grad_ of its own
        parameter.requires_grad_(False)
    return model


def embedding_dim(model: nn.Module, image_size: int, world: World, *, where: str) -> int:
    """The dimension of the embedding that a model, in eval mode, makes of images of a size.

    Args:
        where: the config key that names the model, for error messages.

    Raises:
        UserError: it takes no such images, or gives no embedding.
    """
    images = torch.zeros(2, 3, image_size, image_size, device=world.device)
    try:
        with torch.inference_mode():
            return embed(model, images).embedding.shape[1]
    except (RuntimeError, AssertionError, ValueError) as error:  # as networks say that a size is not theirs
        raise UserError(f"{where}: the model does not take 2 images of {image_size} px ({said(error)})") from error


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
    keep_freed_memory()
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


def embedded_items(images: ImageSet, positions: torch.Tensor, output: Transformed) -> EmbeddingSet:
    """Embedded images, with all that the list says of them.

    The ids are those of the list; where it has none, as of class folders, the images' positions in it.

    Args:
        positions: (m,) of the images, as `embed_images` gives them.
    """
    rows, listed = positions.numpy(), images.listed.take(positions.tolist())
    return EmbeddingSet(
        output.embedding,
        rows if listed.ids is None else listed.ids,
        images.labels[positions].to(output.embedding.device),
        output.log_variance,
        cameras=None if listed.cameras is None else torch.tensor(listed.cameras, device=output.embedding.device),
        groups=None if listed.groups is None else np.array(listed.groups),
    )


def embed_split(
    model: nn.Module, config: EmbedConfig, world: World, defaults: Preprocessing | None = None
) -> EmbeddingSet:
    """Embed the images of a split in one view or all of them, one after another.

    The ids are those of `embedded_items`; of several views, those of view v are v n + the images' places in the list.

    Args:
        defaults: how the model wants the images, where the config does not say.

    Raises:
        UserError: the data set cannot be read, all of its views are asked for and cannot be enumerated, its ids cannot
            be written, or an embedding goes beyond `embedding_dtype`.
    """
    every_class = config.dataset_params.num_classes is None
    images = open_images(config.dataset_params, config.split, world, seed=0, all_classes=every_class, defaults=defaults)
    if config.views == "all" and images.num_views is None:
        raise UserError(
            "views: random crops are too many to embed; set dataset_params.augmentation=flip or views=first"
        )
    views = range(images.num_views or 1) if config.views == "all" else range(1)
    ids, path = images.listed.ids, Path(config.output_embeddings_path)
    if len(views) == 1 and ids is not None and ids.dtype.kind == "U" and path.suffix == ".safetensors":
        raise UserError(
            f"output_embeddings_path: {path} cannot hold the ids of the images, which are texts; use .parquet or .npz"
        )
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
    of_views = Transformed(
        torch.cat([part.embedding for part in parts]), torch.cat(log_variances) if log_variances else None
    )
    items = embedded_items(images, torch.cat(positions), of_views)
    if len(views) == 1:
        return items
    numbers = [view * len(images) + embedded for view, embedded in zip(views, positions, strict=True)]
    return replace(items, ids=torch.cat(numbers).numpy())


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
