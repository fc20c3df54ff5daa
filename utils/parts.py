"""Files of weights made small enough to be carried between machines, in parts, and put together again."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.files import read_torch, write_bytes, write_json, write_torch

PART_BYTES, ALL_BYTES = 16 * 2**20, 64 * 2**20
KEPT = 4_096  # numbers: smaller tensors, as all of batch normalisation, stay float32


def rounded(value: Any) -> Any:
    """Nested values with their large float32 tensors in bf16: 8 bits of each mantissa, off by 1/256 of it at most."""
    if isinstance(value, dict):
        return {key: rounded(below) for key, below in value.items()}
    if isinstance(value, list):
        return [rounded(below) for below in value]
    large = isinstance(value, torch.Tensor) and value.dtype == torch.float32 and value.numel() > KEPT
    return value.bfloat16() if large else value


def write_rounded(path: Path) -> None:
    """Write a model file, or a training's checkpoint, anew with rounded weights; whatever reads it reads it as before.

    A checkpoint loses what the optimizer has gathered: SGD's momentum, which comes back within some steps.
    """
    content = read_torch(path)
    if "state" in content and "optimizer" in content["state"]:
        content["state"]["optimizer"]["state"] = {}
    write_torch(path, rounded(content))


def split(path: Path, folder: Path, part_bytes: int = PART_BYTES, all_bytes: int = ALL_BYTES) -> list[Path]:
    """Write the content of a file into `folder`, as NAME.000, NAME.001, ... and NAME.json, which says what they make.

    Parts of another content of the file go.

    Raises:
        UserError: they would be larger than `all_bytes` together.
    """
    content = path.read_bytes()
    if len(content) > all_bytes:
        raise UserError(f"{path}: has {len(content) / 2**20:.1f} MiB, and no more than {all_bytes / 2**20:g} can go")
    (folder / f"{path.name}.json").unlink(missing_ok=True)
    for old in folder.glob(f"{path.name}.[0-9][0-9][0-9]"):
        old.unlink()
    pieces = [content[start : start + part_bytes] for start in range(0, len(content), part_bytes)]
    parts = [folder / f"{path.name}.{number:03}" for number in range(len(pieces))]
    for part, piece in zip(parts, pieces, strict=True):
        write_bytes(part, piece)
    whole = {"sha256": hashlib.sha256(content).hexdigest(), "parts": len(parts)}
    write_json(folder / f"{path.name}.json", whole)
    return parts


def join(folder: Path, path: Path) -> bool:
    """Write the file that `split` made parts of; False where there are none of it.

    Raises:
        UserError: a part is missing or damaged.
    """
    description = folder / f"{path.name}.json"
    if not description.is_file():
        return False
    whole = json.loads(description.read_text(encoding="utf-8"))
    parts = [folder / f"{path.name}.{number:03}" for number in range(whole["parts"])]
    for part in parts:
        if not part.is_file():
            raise UserError(f"{part}: is missing; bring all {len(parts)} parts of {path.name}")
    content = b"".join(part.read_bytes() for part in parts)
    if hashlib.sha256(content).hexdigest() != whole["sha256"]:
        raise UserError(f"{description}: its parts are damaged, or not of one file; bring them anew")
    write_bytes(path, content)
    return True
