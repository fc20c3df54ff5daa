"""The manifest beside a gallery: which space its embeddings are in, what they came from, and how far it is."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retrieval import Calibration
from upgrade.sources import MANIFEST
from utils.errors import UserError
from utils.files import write_json

FORMAT, VERSION = "refill-gallery", 3
READABLE = (1, 2, 3)  # 1 knows no refit, 2 no calibration


@dataclass(frozen=True)
class Origin:
    """The gallery of old embeddings, which is never changed, and the transformation."""

    path: str
    model: str
    dim: int
    dtype: str
    normalised: bool
    sample_sha256: str  # of evenly spread rows, with their ids
    transformation: str
    transformation_sha256: str
    side_info: str | None
    side_info_sample_sha256: str | None


@dataclass(frozen=True)
class Refit:
    """The transformation that took the place of the origin's."""

    number: int  # from 1 on
    path: str  # within the gallery's folder
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds. A folder of embeddings states its `model`, `dim` and `normalised` in the same way."""

    model: str
    dim: int
    dtype: str
    normalised: bool
    rows: int
    origin: Origin
    precision: str
    chunk_rows: int
    has_sigma: bool
    has_index: bool
    tool: dict[str, Any]  # version, git revision, torch
    stage: Literal["transforming", "ready"] = "transforming"
    transformed_sha256: str | None = None  # of the chunks' hashes, as transform or a refit wrote them
    calibration: float | None = None  # of the transformation, for cosine where `normalised`, else for l2
    refit: Refit | None = None
    batches: int = 0
    re_embedded: int = 0
    last: dict[str, Any] = field(default_factory=dict)  # the last step: its name, time and numbers

    def calibrated(self) -> Calibration | None:
        """By how much transformed items stand back from re-embedded ones, if that is known."""
        distance = "cosine" if self.normalised else "l2"
        return None if self.calibration is None else Calibration(distance, self.calibration)

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into `folder`, atomically."""
        write_json(folder / MANIFEST, {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)})


# What makes an upgrade the same upgrade: what another run must agree on to go on with it.
IDENTITY = ("model", "dim", "dtype", "normalised", "rows", "origin", "chunk_rows", "has_index")
PLACES = ("path", "transformation", "side_info")  # of an origin: files may be moved


def read_manifest(folder: Path, where: str) -> Manifest:
    """Read the manifest of an upgraded gallery.

    Raises:
        UserError: there is none, or it is of something else or of a later version.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{where}: {folder} is no upgraded gallery; run `upgrade_gallery.py transform` first") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: {path} cannot be read as a manifest ({error})") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise UserError(f"{where}: {path} is not the manifest of an upgraded gallery")
    version = content.pop("version", None)
    if version not in READABLE:
        raise UserError(f"{where}: {path} has version {version}; this code reads up to {VERSION}")
    refit = content.get("refit")
    parts = {"origin": Origin(**content["origin"]), "refit": None if refit is None else Refit(**refit)}
    return Manifest(**{**content, **parts})


def difference(found: Manifest, wanted: Manifest) -> str | None:
    """What two upgrades differ in, as `NAME is X, not Y`; None if they are the same upgrade."""
    before, after = _identity(found), _identity(wanted)
    return next(
        (f"{name} is {after[name]!r}, not {before[name]!r}" for name in before if before[name] != after[name]), None
    )


def _identity(manifest: Manifest) -> dict[str, Any]:
    values = {name: getattr(manifest, name) for name in IDENTITY}
    origin = dataclasses.asdict(values.pop("origin"))
    return values | {f"origin.{name}": value for name, value in origin.items() if name not in PLACES}
