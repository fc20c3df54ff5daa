"""Normalisation against torchvision's."""

import numpy as np
import torch
from torchvision.transforms.v2 import functional as TF

from data.normalisation import Normalisation

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(count: int, seed: int = 0) -> torch.Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 6, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def test_normalise_is_torchvisions() -> None:
    expected = TF.normalize(images(4).float() / 255, list(MEAN), list(STD))
    normalised = Normalisation(MEAN, STD)(images(4))
    torch.testing.assert_close(normalised, expected, rtol=0, atol=1e-5)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
