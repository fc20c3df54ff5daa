"""Normalisation against torchvision's, and the memory that batches stand on."""

import numpy as np
import torch
from torchvision.transforms.v2 import functional as TF

from data.normalisation import KEPT, BatchMemory, Normalisation

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")


def images(count: int, seed: int = 0) -> torch.Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 6, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def test_normalise_is_torchvisions() -> None:
    expected = TF.normalize(images(4).float() / 255, list(MEAN), list(STD))
    normalised = Normalisation(MEAN, STD)(images(4))
    torch.testing.assert_close(normalised, expected, rtol=0, atol=1e-5)
    assert normalised.is_contiguous(memory_format=torch.channels_last)


def test_batches_that_are_kept_are_never_written_again() -> None:
    normalise = Normalisation(MEAN, STD)
    batches = [normalise(images(4, seed))[1:] for seed in range(2 * KEPT)]  # a view keeps the memory, too
    for seed, batch in enumerate(batches):
        torch.testing.assert_close(batch, Normalisation(MEAN, STD)(images(4, seed))[1:], rtol=0, atol=0)


def test_memory_serves_again_once_nothing_stands_on_it() -> None:
    memory, shape = BatchMemory(), torch.Size([3, 2])
    first = memory.empty(shape, CPU)
    address, part = first.data_ptr(), first[1:]
    del first
    second = memory.empty(shape, CPU)
    assert second.data_ptr() != address  # a part of the first is still in use
    del part
    assert memory.empty(torch.Size([2, 3]), CPU).shape == (2, 3)
    assert memory.empty(shape, CPU).data_ptr() == address
