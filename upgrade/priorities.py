"""The order of the re-embedding: a priority for each row that is not re-embedded yet, the higher the sooner."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from data.items import Array
from data.sources.arrays import read_matrix
from data.sources.ids import scrambled, text_keys
from retrieval import EVEN_SPREAD, class_spread
from retrieval.orders.by_class import confidence
from retrieval.orders.evidence import Evidence
from upgrade.columns import values
from upgrade.config import UpgradeConfig
from upgrade.durable import lance_errors
from upgrade.table import Counts, Operation, Table
from utils.errors import UserError

SPREAD_ROWS = 100_000  # by which it is seen over which classes a gallery spreads
TRANSFORMED = "batch = 0"


@dataclass(frozen=True)
class Chosen:
    """An order, and what it looks at."""

    name: str  # confidence, sigma or random
    classifier: torch.Tensor | None  # (C, d)


def choose_order(config: UpgradeConfig, table: Table) -> Chosen:
    """The order that a config asks for; `auto` becomes one of the others, as in `retrieval.ORDERS`.

    Raises:
        UserError: the order needs what is not there.
    """
    name, state = config.order, table.state
    classifier = None
    if config.classifier is not None:
        classifier = read_matrix(config.classifier, "classifier", where="classifier", dim=state.dim)
    if name == "auto":
        name = "sigma" if state.has_sigma and "sigma" not in state.unhelpful else "random"
        known = classifier if "confidence" not in state.unhelpful else None
        if known is not None and (name == "random" or _spread(table, known) >= EVEN_SPREAD):
            name = "confidence"
        if state.unhelpful:
            print(f"order: {name}; no better than random when h was fitted: {', '.join(state.unhelpful)}")
    if name == "confidence" and classifier is None:
        raise UserError("order: confidence needs the new model's `classifier`")
    if name == "sigma" and not state.has_sigma:
        raise UserError(f"order: sigma needs a transformation with a log variance, unlike {state.transformation}")
    return Chosen(name, classifier if name == "confidence" else None)


def _spread(table: Table, classifier: torch.Tensor) -> float:
    """Over which share of the classes the transformed rows spread, by evenly drawn ones."""
    rows = table.dataset.count_rows()
    places = np.unique(np.linspace(0, rows - 1, min(rows, SPREAD_ROWS)).astype(np.int64))
    vectors = torch.from_numpy(values(table.dataset.take(places, columns=["embedding"])["embedding"]))
    return class_spread(vectors, classifier)


def write_priorities(table: Table, chosen: Chosen, seed: int) -> tuple[Table, Counts]:
    """Give every row that is not re-embedded its priority, by one commit -> the table, and the counts of its rows."""
    counts = table.counts()
    table.settle(counts)
    columns = {"confidence": "embedding", "sigma": "sigma", "random": "id"}
    updated, fields = [], []
    for fragment in table.dataset.get_fragments():
        with lance_errors(table.uri):
            scanner = fragment.scanner(columns=[columns[chosen.name]], filter=TRANSFORMED, with_row_id=True)
            source = _with_priority(scanner.to_batches(), chosen, seed)
            if source.num_rows:
                metadata, fields = fragment.update_columns(source)
                updated.append(metadata)
    if updated:
        operation = Operation.Update(updated_fragments=updated, fields_modified=fields, update_mode="rewrite_columns")
        table = table.commit(operation, "plan", counts, order=chosen.name)
        table.settle(counts)
    return table, counts


def _with_priority(batches: Iterator[pa.RecordBatch], chosen: Chosen, seed: int) -> pa.Table:
    rows, priorities = [np.empty(0, np.uint64)], [np.empty(0, np.float32)]
    for batch in batches:
        if batch.num_rows:
            rows.append(batch["_rowid"].to_numpy())
            priorities.append(_priority(values(batch.column(0)), chosen, seed))
    return pa.table({"_rowid": np.concatenate(rows), "priority": np.concatenate(priorities)})


def _priority(column: Array, chosen: Chosen, seed: int) -> Array:
    if chosen.name == "random":
        return random_bits(column, seed)
    if chosen.name == "sigma":
        return column
    h = torch.from_numpy(column)
    return confidence(Evidence(h, h, None, chosen.classifier, None, None, None, "l2", 0)).numpy()


def random_bits(ids: Array, seed: int) -> Array:
    """Ids (m,) -> (m,) float32 in [0, 1), a function of the id and the seed."""
    keys = text_keys(ids) if ids.dtype.kind == "U" else np.ascontiguousarray(ids).view(np.uint64)
    with np.errstate(over="ignore"):
        mixed = scrambled(keys + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15))
    return ((mixed >> np.uint64(40)).astype(np.float64) / 2**24).astype(np.float32)
