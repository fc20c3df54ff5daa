"""A copy of a prepared data set whose large images are reduced once, where training decodes them in every epoch.

Classes, file names and order are those of the original, so that labels and ids mean the same. Of ImageNet, reduced to
256 pixels, there are some 45 GB, which decode in half the time of the originals.
"""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data.folders import list_images, read_image
from data.preparation import Recipe, prepare, read_stamp, write_files
from utils.data_roots import SPLITS
from utils.errors import UserError

JPEG_QUALITY = 95
IN_FLIGHT = 4096  # images being reduced or waiting to be written


def resize(data_root: Path, size: int) -> tuple[Path, bool]:
    """Write the copy, `DATA_ROOT-SIZE`, unless it is there already; see `preparation.prepare`.

    Args:
        size: pixels to which the shorter side of larger images is reduced.

    Returns:
        The copy's folder, and whether there was anything to do.
    """
    output = data_root.with_name(f"{data_root.name}-{size}")
    stamp = read_stamp(data_root)
    parameters = {**(stamp.get("parameters") or {}), "resize": size}
    recipe = Recipe(stamp["dataset"], stamp.get("source"), parameters, split=stamp.get("split"))
    return output, prepare(output, recipe, lambda folder: lay_out(folder, data_root, size))


def lay_out(folder: Path, data_root: Path, size: int) -> dict[str, int]:
    """Write the copy of `data_root` into `folder`; returns the images of each split."""
    counts = {}
    for split in SPLITS:
        paths = list_images(data_root, split, all_classes=True).paths
        names = (path.relative_to(data_root).as_posix() for path in paths)
        counts[split] = write_files(folder, zip(names, _reduced(paths, size, split), strict=True))
    return counts


def _reduced(paths: list[Path], size: int, title: str) -> Iterator[bytes]:
    """In order, on threads: the time goes into PIL's decoder, resizing and encoder, which run beside Python."""
    with ThreadPoolExecutor() as pool, tqdm(desc=title, total=len(paths), unit=" images") as bar:
        for start in range(0, len(paths), IN_FLIGHT):
            part = paths[start : start + IN_FLIGHT]
            for content in pool.map(reduced, part, [size] * len(part)):
                bar.update()
                yield content


def reduced(path: Path, size: int) -> bytes:
    """An image file of the same format whose shorter side is `size` pixels, resized as the evaluation transform does.

    What is small enough keeps its bytes, and so does what cannot be decoded: training names and counts it as before.

    Raises:
        UserError: the file cannot be read.
    """
    image = read_image(path)
    if image is None or min(image.size) <= size:
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    longer = size * max(image.size) // min(image.size)  # rounded as torchvision's Resize does
    shape = (size, longer) if image.width <= image.height else (longer, size)
    buffer = io.BytesIO()
    kind = Image.registered_extensions()[path.suffix.lower()]
    image.resize(shape, Image.Resampling.BILINEAR).save(buffer, kind, quality=JPEG_QUALITY)
    return buffer.getvalue()
