"""Embeddings of items, and the files that hold them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.items import Array, Items, matching_rows
from data.sources.arrays import write_named_arrays
from data.sources.embeddings import COLUMNS, OF_UPGRADES, open_embeddings
from data.sources.ids import checked_ids, checked_numbers
from data.sources.rows import whole


@dataclass(frozen=True)
class EmbeddingSet:
    """Embeddings of n items.

    `ids` are what the items are called, `labels` are their classes (a negative one: none), `log_variance` is a
    transformation's uncertainty, `cameras` are what took the images, `groups` what else these are of.
    """

    embeddings: torch.Tensor  # (n, d) float16 or float32
    ids: Array | None = None  # (n,) int64, uint64 or texts; None where nothing but their place tells the items apart
    labels: torch.Tensor | None = None  # (n,) int64
    log_variance: torch.Tensor | None = None  # (n,) or (n, d)
    # (n,) int64, of the two sets of an evaluation: items of the same number are the same item.
    numbers: torch.Tensor | None = None
    cameras: torch.Tensor | None = None  # (n,) int64
    groups: Array | None = None  # (n,) texts
    new: torch.Tensor | None = None  # (n, d), of a gallery: the new model's, where the queries are other items
    group_numbers: torch.Tensor | None = None  # (n,) int64, of the queries of an evaluation: a negative one is of none
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
        ids, groups = (None if of is None else of[items.cpu().numpy()] for of in (self.ids, self.groups))
        return replace(taken, ids=ids, groups=groups)

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
    tensors = {
        "embeddings": items.embeddings,
        "labels": items.labels,
        "cameras": items.cameras,
        "sigma": items.log_variance,
    }
    arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items() if tensor is not None}
    write_named_arrays(path, arrays if items.ids is None else {**arrays, "ids": items.ids})


def read_embeddings(path: str | Path, *, where: str) -> EmbeddingSet:
    """Read embeddings of any form as a whole; those of an `.npy`, alone or in a folder, stay mapped.

    Args:
        where: the config key that names them, for error messages.

    Raises:
        UserError: as `open_embeddings`, or ids that occur twice.
    """
    source = open_embeddings(path, where=where)
    where = f"{where}: {path}"
    columns = {name: getattr(source, name) for name in (*COLUMNS, *OF_UPGRADES)}
    arrays = {name: whole(rows) for name, rows in columns.items() if rows is not None}
    return EmbeddingSet(
        embeddings=torch.from_numpy(whole(source.vectors)),  # on memory that may be mapped copy-on-write
        ids=checked_ids(arrays["ids"], where) if "ids" in arrays else None,
        labels=torch.from_numpy(checked_numbers("labels", arrays["labels"], where)) if "labels" in arrays else None,
        cameras=torch.from_numpy(checked_numbers("cameras", arrays["cameras"], where)) if "cameras" in arrays else None,
        log_variance=torch.from_numpy(arrays["sigma"].astype(np.float32)) if "sigma" in arrays else None,
        re_embedded=torch.from_numpy(arrays["re_embedded"]) if "re_embedded" in arrays else None,
        calibration=torch.from_numpy(arrays["calibration"]) if "calibration" in arrays else None,
    )
