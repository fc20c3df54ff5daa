"""Frozen models over images and galleries: errors that say what they are about."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from data.config import DatasetParams
from data.embeddings import EmbeddingSet
from embedding.config import EmbedConfig
from embedding.extraction import embed_split
from evaluation.config import EmbeddingsParams
from evaluation.items import gallery_in_new_space
from models.baselines import RidgeTransformation
from models.model_files import describe_transformation, save_model
from tests.tiny import write_images
from utils.distributed import World
from utils.errors import UserError

DIMS = {"old_embedding_dim": 3, "new_embedding_dim": 4, "side_info_dim": 2}


def test_only_dimensions_are_called_misfits(tmp_path: Path) -> None:
    """That the memory is full, or anything else that goes wrong in a transformation, says nothing of the file."""
    path = str(tmp_path / "t.pt")
    save_model(path, describe_transformation(RidgeTransformation(**DIMS), {"arch": "ridge", **DIMS}), config={}, seed=0)
    files = EmbeddingsParams(query="q.npz", gallery="g.npz", transformation=path)
    gallery, side_info = EmbeddingSet(torch.randn(5, 3)), torch.randn(5, 2)
    transformed, _ = gallery_in_new_space(gallery, side_info, files, World())
    assert transformed.embeddings.shape == (5, 4)
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: an illegal access")):
        with (
            mock.patch.object(RidgeTransformation, "transform", side_effect=error),
            pytest.raises(type(error)) as raised,
        ):
            gallery_in_new_space(gallery, side_info, files, World())
        assert raised.value is error
    with pytest.raises(UserError, match=r"t\.pt does not take embeddings of dimension 3 with no side-information, but"):
        gallery_in_new_space(gallery, None, files, World())


class Scaled(nn.Module):
    """Images -> their channels' means, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.factor * images.mean((2, 3))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_embedding_beyond_float16_is_refused_by_its_key(tmp_path: Path, dtype: str) -> None:
    write_images(tmp_path, classes=2, training=2, validation=3)
    params = DatasetParams("cifar100", str(tmp_path), batch_size=4, image_size=16)
    config = EmbedConfig("m.pt", params, "e.npz", embedding_dtype=dtype)  # type: ignore[arg-type]
    items = embed_split(Scaled(1.0), config, World())
    assert items.embeddings.dtype == getattr(torch, dtype)
    factor = 65504 / float(items.embeddings.float().abs().max(1).values.sort().values[-2]) * 1.001
    if dtype == "float32":
        assert embed_split(Scaled(factor), config, World()).embeddings.abs().max() > 65504
        return
    scaled = items.embeddings.float() * factor
    first = int((scaled.abs().max(1).values > 65504).nonzero()[0])
    message = (
        rf"embedding_dtype: float16 holds .* up to 65504, .* in 2 rows, the first is row {first}\); set embedding_"
    )
    with pytest.raises(UserError, match=message):
        embed_split(Scaled(factor), config, World())
