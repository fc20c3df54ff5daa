"""A sample of paired embeddings, divided: pairs to train on, and some that are held out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

import torch

from data.paired_embeddings import PairedEmbeddings
from trainers.transformation.classifiers import fit_classifier
from trainers.transformation.config import DiscriminativeLoss, FitConfig
from trainers.transformation.pairs import PairBatch, PairsInMemory, View
from utils.distributed import World
from utils.errors import UserError
from utils.seeds import Stream, generator

FEWEST_HELD_OUT = 10  # pairs, whatever the share
JUDGED = 2000  # held-out pairs, at most, among which retrieval is looked at


@dataclass(frozen=True)
class FittingData:
    """Paired embeddings on the device, divided."""

    training: PairsInMemory
    held_out: PairBatch | None
    dims: dict[str, int]  # of each role's embeddings
    classifier: torch.Tensor | None  # (C, d_new)
    normalised: bool
    wider: Mapping[str, tuple[int, bool]] = field(default_factory=dict)  # as of `PairedEmbeddings`

    @cached_property
    def judged(self) -> PairBatch | None:
        """Evenly drawn held-out pairs, as many as retrieval is looked at among."""
        if self.held_out is None or len(self.held_out.labels) <= JUDGED:
            return self.held_out
        rows = torch.linspace(0, len(self.held_out.labels) - 1, JUDGED).long().to(self.held_out.new.device)
        return PairBatch(*(None if part is None else part[rows] for part in self.held_out))  # type: ignore[arg-type]

    @property
    def has_labels(self) -> bool:
        """Whether the class of any item to train on is known."""
        return bool((self.training.views[0].labels >= 0).any())


def divide(paired: PairedEmbeddings, config: FitConfig, world: World) -> FittingData:
    """Hold a share of the pairs out, drawn by the seed; where there are labels alone, fit a classifier to the others.

    Raises:
        UserError: the processes do not divide the batch, or the views the rows.
    """
    return fitting_data(*split(paired, config), config, world)


def split(paired: PairedEmbeddings, config: FitConfig) -> tuple[PairedEmbeddings, PairedEmbeddings | None]:
    """The pairs to train on, and those that are held out, if any; a function of the number of pairs and the seed.

    Raises:
        UserError: the views do not divide the rows.
    """
    count, odd = divmod(len(paired), config.views)
    if odd:
        raise UserError(f"views: the {len(paired)} rows are not {config.views} views of each item")
    share = config.held_out or config.kept_from_training
    order = torch.randperm(count, generator=generator(config.seed, Stream.HELD_OUT))
    rest = max(FEWEST_HELD_OUT, round(share * count)) if share else 0
    is_held = _drawn_together(order, same_items(paired.embeddings["old"][:count]), rest)
    held, kept = is_held.nonzero()[:, 0], (~is_held).nonzero()[:, 0]
    kept = torch.cat([kept + view * count for view in range(config.views)])  # no view of what is held out
    return paired.rows(kept), paired.rows(held) if rest else None


def same_items(old: torch.Tensor) -> torch.Tensor:
    """The first item with the same old embedding as each of n, (n,): itself, but of duplicates."""
    first: dict[bytes, int] = {}
    rows = (old[place].numpy().tobytes() for place in range(len(old)))
    return torch.tensor(
        [first.setdefault(blake2b(row, digest_size=16).digest(), place) for place, row in enumerate(rows)]
    )


def _drawn_together(order: torch.Tensor, first: torch.Tensor, count: int) -> torch.Tensor:
    """Which of n items are held out, (n,) bool: the first `count` of an order, or fewer, as duplicates stay together.

    Of an item that occurs more often than is still wanted all are trained on; if none is left then, they are divided.
    """
    sizes = torch.bincount(first, minlength=len(order))
    chosen, wanted = torch.zeros(len(order), dtype=torch.bool), count
    for item in dict.fromkeys(first[order].tolist()):
        if int(sizes[item]) <= wanted:
            chosen[item] = True
            wanted -= int(sizes[item])
    if wanted == count:
        return torch.zeros(len(order), dtype=torch.bool).index_fill_(0, order[:count], True)
    return chosen[first]


def fitting_data(
    training: PairedEmbeddings, held_out: PairedEmbeddings | None, config: FitConfig, world: World
) -> FittingData:
    """Pairs that are divided already, on the device; where there are labels alone, a classifier is fitted to them.

    Raises:
        UserError: the processes do not divide the batch.
    """
    view = _view_of(training, world)
    return FittingData(
        PairsInMemory([view], batch_size=config.batch_size, world=world, seed=config.seed),
        None if held_out is None else batch_of(held_out, world),
        training.dims,
        given_or_fitted_classifier(training, held_out, config, world),
        training.normalised,
        training.wider,
    )


def given_or_fitted_classifier(
    training: PairedEmbeddings, held_out: PairedEmbeddings | None, config: FitConfig, world: World
) -> torch.Tensor | None:
    """The new model's classifier (C, d_new), given or fitted to the training pairs; None where these have no labels."""
    if training.classifier is not None or training.labels is None or not (training.labels >= 0).any():
        return training.classifier
    disc = config.objective_params.discriminative_loss or DiscriminativeLoss()
    parts = [part.labels for part in (training, held_out) if part is not None and part.labels is not None]
    classes = 1 + max(int(labels.max()) for labels in parts)
    new, labels = training.embeddings["new"].to(world.device), training.labels.to(world.device)
    return fit_classifier(new, labels, classes, disc.label_smoothing)


def batch_of(paired: PairedEmbeddings, world: World) -> PairBatch:
    """All pairs as one batch on the device, float32."""
    view = _view_of(paired, world)
    embeddings = {role: table.float() for role, table in view.embeddings.items()}
    return PairBatch(embeddings["old"], embeddings.get("side_info"), embeddings["new"], view.labels)


def _view_of(paired: PairedEmbeddings, world: World) -> View:
    labels = torch.full((len(paired),), -1) if paired.labels is None else paired.labels
    embeddings = {role: table.to(world.device) for role, table in paired.embeddings.items()}
    return View(embeddings, labels.to(world.device))
