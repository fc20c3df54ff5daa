"""From levels 0..255 to what networks take: float32 with the data set's mean and standard deviation taken out."""

import torch


class Normalisation:
    """Takes mean and standard deviation (fractions of the range of levels) out of batches of images."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.scale = 1 / (torch.tensor(std) * 255)  # (3,)
        self.shift = -255 * torch.tensor(mean) * self.scale  # (3,)

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
        levels = rows.to(torch.float32, copy=True)
        torch.addcmul(shift, levels, scale, out=levels)
        return levels.view(batch, height, width, 3).permute(0, 3, 1, 2)
