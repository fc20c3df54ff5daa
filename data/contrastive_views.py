"""Random views for contrastive learning (SimCLR, arXiv 2002.05709, appendix A), a whole batch of images at a time.

A view is a random crop, resized and perhaps mirrored; jitter of brightness, contrast, saturation and hue in random
order; perhaps grey; perhaps blurred. Everything random is drawn beforehand, as numbers for each image, so that what is
computed on the device is a function of them. Pixels are levels 0..255 in float32, so that nothing is rounded between.
"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torchvision.transforms.v2.functional import rgb_to_grayscale

TRIES = 10  # boxes drawn for a crop, of which the first that fits into the image is taken
ASPECT = (3 / 4, 4 / 3)  # of a crop: width over height
JITTER, GREY, BLUR = 0.8, 0.2, 0.5  # the chance of each
SIGMA = (0.1, 2.0)  # of the blur, in pixels


class Crops(NamedTuple):
    """Where the views of n images lie in them."""

    boxes: torch.Tensor  # (n, 4) int64: top, left, height, width, in pixels
    mirrored: torch.Tensor  # (n,) bool


class Colours(NamedTuple):
    """How the views of n images are coloured."""

    order: torch.Tensor  # (n, 4) int8: which of ADJUSTMENTS comes first to last; -1 for none
    factors: torch.Tensor  # (n, 4) float32: the strength of each of ADJUSTMENTS
    grey: torch.Tensor  # (n,) bool
    sigma: torch.Tensor  # (n,) float32, in pixels; 0: not blurred

    def take(self, rows: torch.Tensor) -> "Colours":
        """Those of the images `rows`."""
        return Colours(*(column[rows] for column in self))


class ViewRecipe(NamedTuple):
    """What views are drawn."""

    flip: bool  # mirror every other view
    strength: float  # s of the colour jitter
    blur: bool
    min_area: float = 0.08  # of a crop, as a share of the image

    def draw_crops(self, count: int, height: int, width: int, generator: torch.Generator) -> Crops:
        """Draw a crop of each of `count` images of (height, width) pixels, as torchvision's RandomResizedCrop does."""
        area = _uniform((count, TRIES), self.min_area, 1.0, generator) * (height * width)
        aspect = _uniform((count, TRIES), math.log(ASPECT[0]), math.log(ASPECT[1]), generator).exp()
        heights, widths = (area / aspect).sqrt().round().long(), (area * aspect).sqrt().round().long()
        fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
        first = (fits * torch.arange(TRIES, 0, -1)).argmax(1, keepdim=True)
        sizes = torch.stack([heights, widths], dim=2).take_along_dim(first.unsqueeze(2), dim=1).squeeze(1)  # (n, 2)
        room = torch.tensor([height, width])
        corners = torch.minimum((torch.rand(count, 2, generator=generator) * (room - sizes + 1)).long(), room - sizes)
        boxes = torch.cat([corners, sizes], dim=1)
        boxes[~fits.any(1)] = torch.tensor(_central_box(height, width))
        mirrored = torch.rand(count, generator=generator) < (0.5 if self.flip else 0.0)
        return Crops(boxes, mirrored)

    def draw_colours(self, count: int, generator: torch.Generator) -> Colours:
        """Draw the colours of `count` views."""
        s = self.strength
        order = torch.rand(count, 4, generator=generator).argsort(1).to(torch.int8)
        order[torch.rand(count, generator=generator) >= JITTER] = -1
        factors = _uniform((count, 4), -1.0, 1.0, generator) * torch.tensor([0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s])
        factors[:, :3] = (1 + factors[:, :3]).clamp_(min=0)  # hue is an angle, the others are factors about 1
        grey = torch.rand(count, generator=generator) < GREY
        sigma = _uniform((count,), *SIGMA, generator)
        sigma[torch.rand(count, generator=generator) >= (BLUR if self.blur else 0.0)] = 0
        return Colours(order, factors, grey, sigma)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _central_box(height: int, width: int) -> list[int]:
    """The largest box in the middle that has an allowed aspect: for images so long that no drawn one fits."""
    box_height, box_width = min(height, round(width / ASPECT[0])), min(width, round(height * ASPECT[1]))
    return [(height - box_height) // 2, (width - box_width) // 2, box_height, box_width]


def resized_crops(pixels: torch.Tensor, crops: Crops, size: int) -> torch.Tensor:
    """Cut a box out of each image and resize it bilinearly, with antialiasing where it shrinks.

    Interpolation is linear in the pixels and separable, so two matrix products an image do it, whatever its box.

    Args:
        pixels: (B, H, W, 3), uint8.

    Returns:
        (B, 3, size, size) float32 levels.
    """
    batch, height, width, _ = pixels.shape
    top, left, box_height, box_width = crops.boxes.to(pixels.device).float().unbind(1)  # each (B,)
    rows = _interpolation(top, box_height, height, size)  # (B, size, H)
    columns = _interpolation(left, box_width, width, size)  # (B, size, W)
    mirrored = crops.mirrored.to(pixels.device)[:, None, None]
    columns = torch.where(mirrored, columns.flip(1), columns)
    images = torch.bmm(rows, pixels.reshape(batch, height, width * 3).float())  # (B, size, W * 3)
    planes = images.view(batch, size, width, 3).permute(0, 3, 1, 2).reshape(batch, 3 * size, width)
    return torch.bmm(planes, columns.mT).view(batch, 3, size, size)


def _interpolation(start: torch.Tensor, length: torch.Tensor, side: int, size: int) -> torch.Tensor:
    """Weights (B, size, side) of a side's pixels in `size` new ones over [start, start + length), each (B,)."""
    start, length = start[:, None, None], length[:, None, None]
    scale = length / size
    old = torch.arange(side, device=start.device)
    new = torch.arange(size, device=start.device)[:, None]
    distance = (old + 0.5 - start - (new + 0.5) * scale).abs()
    weights = (1 - distance / scale.clamp(min=1)).clamp_(min=0)
    weights *= (old >= start) & (old < start + length)
    return weights / weights.sum(2, keepdim=True)


def recolour(images: torch.Tensor, colours: Colours) -> torch.Tensor:
    """Jitter, then grey, then blur each image.

    Args:
        images: (B, 3, H, W) float32 levels; may be changed in place.
        colours: (B, ...), on the CPU, so that choosing who gets what does not wait for the device.
    """
    device = images.device
    for place in colours.order.unbind(1):
        for operation, adjust in enumerate(ADJUSTMENTS):
            (rows,) = (place == operation).nonzero(as_tuple=True)
            if len(rows):
                factors = colours.factors[rows, operation].to(device, non_blocking=True)[:, None, None, None]
                rows = rows.to(device, non_blocking=True)
                images[rows] = adjust(images[rows], factors)
    (rows,) = colours.grey.nonzero(as_tuple=True)
    if len(rows):
        rows = rows.to(device, non_blocking=True)
        images[rows] = rgb_to_grayscale(images[rows], num_output_channels=3)
    (rows,) = colours.sigma.nonzero(as_tuple=True)
    if len(rows):
        sigma = colours.sigma[rows].to(device, non_blocking=True)
        rows = rows.to(device, non_blocking=True)
        images[rows] = blur(images[rows], sigma)
    return images


def _blend(images: torch.Tensor, other: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return torch.lerp(other, images, factors).clamp_(0, 255)


def adjust_brightness(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W), factors (B, 1, 1, 1): between black (0), the image (1) and beyond."""
    return (images * factors).clamp_(0, 255)


def adjust_contrast(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Between the image's mean luminance (0), the image (1) and beyond."""
    mean = rgb_to_grayscale(images).mean((1, 2, 3), keepdim=True)
    return _blend(images, mean, factors)


def adjust_saturation(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Between grey (0), the image (1) and beyond."""
    return _blend(images, rgb_to_grayscale(images), factors)


def adjust_hue(images: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turn the hue by `angles` (B, 1, 1, 1), as shares of a full turn; value and chroma stay (the HSV hexagon)."""
    red, green, blue = images.split(1, dim=1)
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    scale = 1 / torch.where(chroma > 0, chroma, 1)
    turn = torch.where(  # in sixths
        value == red,
        (green - blue) * scale,
        torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    )
    # Each channel is the value less a share of the chroma that rises and falls once a turn, at a shift of its own.
    shifts = torch.tensor([5.0, 3.0, 1.0], device=images.device).view(1, 3, 1, 1)
    phase = (turn + 6 * angles + shifts).remainder_(6)  # (B, 3, H, W)
    return value - chroma * torch.minimum(phase, 4 - phase).clamp_(0, 1)


ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of (B, 3, H, W) by `sigma` (B,) pixels, over a tenth of the side, reflected at the edges."""
    batch, channels, height, width = images.shape
    reach = kernel_size(height) // 2
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    kernel = (-0.5 * (offsets / sigma[:, None]).square()).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, dim=0)  # (3 B, k)
    planes = F.pad(images.reshape(1, batch * channels, height, width), (reach,) * 4, mode="reflect")
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=batch * channels)
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=batch * channels)
    return planes.view(images.shape)


def kernel_size(side: int) -> int:
    """Pixels that a blur looks at: the odd number about a tenth of the side, at least 3."""
    return max(3, side // 10 // 2 * 2 + 1)
