"""Embeddings of items, and the files that hold them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.embedding_files import read_arrays, write_named_arrays
from data.items import Array, Items, matching_rows
from data.lance_tables import CALIBRATION, RE_EMBEDDED
from utils.errors import UserError

ARRAYS = ("embeddings", "ids", "labels", "sigma")


@dataclass(frozen=True)
class EmbeddingSet:
    """Embeddings of n items.

    `ids` are what the items are called, `labels` are their classes (a negative one: none), `log_variance` is a
    transformation's uncertainty.
    """

    embeddings: torch.Tensor  # (n, d) float16 or float32
    ids: Array | None = None  # (n,) int64, uint64 or texts; None where nothing but their place tells the items apart
    labels: torch.Tensor | None = None  # (n,) int64
    log_variance: torch.Tensor | None = None  # (n,) or (n, d)
    # (n,) int64, of the two sets of an evaluation: items of the same number are the same item.
    numbers: torch.Tensor | None = None
    re_embedded: torch.Tensor | None = None  # (n,) bool, of a gallery in the middle of its upgrade
    calibration: torch.Tensor | None = None  # (n,) float32, of one whose items have one each

    def __len__(self) -> int:
        return len(self.embeddings)

    def to(self, device: torch.device) -> "EmbeddingSet":
        """The same items on the device."""
        return self._each(lambda tensor: tensor.to(device))

    def take(self, items: torch.Tensor) -> "EmbeddingSet":
        """The items at these positions (m,) int64."""
        taken = self._each(lambda tensor: tensor[items.to(tensor.device)])
        return replace(taken, ids=None if self.ids is None else self.ids[items.cpu().numpy()])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "EmbeddingSet":
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)

    def named(self, name: str) -> Items:
        """What tells the items, under the name that error messages have for them."""
        return Items(name, len(self), self.ids, None if self.labels is None else self.labels.cpu().numpy())

    def same_items(self, other: "EmbeddingSet") -> bool:
        """Whether both hold the same items in the same order, by their numbers."""
        assert self.numbers is not None
        assert other.numbers is not None
        return torch.equal(self.numbers, other.numbers)

    def in_order_of(self, reference: Items, name: str) -> "EmbeddingSet":
        """These items, which are those of `reference`, in its order.

        Raises:
            UserError: they are not, or nothing tells (`matching_rows`); it calls them `name`.
        """
        rows = matching_rows(reference, self.named(name))
        return self if rows is None else self.take(torch.from_numpy(rows))


def write_embeddings(path: str | Path, items: EmbeddingSet) -> None:
    """Write an embedding file atomically, in the form that its suffix says; under any other name a folder of `.npy`.

    Raises:
        UserError: as `write_named_arrays`.
    """
    tensors = {"embeddings": items.embeddings, "labels": items.labels, "sigma": items.log_variance}
    arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items() if tensor is not None}
    write_named_arrays(path, arrays if items.ids is None else {**arrays, "ids": items.ids})


def read_embeddings(path: str | Path, *, where: str) -> EmbeddingSet:
    """Read an embedding file, in any of `data.embedding_files.FORMS`; a folder of `.npy` stays mapped.

    Args:
        where: the config key that names it, for error messages.

    Raises:
        UserError: no such file, not an embedding file, no item, ids that occur twice, or arrays whose shapes or types
            do not fit.
    """
    arrays = read_arrays(path, ARRAYS, where=where)
    where = f"{where}: {path}"
    if "embeddings" not in arrays:
        raise UserError(f"{where} has no array `embeddings`")
    embeddings = arrays["embeddings"]
    if not embeddings.size:
        raise UserError(f"{where} is empty, its embeddings are {embeddings.shape}")
    if embeddings.ndim != 2 or embeddings.dtype not in (np.float16, np.float32):
        raise UserError(
            f"{where}: embeddings should be (n, d) float16 or float32, got {embeddings.shape} {embeddings.dtype}"
            f"{'; save them as float32' if embeddings.ndim == 2 else ''}"
        )
    for name, array in arrays.items():
        if array.shape[:1] != embeddings.shape[:1]:
            raise UserError(f"{where}: {name} is {array.shape}, embeddings {embeddings.shape}")
    sigma = arrays.get("sigma")
    if sigma is not None and (sigma.ndim > 2 or sigma.dtype.kind != "f"):
        raise UserError(f"{where}: sigma should be (n,) or (n, d) floating point log variances")
    return EmbeddingSet(
        embeddings=torch.from_numpy(embeddings),  # on the array's own memory, which may be mapped copy-on-write
        ids=checked_ids(arrays["ids"], where) if "ids" in arrays else None,
        labels=checked_labels(arrays["labels"], where) if "labels" in arrays else None,
        log_variance=None if sigma is None else torch.from_numpy(sigma.astype(np.float32)),
        re_embedded=torch.from_numpy(arrays[RE_EMBEDDED]) if RE_EMBEDDED in arrays else None,
        calibration=torch.from_numpy(arrays[CALIBRATION]) if CALIBRATION in arrays else None,
    )


def checked_ids(ids: Array, where: str) -> Array:
    """Ids (n,) as int64, uint64 or texts.

    Raises:
        UserError: they are something else, or one occurs twice.
    """
    if ids.ndim != 1 or ids.dtype.kind not in "iuU":
        raise UserError(
            f"{where}: ids should be (n,) whole numbers or texts (ids.astype(str)), got {ids.shape} {ids.dtype}"
        )
    if ids.dtype.kind in "iu" and ids.dtype != np.uint64:
        ids = ids.astype(np.int64)
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        twice = values[counts > 1]
        raise UserError(f"{where}: {len(twice)} ids occur more than once, the first is {twice[0]}")
    return ids


def checked_labels(labels: Array, where: str) -> torch.Tensor:
    """Labels (n,) as int64.

    Raises:
        UserError: they are something else.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"{where}: labels should be (n,) whole numbers, got {labels.shape} {labels.dtype}")
    if labels.dtype == np.uint64 and labels.max(initial=0) > np.iinfo(np.int64).max:
        raise UserError(f"{where}: labels go up to {labels.max()}, beyond int64; number the classes from 0 on")
    return torch.from_numpy(labels.astype(np.int64))
