"""Upgrading a gallery: how fast, in how much memory, and how far its predictions can be trusted.

    git worktree add --detach /tmp/before a953105
    python benchmarks/bench_upgrade.py [--before /tmp/before] [--rows N] [--json FILE] [--tiny]
        [--old FILE.npy --new FILE.npy --transformation FILE.pt]

- `transform` is three times as fast as the plain way: the eager float32 module on a gallery that is in memory, in
  batches as large as ours, saved at the end. Ours reads, checks, hashes and writes chunks as always.
- 50 batches of 2,000 into a million rows take a third of the time of the code before, which kept folders of `.npy`
  with a journal, and rolling back 25 of them a twentieth; `transform` has 0.8 of that code's speed. Both take turns.
- `transform` and `plan` stay within 1 GB, and take no more for `--rows` rows of 128 float16 than for a tenth of them:
  measured as processes of their own, with a narrow transformation, as its width does not depend on the rows.
- The planned recall at 10, 30 and 50 % of the budget lies in its own 95 % band: over 20 samples of a gallery whose
  curve is computed in full, from the files or on made-up clusters.
"""

import argparse
import json
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import DEVICE, GIB, Figure, cost_of, figure, options, ratios, run, take_turns
from models.model_files import describe_transformation, load_model, save_model
from models.transformations import build_transformation
from retrieval import backfilling_order
from retrieval.prediction import predict_recall
from upgrade.computing import CPU_BATCH
from upgrade.config import UpgradeConfig
from upgrade.transform import transform_gallery

HERE = Path(__file__).resolve().parent.parent
SCRIPT = HERE / "upgrade_gallery.py"
DIM, K, SAMPLES, BUDGETS = 128, 10, 20, (0.1, 0.3, 0.5)


class Pairs(NamedTuple):
    """A whole gallery before and after its re-embedding."""

    new: torch.Tensor  # (n, d)
    transformed: torch.Tensor  # (n, d)
    log_variance: torch.Tensor  # (n,)


def write_transformation(path: Path, inner_dim: int) -> None:
    dims = {"old_embedding_dim": DIM, "new_embedding_dim": DIM, "side_info_dim": DIM}
    arguments: dict[str, Any] = {"arch": "fastfill", **dims, "inner_dim": inner_dim}
    save_model(path, describe_transformation(build_transformation(**arguments), arguments), config={}, seed=0)


def write_gallery(path: Path, rows: int) -> None:
    """Random embeddings, written a part at a time."""
    values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, DIM))
    rng = np.random.default_rng(0)
    for start in range(0, rows, 2**16):
        part = values[start : start + 2**16]
        part[:] = rng.standard_normal(part.shape, np.float32)


def keys_of(folder: Path) -> dict[str, Any]:
    """The keys of an upgrade of `old.npy` by `h.pt`, both in `folder`."""
    files = {"gallery": "old.npy", "transformation_path": "h.pt", "output": "upgraded"}
    return {"old_model": "old", "new_model": "new"} | {key: str(folder / name) for key, name in files.items()}


def measure_speed(folder: Path, rows: int, turns: int, inner_dim: int) -> Iterator[Figure]:
    """Rows a second of `transform`, and its ratio to the plain way."""
    write_gallery(folder / "old.npy", rows)
    write_transformation(folder / "h.pt", inner_dim)

    def plain() -> None:
        model, old = load_model(folder / "h.pt").to(DEVICE), torch.from_numpy(np.load(folder / "old.npy"))
        with torch.inference_mode():
            outputs = [model(part.to(DEVICE).float()).embedding.half().cpu() for part in old.split(CPU_BATCH)]
        np.save(folder / "plain.npy", torch.cat(outputs).numpy())

    def ours() -> None:
        shutil.rmtree(folder / "upgraded", ignore_errors=True)
        transform_gallery(UpgradeConfig(step="transform", **keys_of(folder)), DEVICE)

    times = take_turns({"plain": plain, "ours": ours}, turns)
    yield figure("transform against the plain eager module", ratios(times["plain"], times["ours"]), "x", at_least=3.0)
    yield figure("transform", [rows / each for each in times["ours"]], "rows/s")


def measure_steps(folder: Path, before: Path | None, rows: int, batches: int, turns: int) -> Iterator[Figure]:
    """Seconds of each step of this code, and its ratio to that of another checkout, in turns."""
    write_gallery(folder / "old.npy", rows)
    write_transformation(folder / "h.pt", inner_dim=512)
    rng = np.random.default_rng(1)
    size = min(2000, rows // batches)
    for number, ids in enumerate(rng.permutation(rows)[: batches * size].reshape(batches, size)):
        new = rng.standard_normal((size, DIM), np.float32).astype(np.float16)
        np.savez(folder / f"{number}.npz", ids=ids, embeddings=new)
    times: dict[Path, dict[str, list[float]]] = {}
    for _ in range(turns):
        for code in [HERE] if before is None else [before, HERE]:
            command = [sys.executable, str(HERE / "benchmarks/upgrade_steps.py"), str(code), str(folder), str(batches)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            for step, taken in json.loads(done.stdout.splitlines()[-1]).items():
                times.setdefault(code, {}).setdefault(step, []).append(taken)
    names = {"apply": f"{batches} batches of {size:,}", "rollback": f"rolling back {batches // 2} of them"}
    bars = {"transform": 0.8, "apply": 3.0, "rollback": 20.0}
    for step, taken in times[HERE].items():
        name = f"{names.get(step, step)}, {rows:,} rows"
        yield figure(name, taken, "s")
        if before is not None:
            yield figure(
                f"{name}: the code before against it", ratios(times[before][step], taken), "x", at_least=bars.get(step)
            )


def measure_memory(folder: Path, sizes: list[int]) -> Iterator[Figure]:
    """The largest memory of transform and plan on galleries of so many rows."""
    pairs, config = folder / "pairs.npy", folder / "upgrade.yaml"
    np.save(pairs, np.random.default_rng(0).standard_normal((2000, DIM)).astype(np.float16))
    keys = "".join(f"{key}: {value}\n" for key, value in keys_of(folder).items())
    config.write_text(f"{keys}plan_params: {{old: {pairs}, new: {pairs}}}\n")
    write_transformation(folder / "h.pt", inner_dim=64)
    peaks: dict[str, list[float]] = {"transform": [], "plan": []}
    for count in sizes:
        write_gallery(folder / "old.npy", count)
        shutil.rmtree(folder / "upgraded", ignore_errors=True)
        for step, found in peaks.items():
            found.append(cost_of(partial(run_step, step), partial(Path, config)).whole)
    for step, found in peaks.items():
        yield figure(f"{step}: largest memory, {sizes[-1]:,} rows", found[-1], "GiB", at_most=1e9 / GIB)
        yield figure(f"{step}: that against {sizes[0]:,} rows", found[-1] / found[0], "x", at_most=1.1)


def run_step(step: str, config: Path) -> None:
    """A step of upgrade_gallery.py, in this process."""
    sys.argv = [str(SCRIPT), step, "--config", str(config)]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def made_up_pairs(count: int) -> Pairs:
    """Clusters; h(old) is off by an error whose size sigma tells."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(50, (count,), generator=random)
    centres = torch.randn(50, 16, generator=random)
    new = centres[labels] + 0.7 * torch.randn(count, 16, generator=random)
    sigma = torch.randn(count, generator=random)
    error = 0.35 * torch.exp(0.5 * sigma)[:, None] * torch.randn(count, 16, generator=random)
    return Pairs(new, new + error, sigma)


def read_pairs(old: str, new: str, transformation: str) -> Pairs:
    """The gallery in the files of the command line."""
    with torch.inference_mode():
        output = load_model(transformation)(torch.from_numpy(np.load(old)).float())
    return Pairs(torch.from_numpy(np.load(new)).float(), output.embedding.clone(), output.log_variance.mean(1).clone())


def recall_in_full(pairs: Pairs, order: torch.Tensor, k: int) -> list[float]:
    """Recall@k of what the new model retrieves at each of BUDGETS, by the whole gallery."""
    n = len(order)
    position = torch.empty_like(order)
    position[order] = torch.arange(n)
    found = torch.zeros(len(BUDGETS))
    for queries in torch.arange(n).split(256):
        to_new, to_transformed = (torch.cdist(pairs.new[queries], rows) for rows in (pairs.new, pairs.transformed))
        for distances in (to_new, to_transformed):
            distances[torch.arange(len(queries)), queries] = torch.inf
        right = torch.zeros(len(queries), n).scatter_(1, to_new.topk(k, largest=False).indices, 1 / k)
        for i, budget in enumerate(BUDGETS):
            mixed = torch.where(position < round(budget * n), to_new, to_transformed)
            found[i] += right.gather(1, mixed.topk(k, largest=False).indices).sum()
    return (found / n).tolist()


def measure_bands(pairs: Pairs, sample: int, samples: int) -> Iterator[Figure]:
    """Over samples of the gallery, how often a band holds what is found in full at the same share of depth."""
    n = len(pairs.new)
    truth = recall_in_full(pairs, backfilling_order("sigma", **pairs._asdict()), round(K * n / sample))
    points = [0, *(round(budget * sample) for budget in BUDGETS), sample]
    inside = [0] * len(BUDGETS)
    for seed in range(samples):
        chosen = torch.from_numpy(np.random.default_rng(seed).permutation(n)[:sample])
        part = Pairs(*(values[chosen] for values in pairs))
        orders = {"sigma": backfilling_order("sigma", **part._asdict())}
        curve = predict_recall(*part[:2], orders=orders, cutoffs=points, k=K, confidence=0.95, seed=seed)["sigma"]
        for i, value in enumerate(truth):
            inside[i] += curve.low[i + 1] <= value <= curve.high[i + 1]
    for budget, held in zip(BUDGETS, inside, strict=True):
        name = f"recall at {100 * budget:.0f} % in its 95 % band, of {samples} samples"
        yield figure(name, held, at_least=None if samples < SAMPLES else 0.9 * samples)


def measure(arguments: argparse.Namespace) -> Iterator[Figure]:
    tiny, files = arguments.tiny, (arguments.old, arguments.new, arguments.transformation)
    pairs = made_up_pairs(400 if tiny else 10_000) if arguments.old is None else read_pairs(*files)
    with tempfile.TemporaryDirectory() as name:
        yield from measure_speed(Path(name), 512 if tiny else 2**18, arguments.turns, 32 if tiny else 2048)
        before = None if arguments.before is None else Path(arguments.before)
        steps = (1000, 4, 1) if tiny else (1_000_000, 50, min(3, arguments.turns))
        yield from measure_steps(Path(name), before, *steps)
        yield from measure_memory(Path(name), [1_000] if tiny else [arguments.rows // 10, arguments.rows])
    yield from measure_bands(pairs, 100 if tiny else 2000, 2 if tiny else SAMPLES)


if __name__ == "__main__":
    parser = options(__doc__, turns=5)
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows for the memory")
    parser.add_argument("--before", metavar="FOLDER", help="a checkout of a953105, to compare with")
    parser.add_argument("--old", metavar="FILE", help="old embeddings (n, d), .npy, not trained on")
    parser.add_argument("--new", metavar="FILE", help="new embeddings of the same items")
    parser.add_argument("--transformation", metavar="FILE", help="a transformation with uncertainty")
    run(parser, measure)
