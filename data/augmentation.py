"""Random crop and flip of whole batches of uint8 images, on the device that holds them, and resizing."""

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
        top, left, flip = parameters.to(pixels.device).unbind(1)  # each (B,)
        if self.padding:
            _, height, width, _ = pixels.shape
            padded = F.pad(pixels, (0, 0, *(self.padding,) * 4))
            # Every crop, as overlapping views of one memory: (B, 2 padding + 1, 2 padding + 1, H, W, 3).
            windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
            pixels = windows[torch.arange(len(pixels), device=pixels.device), top, left]
        pixels = torch.where(flip.bool()[:, None, None, None], pixels.flip(2), pixels)
        return pixels.permute(0, 3, 1, 2)


def resize(images: torch.Tensor, size: int, interpolation: str = "bilinear") -> torch.Tensor:
    """Bilinear or bicubic resize of (B, 3, H, W) uint8 to `size` pixels a side, in whole levels, as PIL's.

    Returns:
        (B, 3, size, size), within a level of PIL's: uint8 from the CPU, whose kernel for it takes a fortieth of the
        time that float32 takes, and float32 from a GPU, which has no such kernel.
    """
    if images.shape[-1] == images.shape[-2] == size:
        return images
    if images.device.type == "cpu":
        return F.interpolate(images, (size, size), mode=interpolation, antialias=True)
    resized = F.interpolate(images.float(), (size, size), mode=interpolation, antialias=True)
    return resized.round_().clamp_(0, 255)
