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
from evaluation.files import QueryAndGallery
from evaluation.items import in_new_space
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
    read = QueryAndGallery(EmbeddingSet(torch.randn(5, 4)), gallery, side_info, False, {}, None)
    assert in_new_space(read, files, World()).gallery.embeddings.shape == (5, 4)
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: an illegal access")):
        with (
            mock.patch.object(RidgeTransformation, "transform", side_effect=error),
            pytest.raises(type(error)) as raised,
        ):
            in_new_space(read, files, World())
        assert raised.value is error
    with pytest.raises(UserError, match=r"t\.pt does not take embeddings of dimension 3 with no side-information, but"):
        in_new_space(read._replace(side_info=None), files, World())


class Scaled(nn.Module):
    """Images -> their channels' means, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.factor * images.mean((2, 3))


def test_an_embedding_beyond_float16_is_refused_by_its_key(tmp_path: Path) -> None:
    write_images(tmp_path, classes=2, training=2, validation=3)
    params = DatasetParams("cifar100", str(tmp_path), batch_size=4, image_size=16)
    exact, half = (EmbedConfig("m.pt", params, "e.npz", embedding_dtype=dtype) for dtype in ("float32", "float16"))
    largest = embed_split(Scaled(1.0), exact, World()).embeddings.abs().max(1).values
    factor = 65504 / float(largest.sort().values[-2]) * 1.001  # two are beyond it
    assert embed_split(Scaled(factor), exact, World()).embeddings.abs().max() > 65504
    assert embed_split(Scaled(1.0), half, World()).embeddings.dtype == torch.float16
    first = int((factor * largest > 65504).nonzero()[0])
    message = (
        rf"embedding_dtype: float16 holds .* up to 65504, .* in 2 rows, the first is row {first}\); set embedding_"
    )
    with pytest.raises(UserError, match=message):
        embed_split(Scaled(factor), half, World())
