"""Quantised embeddings, as sentence-transformers' `quantize_embeddings` makes them: int8, uint8 and packed bits."""

from collections.abc import Callable, Mapping

import numpy as np

from data.items import Array
from data.sources.rows import Rows, converted, whole
from utils.errors import UserError

WAYS = ({"ranges"}, {"scale", "offset"}, {"bits"})
SAYING = ("ranges", "scale", "offset", "bits")  # arrays that say what the bytes mean
ADVICE = (
    "say what they mean by one more array in the file, or as .npy in the folder: `ranges` (2, d), least and largest "
    "value of each dimension; `scale` and `offset` (d,); or `bits`, how many, if they are packed bits"
)
SAMPLED, FEWEST_BESIDE = 2**20, 200  # values that tell how all were rounded, and of them -1 and 1, to tell it by
PRECISIONS = {"int8": np.int8, "uint8": np.uint8, "binary": np.int8, "ubinary": np.uint8}


def is_quantised(rows: Rows) -> bool:
    """Whether rows are bytes."""
    return rows.dtype in (np.int8, np.uint8)


def dequantised(vectors: Rows, said: Mapping[str, Rows], where: str) -> Rows:
    """Bytes (n, w) as float32 embeddings (n, d), by the arrays that say what they mean.

    - `ranges` (2, w): numbers of 255 steps between a least and a largest value, rounded down (int8: less 128): each
      stands for the middle of what it may have come from. int8 of sentence-transformers before 6.0 was rounded towards
      zero; where it was, twice as many values are 0 as -1 or 1 (`_are_rounded_to_zero`).
    - `scale` and `offset` (w,), or one for all: byte * scale + offset.
    - `bits` d, up to 8 w: signs, the first in the highest bit (int8: 128 is taken away): +-1 / sqrt(d), so that
      embeddings have length 1 and a cosine is 1 - 2 Hamming distance / d.

    Raises:
        UserError: `said` is none of these, or does not fit.
    """
    arrays = {name: np.asarray(whole(rows)) for name, rows in said.items()}
    if set(arrays) not in WAYS or len(vectors.shape) != 2:
        found = f", not {' and '.join(sorted(arrays))}" if arrays else ""
        raise UserError(f"{where}: its embeddings are {vectors.shape} {vectors.dtype}{found}:\n{ADVICE}")
    width, signed = vectors.shape[1], vectors.dtype == np.int8
    for name, array in arrays.items():
        fits = array.shape == (2, width) if name == "ranges" else array.size == 1
        fits = fits or (name in ("scale", "offset") and array.shape == (width,))
        if not fits or array.dtype.kind not in ("iu" if name == "bits" else "f") or not np.isfinite(array).all():
            wanted = {"ranges": f"(2, {width}) finite numbers", "bits": "a whole number"}
            wanted_here = wanted.get(name, f"({width},) finite numbers, or one")
            raise UserError(f"{where}: {name} should be {wanted_here}, got {array.shape} {array.dtype}")
    if "bits" in arrays:
        count = int(arrays["bits"].reshape(()))
        if not 8 * (width - 1) < count <= 8 * width:
            raise UserError(f"{where}: bits is {count}, but {width} bytes hold {8 * width - 7} to {8 * width}")
        return converted(vectors, _signs(count, signed), np.float32, (count,))
    if "ranges" in arrays:
        least, largest = arrays["ranges"].astype(np.float64)
        if (largest < least).any():
            raise UserError(f"{where}: ranges should be the least values and then the largest; some are the other way")
        to_zero = signed and _are_rounded_to_zero(vectors)
        return converted(vectors, _middles(least, (largest - least) / 255, signed, to_zero), np.float32)
    scale, offset = (arrays[name].astype(np.float32) for name in ("scale", "offset"))
    return converted(vectors, lambda values: values.astype(np.float32) * scale + offset, np.float32)


def _signs(count: int, signed: bool) -> Callable[[Array], Array]:
    def convert(packed: Array) -> Array:
        bits = np.unpackbits(packed.view(np.uint8) ^ np.uint8(128 * signed), axis=1, count=count)
        return (2 * bits.astype(np.float32) - 1) / np.float32(count**0.5)

    return convert


def _are_rounded_to_zero(vectors: Rows) -> bool:
    values = vectors.read(0, min(vectors.shape[0], -(-SAMPLED // vectors.shape[1])))
    zeros, beside = (values == 0).sum(), (np.abs(values) == 1).sum()
    return bool(zeros > 0.75 * beside and beside >= FEWEST_BESIDE)  # 0.5 of them where all are rounded down, else 1


def _middles(least: Array, step: Array, signed: bool, to_zero: bool) -> Callable[[Array], Array]:
    def convert(values: Array) -> Array:
        rounded = values.astype(np.float32)
        steps = rounded + 0.5 * (np.sign(rounded) if to_zero else 1) + 128 * signed
        return (steps.clip(0, 255) * step + least).astype(np.float32)

    return convert


def quantised(embeddings: Array, precision: str, ranges: Array | None) -> Array:
    """Embeddings (m, d) as `quantize_embeddings` (6.0) gives them -> (m, w) of PRECISIONS[precision].

    Args:
        ranges: (2, d) least and largest values, for int8 and uint8; what lies beyond is given their ends.
    """
    if ranges is None:
        packed = np.packbits(embeddings > 0, axis=1)
        return packed if precision == "ubinary" else (packed ^ np.uint8(128)).view(np.int8)
    least, largest = ranges.astype(np.float64)
    step = (largest - least) / 255
    steps = np.floor((embeddings - least) / np.where(step == 0, 1, step)).clip(0, 255)
    return (steps if precision == "uint8" else steps - 128).astype(PRECISIONS[precision])
