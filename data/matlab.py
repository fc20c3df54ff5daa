"""Read the struct array of a MATLAB 5 file: ImageNet's devkit keeps its list of classes in one."""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

# Element types of the format, by number.
_NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
_MATRIX, _COMPRESSED = 14, 15
# Classes of matrices.
_STRUCT, _CHAR, _FIRST_NUMERIC = 2, 4, 6
_HEADER = 128  # bytes


def read_struct_array(content: bytes) -> list[dict[str, Any]]:
    """The first struct array of a file, in MATLAB's (column-major) order.

    Texts become str and numeric arrays numpy arrays, flattened; fields of any other kind become None.

    Raises:
        ValueError: the content is no little-endian MATLAB 5 file with a struct array.
    """
    if content[126:128] != b"IM":
        raise ValueError("is not a MATLAB 5 file")
    try:
        for kind, data in _elements(content[_HEADER:]):
            if kind == _COMPRESSED:
                ((kind, data),) = _elements(zlib.decompress(data))
            if kind == _MATRIX:
                value = _matrix(data)
                if isinstance(value, list):
                    return value
    except (struct.error, zlib.error, KeyError, IndexError, StopIteration) as error:
        raise ValueError(f"is a damaged MATLAB file ({error!r})") from None
    raise ValueError("holds no struct array")


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The (type, data) elements that follow one another in `content`."""
    offset = 0
    while offset + 8 <= len(content):
        kind, size = struct.unpack_from("<II", content, offset)
        start = offset + 8
        if kind >> 16:  # a small element: its size shares the first word, its data is the second
            kind, size, start = kind & 0xFFFF, kind >> 16, offset + 4
            offset += 8
        else:
            offset = start + size
            if kind != _COMPRESSED:
                offset += -size % 8
        if start + size > len(content):
            raise ValueError("is a truncated MATLAB file")
        yield kind, content[start : start + size]


def _matrix(content: bytes) -> Any:
    """The value of a matrix element: its flags, dimensions and name, then its data."""
    elements = _elements(content)
    try:
        _, flags = next(elements)
    except StopIteration:  # how an empty field is written
        return None
    matrix_class = flags[0]
    _, dimensions = next(elements)
    next(elements)  # the name
    if matrix_class == _STRUCT:
        count = int(np.prod(np.frombuffer(dimensions, "<i4")))
        return _structs(elements, count)
    if matrix_class == _CHAR:
        kind, data = next(elements)
        return data.decode(_TEXTS[kind])
    if matrix_class >= _FIRST_NUMERIC:
        kind, data = next(elements)
        return np.frombuffer(data, _NUMBERS[kind])
    return None


def _structs(elements: Iterator[tuple[int, bytes]], count: int) -> list[dict[str, Any]]:
    _, length = next(elements)
    _, joined = next(elements)
    width = struct.unpack("<i", length)[0]
    names = [joined[i : i + width].partition(b"\0")[0].decode("latin-1") for i in range(0, len(joined), width)]
    return [{name: _matrix(next(elements)[1]) for name in names} for _ in range(count)]
