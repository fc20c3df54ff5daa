"""The FAISS index beside a gallery: the same vectors in an `IndexIDMap2`, with the coordinate of their calibration."""

from pathlib import Path

import numpy as np
import torch

from upgrade.faiss_index import load_faiss
from upgrade.gallery import RE_EMBEDDED, Gallery
from upgrade.manifest import Manifest
from upgrade.rows import Array, RowFile, Rows, parts_of

INDEX = "gallery.faiss"


def write_index(path: Path, gallery: Gallery, embeddings: Rows) -> None:
    """Write an `IndexIDMap2` of exact search over all rows of a gallery; float16 vectors are kept as such.

    Of length 1, they are searched by inner product, else by L2.

    Args:
        gallery: its ids and states are read.
        embeddings: (n, d), what it holds next.
    """
    faiss = load_faiss("faiss")
    manifest = gallery.manifest
    metric = faiss.METRIC_INNER_PRODUCT if manifest.normalised else faiss.METRIC_L2
    dim = served_dim(manifest)
    if embeddings.dtype == np.float16:
        flat = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, metric)
    else:
        flat = faiss.IndexFlat(dim, metric)
    index = faiss.IndexIDMap2(flat)
    ids, states = gallery.rows("ids"), gallery.rows("state")
    for part in parts_of(manifest.rows, manifest.chunk_rows):
        index.add_with_ids(served(embeddings.read(*part), states.read(*part), manifest), ids.read(*part))
    faiss.write_index(index, str(path))


def write_updated_index(path: Path, gallery: Gallery, rows: Array, embeddings: RowFile, states: RowFile) -> None:
    """Write the gallery's index to `path` with the vectors of `rows` (m,) changed.

    Args:
        embeddings: (m, d), their next ones.
        states: (n,), the next ones of all rows.
    """
    faiss = load_faiss("faiss")
    index, ids = faiss.read_index(str(gallery.folder / INDEX)), gallery.rows("ids")
    for start, stop in parts_of(len(rows)):
        here, first = np.unique(rows[start:stop], return_index=True)
        vectors = served(embeddings.read(start, stop)[first], states.take(here), gallery.manifest)
        keys = ids.take(here)
        index.remove_ids(keys)
        index.add_with_ids(vectors, keys)
    faiss.write_index(index, str(path))


def served_dim(manifest: Manifest) -> int:
    """The dimension of what an index holds: one more than that of the embeddings, where mixes are calibrated."""
    return manifest.dim + (manifest.calibrated() is not None)


def served(embeddings: Array, states: Array, manifest: Manifest) -> Array:
    """Rows of a gallery (m, d) and their states (m,) as an index holds them, float32: with the coordinate."""
    vectors, calibration = torch.from_numpy(embeddings).float(), manifest.calibrated()
    if calibration is not None:
        vectors = calibration.mixed(vectors, torch.from_numpy(states == RE_EMBEDDED))
    return vectors.numpy()
