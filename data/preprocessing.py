"""How images are seen: the size, the interpolation and the normalisation that a model expects."""

from dataclasses import dataclass

Channels = tuple[float, float, float]  # red, green, blue, of levels as fractions


@dataclass(frozen=True)
class Preprocessing:
    """What a model or a config says of it; None where it says nothing."""

    image_size: int | None = None  # pixels a side
    mean: Channels | None = None
    std: Channels | None = None
    interpolation: str | None = None  # of resizing: bilinear or bicubic
