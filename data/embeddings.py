"""Embedding files: `.npz`, or a folder of `.npy` files that are memory-mapped."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from utils.errors import UserError
from utils.files import write_arrays
from utils.sections import EmbeddingsParams

ARRAYS = ("embeddings", "ids", "labels", "sigma")


@dataclass(frozen=True)
class EmbeddingSet:
    """Embeddings of n items.

    `ids` tell the items apart, `labels` are their classes (a negative one: none), `log_variance` is a transformation's
    uncertainty.
    """

    embeddings: torch.Tensor  # (n, d) float16 or float32
    ids: torch.Tensor  # (n,) int64
    labels: torch.Tensor | None = None  # (n,) int64
    log_variance: torch.Tensor | None = None  # (n,) or (n, d)

    def __len__(self) -> int:
        return len(self.embeddings)

    def to(self, device: torch.device) -> "EmbeddingSet":
        """The same items on the device."""
        labels, log_variance = self.labels, self.log_variance
        return EmbeddingSet(
            self.embeddings.to(device),
            self.ids.to(device),
            None if labels is None else labels.to(device),
            None if log_variance is None else log_variance.to(device),
        )

    def take(self, items: torch.Tensor) -> "EmbeddingSet":
        """The items at these positions (m,) int64."""
        items = items.to(self.ids.device)
        return EmbeddingSet(
            self.embeddings[items],
            self.ids[items],
            None if self.labels is None else self.labels[items],
            None if self.log_variance is None else self.log_variance[items],
        )

    def same_items(self, other: "EmbeddingSet") -> bool:
        """Whether both hold the same items in the same order."""
        return torch.equal(self.ids, other.ids)


@dataclass(frozen=True)
class ClassVectors:
    """What is known of C classes."""

    classifier: torch.Tensor | None = None  # (C, d) weight of the new model's classifier, in the new space
    bias: torch.Tensor | None = None  # (C,), if it has one
    means: torch.Tensor | None = None  # (C, d) mean new embedding of each class over the training set
    names: Sequence[str] = ()  # of the class folders, by label; empty where there are only embeddings


def write_embeddings(path: str | Path, items: EmbeddingSet) -> None:
    """Write an embedding file atomically: an `.npz`, or under any other name a folder of `.npy` files."""
    arrays = {"embeddings": items.embeddings, "ids": items.ids, "labels": items.labels, "sigma": items.log_variance}
    write_arrays(path, {name: array for name, array in arrays.items() if array is not None})


def read_query_and_gallery(files: EmbeddingsParams, device: torch.device) -> tuple[EmbeddingSet, EmbeddingSet]:
    """Read the two embedding files of an evaluation onto the device; on a CPU, a mapped file stays mapped.

    Raises:
        UserError: as `read_embeddings`, or a file without labels.
    """
    query = read_embeddings(files.query, where="embeddings_params.query").to(device)
    gallery = read_embeddings(files.gallery, where="embeddings_params.gallery").to(device)
    for name, path, items in (("query", files.query, query), ("gallery", files.gallery, gallery)):
        if items.labels is None:
            raise UserError(f"embeddings_params.{name}: {path} has no array `labels`; the evaluation needs `labels`")
    return query, gallery


def read_class_vectors(files: EmbeddingsParams, device: torch.device) -> ClassVectors:
    """Read what an evaluation's files say of the classes, onto the device.

    Raises:
        UserError: a file that is not an `.npy` of a matrix.
    """
    matrices = [
        None if path is None else _read_matrix(path, where=f"embeddings_params.{name}").to(device)
        for name, path in (("classifier", files.classifier), ("class_means", files.class_means))
    ]
    return ClassVectors(classifier=matrices[0], means=matrices[1])


def _read_matrix(path: str, *, where: str) -> torch.Tensor:
    try:
        matrix = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{where}: {path} is no array (.npy): {error}") from None
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype.kind != "f":
        raise UserError(f"{where}: {path} should be an `.npy` of (classes, dimension) floating point numbers")
    return _tensor(matrix.astype(np.float32))


def read_embeddings(path: str | Path, *, where: str) -> EmbeddingSet:
    """Read an embedding file; ids left out are 0, 1, ..., n - 1.

    Args:
        where: the config key that names it, for error messages.

    Raises:
        UserError: no such file, not an embedding file, no item, ids that occur twice, or arrays whose shapes or types
            do not fit.
    """
    path = Path(path)
    arrays = _read_arrays(path, where)
    if "embeddings" not in arrays:
        raise UserError(f"{where}: {path} has no array `embeddings`")
    embeddings = arrays["embeddings"]
    if embeddings.ndim != 2 or embeddings.dtype not in (np.float16, np.float32):
        raise UserError(
            f"{where}: {path}: embeddings should be (n, d) float16 or float32, "
            f"got {embeddings.shape} {embeddings.dtype}"
        )
    if not embeddings.size:
        raise UserError(f"{where}: {path} is empty, its embeddings are {embeddings.shape}")
    for name, array in arrays.items():
        if array.shape[:1] != embeddings.shape[:1]:
            raise UserError(f"{where}: {path}: {name} is {array.shape}, embeddings {embeddings.shape}")
        if name in ("ids", "labels") and (array.ndim != 1 or array.dtype.kind not in "iu"):
            raise UserError(f"{where}: {path}: {name} should be (n,) whole numbers, got {array.shape} {array.dtype}")
    if "ids" in arrays:
        ids, counts = np.unique(arrays["ids"], return_counts=True)
        if len(ids) < len(embeddings):
            twice = ids[counts > 1]
            raise UserError(f"{where}: {path}: {len(twice)} ids occur more than once, the first is {twice[0]}")
    if "sigma" in arrays and (arrays["sigma"].ndim > 2 or arrays["sigma"].dtype.kind != "f"):
        raise UserError(f"{where}: {path}: sigma should be (n,) or (n, d) floating point log variances")
    labels, sigma = arrays.get("labels"), arrays.get("sigma")
    return EmbeddingSet(
        embeddings=_tensor(embeddings),
        ids=_tensor(arrays["ids"].astype(np.int64)) if "ids" in arrays else torch.arange(len(embeddings)),
        labels=None if labels is None else as_labels(labels, f"{where}: {path}"),
        log_variance=None if sigma is None else _tensor(sigma.astype(np.float32)),
    )


def as_labels(labels: np.ndarray, where: str) -> torch.Tensor:
    """Whole numbers (n,) of any type as int64.

    Raises:
        UserError: numbers from 2^63 on, which int64 would take for negative ones, those of no class.
    """
    whole = labels.astype(np.int64)
    if labels.dtype.kind == "u" and (whole < 0).any():
        raise UserError(f"{where}: labels should be below 2^63, got {labels.max()}")
    return _tensor(whole)


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor on the array's own memory; a read-only memory map is mapped copy-on-write, so nothing is written."""
    return torch.from_numpy(array)


def _read_arrays(path: Path, where: str) -> dict[str, np.ndarray]:
    try:
        if path.is_dir():
            files = {name: path / f"{name}.npy" for name in ARRAYS}
            return {name: np.load(file, mmap_mode="c") for name, file in files.items() if file.exists()}
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with archive:
            return {name: archive[name] for name in ARRAYS if name in archive}
    except FileNotFoundError:
        raise UserError(f"{where}: there is no embedding file {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{where}: {path} is no embedding file (.npz or a folder of .npy): {error}") from None
