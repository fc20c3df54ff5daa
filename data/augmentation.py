"""Random crop and flip of whole batches of uint8 images, as index arithmetic on the device that holds them."""

from typing import NamedTuple

import torch
from torch.nn import functional as F


class Augmentation(NamedTuple):
    """A random crop after zero padding, and a random horizontal flip."""

    padding: int  # pixels on each side; 0: no crop
    flips: bool

    @property
    def num_views(self) -> int | None:
        """How many different views of an image it can draw; None where they are too many to enumerate."""
        if self.padding:
            return None
        return 2 if self.flips else 1

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw a view for each image: (count, 3) int64 of top and left in [0, 2 padding], and flip in {0, 1}."""
        corners = torch.randint(0, 2 * self.padding + 1, (count, 2), generator=generator)
        flips = torch.randint(0, 1 + self.flips, (count, 1), generator=generator)
        return torch.cat([corners, flips], dim=1)

    def view(self, view: int, count: int) -> torch.Tensor:
        """The parameters of a certain view for `count` images: 0 is the image itself, 1 its mirror image."""
        return torch.tensor([self.padding, self.padding, view]).expand(count, 3)

    def apply(self, pixels: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Take a view of each image.

        Args:
            pixels: uint8 (B, H, W, 3).
            parameters: (B, 3) int64, from `draw` or `view`.

        Returns:
            uint8 (B, 3, H, W), channels last in memory.
        """
        batch, height, width, _ = pixels.shape
        top, left, flip = parameters.to(pixels.device).unsqueeze(2).unbind(1)  # each (B, 1)
        rows = top + torch.arange(height, device=pixels.device)  # (B, H)
        columns = torch.arange(width, device=pixels.device).expand(batch, width)
        columns = left + torch.where(flip.bool(), width - 1 - columns, columns)  # (B, W)
        if self.padding:
            pixels = F.pad(pixels, (0, 0, *(self.padding,) * 4))
        item = torch.arange(batch, device=pixels.device)[:, None, None]
        return pixels[item, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear resize of (B, 3, H, W) uint8 to `size` pixels a side, rounded to whole levels as PIL does."""
    if images.shape[-1] == images.shape[-2] == size:
        return images
    resized = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255)


def normalise(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Levels 0..255 (B, 3, H, W) -> float32 with the data set's mean and standard deviation (fractions) taken out."""
    shift = torch.tensor(mean, device=images.device).view(1, 3, 1, 1) * 255
    scale = 1 / (torch.tensor(std, device=images.device).view(1, 3, 1, 1) * 255)
    return (images.float() - shift) * scale
