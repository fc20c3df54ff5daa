"""Fits to pairs of embeddings: how long `auto` takes, and what it picks.

    python benchmarks/bench_fits.py [--json FILE] [--tiny] [--only WORD] [--pairs FOLDER]

Claims: on two CPU cores 20,000 pairs of 1,536 and 1,024 dimensions take under 10 minutes and 6 GiB, and 1,000 pairs of
768 dimensions under a minute; what is picked retrieves at least as well as ridge; ridge and Procrustes take 100,000
pairs of 3,072 dimensions in 6 GiB. Measured: `fit_embeddings.py` on made-up sets (linear, clustered, curved) and, where
FOLDER holds them, on the real ones `cifar100` and `text`: for each method its time and how it retrieves with held-out
pairs; how what is picked retrieves with other items (mAP with labels, else recall@10), against ridge; and what sigma
order brings there beyond random order.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import GIB, Figure, figure, options, run
from models.model_files import load_model, read_description
from retrieval import order_gains, retrieval_quality

ROOT = Path(__file__).resolve().parent.parent
OTHERS = 2000  # items that no fit sees
Array = np.ndarray[Any, Any]


class Pairs(NamedTuple):
    """Old and new embeddings of n items, the last `OTHERS` of which are not fitted to."""

    old: Array  # (n, d_old)
    new: Array  # (n, d_new)
    labels: Array | None  # (n,)


def linear(n: int, d_old: int, d_new: int) -> Pairs:
    """Both are linear in the same 256 hidden numbers, with noise."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(n, 256)).astype(np.float32)
    old, new = (_noisy(hidden @ _matrix(rng, 256, d), rng, noise) for d, noise in ((d_old, 0.5), (d_new, 0.2)))
    return Pairs(old, new, None)


def clustered(n: int, d_old: int, d_new: int) -> Pairs:
    """Items of 200 classes, with heavy tails about their class, in spaces of length 1; the old model blurs classes."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 200, n)
    hidden = rng.normal(size=(200, 64))[labels] + 0.5 * rng.standard_t(3, size=(n, 64))
    seen = hidden + rng.uniform(0.2, 1.2, size=(n, 1)) * rng.normal(size=(n, 64))
    old, new = (np.tanh(values @ _matrix(rng, 64, d)) for values, d in ((seen, d_old), (hidden, d_new)))
    lengths = (np.linalg.norm(values, axis=1, keepdims=True) for values in (old, new))
    old, new = (values / length for values, length in zip((old, new), lengths, strict=True))
    return Pairs(old.astype(np.float32), new.astype(np.float32), labels)


def curved(n: int, d_old: int, d_new: int) -> Pairs:
    """The old embedding is a curved function of what the new one holds, more noisy for some; norms differ much."""
    rng = np.random.default_rng(2)
    hidden = rng.normal(size=(n, 48)) * np.exp(0.7 * rng.normal(size=(n, 1)))
    new = np.maximum(hidden @ _matrix(rng, 48, d_new), 0)
    noisy = hidden + rng.uniform(0, 1, size=(n, 1)) ** 2 * rng.normal(size=(n, 48))
    old = np.maximum(noisy @ _matrix(rng, 48, 256), 0) ** 1.5 @ _matrix(rng, 256, d_old)
    return Pairs(old.astype(np.float32), _noisy(new, rng, 0.1), None)


def _matrix(rng: np.random.Generator, rows: int, columns: int) -> Array:
    return rng.normal(size=(rows, columns)) / rows**0.5


def _noisy(values: Array, rng: np.random.Generator, noise: float) -> Array:
    return (values + noise * rng.normal(size=values.shape)).astype(np.float32)


def cifar100(folder: Path, n: int) -> Pairs:
    """Real embeddings of images with their classes, 128 and 128 dimensions."""
    rng = np.random.default_rng(3)
    rows = {"train": rng.permutation(50_000)[:n], "test": rng.permutation(10_000)[:OTHERS]}
    files = [np.load(folder / f"cifar100_{name}.npz") for name in ("old", "new", "labels")]
    old, new, labels = (np.concatenate([file[part][chosen] for part, chosen in rows.items()]) for file in files)
    return Pairs(old, new, labels.astype(np.int64))


def text(folder: Path, n: int) -> Pairs:
    """Real embeddings of news of length 1, 128 and 256 dimensions; their few classes are left out."""
    rows = {"train": np.random.default_rng(3).permutation(5063)[:n], "test": np.arange(OTHERS)}
    old, new = (
        np.concatenate(
            [np.load(folder / f"text_{role}_{part}.npz")["embeddings"][chosen] for part, chosen in rows.items()]
        )
        for role in ("old", "new")
    )
    return Pairs(old, new, None)


class Fit(NamedTuple):
    """What a fit came to."""

    seconds: float
    cpu_seconds: float  # of all cores
    memory: float  # GiB at most
    output: str
    path: Path


def write_pairs(pairs: Pairs, folder: Path) -> None:
    """All but the other items, as folders `old` and `new`."""
    for role, embeddings in (("old", pairs.old), ("new", pairs.new)):
        (folder / role).mkdir()
        np.save(folder / role / "embeddings.npy", embeddings[:-OTHERS])
        if pairs.labels is not None:
            np.save(folder / role / "labels.npy", pairs.labels[:-OTHERS])


def write_large(folder: Path, n: int, d: int) -> None:
    """As `linear`, of float16, a part at a time."""
    rng, part = np.random.default_rng(4), 2**12
    tables = []
    for role in ("old", "new"):
        (folder / role).mkdir()
        file, matrix = folder / role / "embeddings.npy", _matrix(rng, 256, d).astype(np.float32)
        tables.append((np.lib.format.open_memmap(file, "w+", np.float16, (n, d)), matrix))
    for start in range(0, n, part):
        hidden = rng.normal(size=(min(part, n - start), 256)).astype(np.float32)
        for table, matrix in tables:
            table[start : start + part] = hidden @ matrix + 0.3 * rng.standard_normal((len(hidden), d), np.float32)
    for table, _ in tables:
        table.flush()


def fit(folder: Path, method: str) -> Fit:
    """Run fit_embeddings.py on the pairs in a folder."""
    path = folder / method / "h.pt"
    files = [f"old={folder / 'old'}", f"new={folder / 'new'}", f"output={path}", f"method={method}"]
    command = [sys.executable, "fit_embeddings.py", "--config", "configs/fit_embeddings.yaml", *files]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    used = usage.ru_utime + usage.ru_stime
    return Fit(time.perf_counter() - started, used, usage.ru_maxrss * 1024 / GIB, output, path)


def judged(pairs: Pairs, path: Path) -> tuple[str, float, float]:
    """The measure, and how a transformation does with the other items; what its sigma order brings beyond random."""
    old, new = (torch.from_numpy(values[-OTHERS:]).float() for values in (pairs.old, pairs.new))
    labels = None if pairs.labels is None else torch.from_numpy(pairs.labels[-OTHERS:])
    with torch.inference_mode():
        h, log_variance = load_model(path)(old)
    measure, quality = retrieval_quality(h, new, labels)
    return measure, quality, order_gains(h, new, labels, {"sigma": log_variance.mean(1)})["sigma"]["gain"]


def measure(arguments: argparse.Namespace) -> Iterator[Figure]:
    sets: dict[str, tuple[Callable[[], Pairs], float]] = {}
    if arguments.tiny:
        sets["linear, 200"] = (partial(linear, 200 + OTHERS, 24, 16), 600.0)
    else:
        for make in (linear, clustered, curved):
            sets[f"{make.__name__}, 20000"] = (partial(make, 20_000 + OTHERS, 1536, 1024), 600.0)
            sets[f"{make.__name__}, 1000"] = (partial(make, 1000 + OTHERS, 768, 768), 60.0)
    if arguments.pairs is not None:
        for of_files, sizes in ((cifar100, (1000, 5000, 20_000)), (text, (1000, 5000))):
            for size in sizes:
                sets[f"{of_files.__name__}, {size}"] = (partial(of_files, Path(arguments.pairs), size), 600.0)
    for name, (pairs, most) in sets.items():
        if re.search(arguments.only, name) is not None:
            yield from _measured(name, pairs(), most)
    rows, dim, methods = (2000, 32, ("ridge",)) if arguments.tiny else (100_000, 3072, ("ridge", "procrustes"))
    if re.search(arguments.only, name := f"closed forms, {rows}") is not None:
        yield from _closed_forms(name, rows, dim, methods)


def _measured(name: str, pairs: Pairs, most: float) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(pairs, Path(folder))
        auto, ridge = (fit(Path(folder), method) for method in ("auto", "ridge"))
        description = read_description(auto.path, where="output")
        picked, tried = description["arguments"]["arch"], description["provenance"]["embeddings"]["held_out"]
        (_, quality, gain), (of, by_ridge, _) = (judged(pairs, one.path) for one in (auto, ridge))
        yield figure(f"{name}: auto", auto.seconds, "s", at_most=most)
        yield figure(f"{name}: auto, processor time", auto.cpu_seconds, "s")
        yield figure(f"{name}: memory", auto.memory, "GiB", at_most=6)
        for method, found in tried.items():
            score, reached = next(iter(found.items()))
            yield figure(f"{name}: {method}, {score} of held-out pairs", 100 * reached, "%")
            yield figure(f"{name}: {method}, time", found["seconds"], "s")
        yield figure(f"{name}: ridge, {of} of other items", 100 * by_ridge, "%")
        yield figure(f"{name}: {picked}, picked, {of} of other items", 100 * quality, "%", at_least=100 * by_ridge)
        of_sigma = description["orders"]["sigma"]
        used = "used" if of_sigma["beats_random"] else "not used"
        yield figure(f"{name}: sigma order ({used}) beyond random", 100 * gain, "points")


def _closed_forms(name: str, rows: int, dim: int, methods: Sequence[str]) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        write_large(Path(folder), rows, dim)
        for method in methods:
            fitted = fit(Path(folder), method)
            yield figure(f"{name}: {method}", fitted.seconds, "s")
            yield figure(f"{name}: {method}, memory", fitted.memory, "GiB", at_most=6)


if __name__ == "__main__":
    parser = options(__doc__, turns=1)
    parser.add_argument("--pairs", metavar="FOLDER", help="real pairs: cifar100_old.npz, text_old_train.npz and so on")
    parser.add_argument("--only", metavar="WORD", default="", help="of what the names of the sets hold; default: all")
    run(parser, measure)
