"""From levels 0..255 to what networks take: float32 with the data set's mean and standard deviation taken out."""

import weakref

import numpy as np
import torch

KEPT = 3  # blocks of memory: the batch being made, the one in use, and one that its graph still holds


class Normalisation:
    """Takes mean and standard deviation (fractions of the range of levels) out of batches of images."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.scale = 1 / (torch.tensor(std) * 255)  # (3,)
        self.shift = -255 * torch.tensor(mean) * self.scale  # (3,)
        self.memory = BatchMemory()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise a batch.

        Args:
            images: (B, 3, H, W) of levels, channels last in memory.

        Returns:
            (B, 3, H, W) float32, channels last in memory.
        """
        batch, _, height, width = images.shape
        # A row of pixels at a time: broadcasting over three channels alone would keep vector units idle.
        rows = images.permute(0, 2, 3, 1).reshape(batch * height, width * 3)
        scale, shift = (each.to(images.device).repeat(width) for each in (self.scale, self.shift))
        # Two operations a batch: each is a meeting of all threads, which waits for the last where workers decode
        # beside it.
        levels = self.memory.empty(rows.shape, images.device).copy_(rows)
        torch.addcmul(shift, levels, scale, out=levels)
        return levels.view(batch, height, width, 3).permute(0, 3, 1, 2)


class BatchMemory:
    """Float32 memory for one batch after another, used again as soon as no tensor stands on it.

    On a CPU most of the time of writing to fresh memory goes into page faults: at 224 px a batch takes four times as
    long as in memory that was written before. PyTorch keeps the memory of GPUs by itself.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[np.ndarray, weakref.ref[np.ndarray]]] = []  # memory, and its last loan

    def empty(self, shape: torch.Size, device: torch.device) -> torch.Tensor:
        """A tensor whose values are not yet written."""
        if device.type != "cpu":
            return torch.empty(shape, device=device)
        free = [memory for memory, loan in self._kept if loan() is None]
        memory = next((memory for memory in free if memory.shape == shape), None)
        if memory is None:
            memory = np.empty(shape, np.float32)  # numpy asks Linux for huge pages
        loan = memory.view()  # lives as long as a tensor stands on it
        others = [entry for entry in self._kept if entry[0] is not memory]
        self._kept = [(memory, weakref.ref(loan)), *others][:KEPT]
        return torch.from_numpy(loan)
