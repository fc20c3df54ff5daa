"""A packed copy of a data set: few large files, memory-mapped, in place of a file an image.

It lies in DATA_ROOT/packed, and each split of it is a folder with

- `paths.json`, the images' paths relative to the split's folder, CLASS/FILE, in the order of `list_images`: they carry
  the classes, the labels and the order, so that ids and `num_classes` mean the same as for the folders;
- `records.npy`, where each image is: shard, offset and length in bytes, and height and width of raw pixels;
- `00000.bin`, `00001.bin`, ..., the images one after another, in shards of a GiB at most.

A record is one of two kinds. Images of up to 64 pixels a side are raw levels: CIFAR-100 takes 180 MB, less than its
files do, and nothing is left to decode. Larger ones are image files, for at 256 pixels ImageNet's 1.28 million images
would be 250 GB raw, more than memory keeps at hand and disks deliver, against some 45 GB of JPEGs of quality 95, which
decode in half the time of the originals. An image that is small enough already keeps the bytes of its file, and so
does one that cannot be decoded: training names and counts it as before.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.folders import ImageList, first_classes, list_images, number_classes, read_image, read_pixels
from data.preparation import Recipe, prepare, read_stamp
from utils.data_roots import PACKED, SPLITS, STAMP, has_packed_copy
from utils.errors import UserError

PATHS, RECORDS = "paths.json", "records.npy"
RECORD = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("length", "<u4"), ("height", "<u4"), ("width", "<u4")])
SHARD_BYTES = 1 << 30
RAW_SIDE = 64  # pixels; up to here raw levels take less room than a decoder is worth
JPEG_QUALITY = 95
IN_FLIGHT = 4096  # images being encoded or waiting to be written


class Content(NamedTuple):
    """An image as it is written: raw pixels of a size, or a file, which has none here."""

    content: bytes
    height: int = 0
    width: int = 0


@dataclass(frozen=True)
class PackedList(ImageList):
    """The images of one split, read from its packed copy. `paths` are the original ones, which need not be there."""

    folder: Path
    records: np.ndarray  # (n,) RECORD

    def pixels(self, index: int) -> np.ndarray | None:
        shard, offset, length, height, width = self.records[index].tolist()
        content = _map_shard(_shard_path(self.folder, shard))[offset : offset + length]
        if height:
            return content.reshape(height, width, 3)
        return read_pixels(io.BytesIO(content.tobytes()))

    def sizes(self) -> Iterable[int]:
        return self.records["length"].tolist()

    def take(self, positions: Sequence[int]) -> Self:
        return replace(super().take(positions), records=self.records[list(positions)])


def has_packed(data_root: str | Path) -> bool:
    """Whether there is a packed copy of what `data_root` holds.

    Raises:
        UserError: there is one, of something else.
    """
    folder = Path(data_root) / PACKED
    if not has_packed_copy(data_root):
        return False
    stamp = read_stamp(folder)
    if (folder.parent / STAMP).is_file() and _origin(stamp) != _origin(read_stamp(folder.parent)):
        raise UserError(
            f"{folder}: was packed from other images than {data_root} holds; delete it, "
            "or set dataset_params.packed=off"
        )
    return True


def list_packed(
    data_root: str | Path, split: str, num_classes: int | None = None, *, all_classes: bool = False
) -> PackedList:
    """As `list_images`, of the packed copy.

    Raises:
        UserError: it is damaged, or there are fewer classes than asked for.
    """
    folder, training = (Path(data_root) / PACKED / name for name in (split, SPLITS[0]))
    try:
        names = json.loads((folder / PATHS).read_text(encoding="utf-8"))
        of_training = json.loads((training / PATHS).read_text(encoding="utf-8"))
        records = np.load(folder / RECORDS, allow_pickle=False)
        if records.dtype != RECORD or len(names) != len(records):
            raise ValueError("its lists do not fit together")
        _check_shards(folder, records)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: is damaged ({error}); delete {folder.parent} and pack again") from None
    class_of = [name.partition("/")[0] for name in names]
    trained = sorted({name.partition("/")[0] for name in of_training})
    wanted = first_classes(trained, None if all_classes else num_classes, training)
    present = set(class_of).difference(set(trained).difference(wanted))
    classes, notes = number_classes(wanted, present, folder, all_classes=all_classes)
    label_of = {name: label for label, name in enumerate(classes)}
    chosen = [position for position, name in enumerate(class_of) if name in label_of]
    return PackedList(
        paths=[Path(data_root) / split / names[position] for position in chosen],
        labels=[label_of[class_of[position]] for position in chosen],
        classes=classes,
        notes=notes,
        folder=folder.absolute(),  # maps of its shards are known by it
        records=records[chosen],
    )


def pack(data_root: Path, size: int) -> bool:
    """Write the packed copy of a prepared data set, unless it is there already; see `preparation.prepare`.

    Args:
        size: pixels to which the shorter side of larger images is reduced.
    """
    stamp = read_stamp(data_root)
    parameters = {**(stamp.get("parameters") or {}), "pack": size}
    recipe = Recipe(stamp["dataset"], stamp.get("source"), parameters, split=stamp.get("split"))
    return prepare(data_root / PACKED, recipe, lambda folder: lay_out(folder, data_root, size))


def lay_out(folder: Path, data_root: Path, size: int) -> dict[str, int]:
    """Write the packed copy of `data_root` into `folder`; returns the images of each split.

    Args:
        size: pixels to which the shorter side of larger images is reduced, as the evaluation transform does.
    """
    counts = {}
    for split in SPLITS:
        listed = list_images(data_root, split, all_classes=True)
        (folder / split).mkdir()
        records = _write_shards(folder / split, listed.paths, size)
        np.save(folder / split / RECORDS, records)
        names = [path.relative_to(data_root / split).as_posix() for path in listed.paths]
        (folder / split / PATHS).write_text(json.dumps(names), encoding="utf-8")
        counts[split] = len(names)
    return counts


def encode(path: Path, size: int) -> Content:
    """An image file as it goes into a shard.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    image = read_image(io.BytesIO(content))
    if image is None:
        return Content(content)
    reduced = image
    if min(image.size) > size:
        short, long = min(image.size), max(image.size)
        longer = size * long // short  # rounded as torchvision's Resize does
        width, height = (size, longer) if image.width <= image.height else (longer, size)
        reduced = image.resize((width, height), Image.Resampling.BILINEAR)
    if max(reduced.size) <= RAW_SIDE:
        return Content(reduced.tobytes(), reduced.height, reduced.width)
    if reduced is image:
        return Content(content)
    buffer = io.BytesIO()
    reduced.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return Content(buffer.getvalue())


def _write_shards(folder: Path, paths: list[Path], size: int) -> np.ndarray:
    records = np.zeros(len(paths), RECORD)
    shard = offset = 0
    file = _shard_path(folder, shard).open("wb")
    try:
        for position, (content, height, width) in enumerate(tqdm(_encode_all(paths, size), folder.name, len(paths))):
            if offset and offset + len(content) > SHARD_BYTES:
                file.close()
                shard, offset = shard + 1, 0
                file = _shard_path(folder, shard).open("wb")
            file.write(content)
            records[position] = (shard, offset, len(content), height, width)
            offset += len(content)
    finally:
        file.close()
    return records


def _encode_all(paths: list[Path], size: int) -> Iterator[Content]:
    """In order, on threads: the time goes into PIL's decoder, resizing and encoder, which run beside Python."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), IN_FLIGHT):
            part = paths[start : start + IN_FLIGHT]
            yield from pool.map(encode, part, [size] * len(part))


def _origin(stamp: dict[str, object]) -> dict[str, object]:
    """What a stamp says of the images themselves, packed or not."""
    parameters = dict(stamp.get("parameters") or {})  # type: ignore[call-overload]
    parameters.pop("pack", None)
    return {name: stamp.get(name) for name in ("dataset", "source", "images")} | {"parameters": parameters}


def _check_shards(folder: Path, records: np.ndarray) -> None:
    """A shard that is cut short is found at once, not in the middle of an epoch."""
    for shard in np.unique(records["shard"]).tolist():
        of_shard = records[records["shard"] == shard]
        end = int((of_shard["offset"] + of_shard["length"]).max())
        path = _shard_path(folder, shard)
        if path.stat().st_size != end:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes and should have {end}")


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.bin"


@cache
def _map_shard(path: Path) -> np.ndarray:
    """A shard in memory, a page at a time as it is read; once for each process."""
    return np.memmap(path, np.uint8, mode="r").view(np.ndarray)  # whose slices are cheaper
