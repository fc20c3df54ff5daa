"""Upgrading a gallery on disk: how fast, in how much memory, and how far its predictions can be trusted.

    python benchmarks/bench_upgrade.py [--json FILE] [--rows N] [--quick]
        [--old FILE.npy --new FILE.npy --labels FILE.npy --transformation FILE.pt]

- `transform` against the plain way to do the same, taking turns in one run: the eager float32 module on a gallery that
  is in memory, in batches as large as ours, saved at the end. Ours reads, checks, hashes and writes chunks as always.
- The largest memory of `transform` and of `plan` as processes of their own, on `--rows` rows of 128 float16 and on a
  tenth of them. The transformation is a narrow one there: its width does not depend on the rows.
- How often the planned recall at 10, 30 and 50 % of the budget lies in its own 95 % band, over 20 samples of a gallery
  whose curve is computed in full: from the files, or on made-up clusters.
- With labels, the share of the random order's budget at which sigma order has come as far as random order half-way
  between the transformed and the re-embedded gallery. Sigma is the transformation's; made-up clusters have none.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figure, figure, report
from models.model_files import describe_transformation, load_model, save_model
from models.transformations import build_transformation
from retrieval import backfilling_order, cutoffs
from upgrade.config import UpgradeConfig
from upgrade.prediction import predict_map, predict_recall
from upgrade.transform import CPU_BATCH, transform_gallery
from utils.distributed import World

REPOSITORY = Path(__file__).resolve().parent.parent
DIM, K, SAMPLES, BUDGETS = 128, 10, 20, (0.1, 0.3, 0.5)
GIB = 2**30


@dataclass(frozen=True)
class Pairs:
    """A whole gallery before and after its re-embedding."""

    new: torch.Tensor  # (n, d)
    transformed: torch.Tensor  # (n, d)
    sigma: torch.Tensor  # (n,)
    labels: torch.Tensor | None  # (n,)


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
    values.flush()


def config_of(folder: Path, **keys: Any) -> UpgradeConfig:
    return UpgradeConfig(
        step="transform",
        gallery=str(folder / "old.npy"),
        transformation_path=str(folder / "h.pt"),
        output=str(folder / "upgraded"),
        old_model="old",
        new_model="new",
        **keys,
    )


def measure_speed(folder: Path, rows: int, turns: int, inner_dim: int) -> list[Figure]:
    """Rows a second of `transform`, and its ratio to the plain way."""
    write_gallery(folder / "old.npy", rows)
    write_transformation(folder / "h.pt", inner_dim)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def plain() -> None:
        model, old = load_model(folder / "h.pt").to(device), torch.from_numpy(np.load(folder / "old.npy"))
        with torch.inference_mode():
            outputs = [model(part.to(device).float()).embedding.half().cpu() for part in old.split(CPU_BATCH)]
        np.save(folder / "plain.npy", torch.cat(outputs).numpy())

    def ours(precision: Any) -> None:
        shutil.rmtree(folder / "upgraded", ignore_errors=True)
        transform_gallery(config_of(folder, precision=precision), World(device=device))

    ways = {"plain": plain, "ours": lambda: ours("auto"), "ours in float32": lambda: ours("fp32")}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds["plain"], seconds[name], strict=True)) for name in ways
    }
    rate = rows / statistics.median(seconds["ours"])
    return [
        figure("transform against the plain eager module", ratios["ours"], "x", at_least=3.0),
        figure("transform in float32 against it", ratios["ours in float32"], "x"),
        figure("transform", rate, "rows/s"),
    ]


def measure_memory(folder: Path, rows: int) -> list[Figure]:
    """The largest memory of transform and plan on `rows` rows and on a tenth of them."""
    pairs = np.random.default_rng(0).standard_normal((2000, DIM)).astype(np.float16)
    np.save(folder / "pairs.npy", pairs)
    write_transformation(folder / "h.pt", inner_dim=64)
    peaks: dict[str, list[float]] = {"transform": [], "plan": []}
    for count in (rows // 10, rows):
        write_gallery(folder / "old.npy", count)
        keys = {name: value for name, value in vars(config_of(folder)).items() if isinstance(value, str)}
        del keys["step"]
        config = "".join(f"{name}: {value}\n" for name, value in keys.items())
        pairs_file = folder / "pairs.npy"
        (folder / "upgrade.yaml").write_text(f"{config}plan_params: {{old: {pairs_file}, new: {pairs_file}}}\n")
        for step, found in peaks.items():
            found.append(peak_of(step, folder / "upgrade.yaml") / GIB)
        shutil.rmtree(folder / "upgraded", ignore_errors=True)
    figures = []
    for step, (small, large) in peaks.items():
        figures += [
            figure(f"{step}: largest memory, {rows:,} rows", large, "GiB", at_most=2e9 / GIB),
            figure(f"{step}: memory of that against a tenth of the rows", large / small, "x", at_most=1.1),
        ]
    return figures


def peak_of(step: str, config: Path) -> float:
    """The largest resident memory, in bytes, of a step in a process of its own.

    The process reads its own VmHWM at its end: the ru_maxrss of a child begins with the memory of its parent.
    """
    program = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    script = [str(REPOSITORY / "upgrade_gallery.py"), step, "--config", str(config)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", program, *script], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    return 1024.0 * int(done.stdout.strip().splitlines()[-1].split()[1])


def made_up_pairs(count: int) -> Pairs:
    """Clusters; h(old) is off by an error whose size sigma tells."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(50, (count,), generator=random)
    centres = torch.randn(50, 16, generator=random)
    new = centres[labels] + 0.7 * torch.randn(count, 16, generator=random)
    sigma = torch.randn(count, generator=random)
    error = 0.35 * torch.exp(0.5 * sigma)[:, None] * torch.randn(count, 16, generator=random)
    return Pairs(new, new + error, sigma, None)


def read_pairs(arguments: argparse.Namespace) -> Pairs:
    """The gallery in the files of the command line."""
    old, new = (torch.from_numpy(np.load(path)).float() for path in (arguments.old, arguments.new))
    with torch.inference_mode():
        output = load_model(arguments.transformation)(old)
    labels = None if arguments.labels is None else torch.from_numpy(np.load(arguments.labels).astype(np.int64))
    return Pairs(new, output.embedding.clone(), output.log_variance.mean(1).clone(), labels)


def recall_in_full(pairs: Pairs, order: torch.Tensor, k: int) -> list[float]:
    """Recall@k of what the new model retrieves at each of BUDGETS, by the whole gallery."""
    n = len(order)
    position = torch.empty_like(order)
    position[order] = torch.arange(n)
    masks = [position < round(budget * n) for budget in BUDGETS]
    found = torch.zeros(len(BUDGETS))
    for queries in torch.arange(n).split(256):
        to_new, to_transformed = (torch.cdist(pairs.new[queries], rows) for rows in (pairs.new, pairs.transformed))
        for distances in (to_new, to_transformed):
            distances[torch.arange(len(queries)), queries] = torch.inf
        right = torch.zeros(len(queries), n).scatter_(1, to_new.topk(k, largest=False).indices, 1 / k)
        for i, mask in enumerate(masks):
            nearest = torch.where(mask, to_new, to_transformed).topk(k, largest=False).indices
            found[i] += right.gather(1, nearest).sum()
    return (found / n).tolist()


def measure_bands(pairs: Pairs, sample: int, samples: int) -> list[Figure]:
    """Over samples of the gallery, how often a band holds what is found in full at the same share of depth."""
    n = len(pairs.new)
    order = backfilling_order("sigma", transformed=pairs.transformed, new=pairs.new, log_variance=pairs.sigma)
    truth = recall_in_full(pairs, order, round(K * n / sample))
    points = [0, *(round(budget * sample) for budget in BUDGETS), sample]
    inside, errors = [0] * len(BUDGETS), []
    for seed in range(samples):
        chosen = torch.from_numpy(np.random.default_rng(seed).permutation(n)[:sample])
        new, transformed, sigma = (values[chosen] for values in (pairs.new, pairs.transformed, pairs.sigma))
        own_order = backfilling_order("sigma", transformed=transformed, new=new, log_variance=sigma)
        shared: dict[str, Any] = {"cutoffs": points, "k": K, "confidence": 0.95, "seed": seed}
        curve = predict_recall(new, transformed, orders={"sigma": own_order}, **shared)["sigma"]
        for i, value in enumerate(truth):
            inside[i] += curve.low[i + 1] <= value <= curve.high[i + 1]
            errors.append(curve.values[i + 1] - value)
    bar = None if samples < SAMPLES else 0.9 * samples
    figures = [
        figure(f"recall at {100 * budget:.0f} % in its 95 % band, of {samples} samples", count, "", at_least=bar)
        for budget, count in zip(BUDGETS, inside, strict=True)
    ]
    return [*figures, figure("mean error of the planned recall", abs(statistics.mean(errors)), "")]


def measure_orders(pairs: Pairs) -> list[Figure]:
    """How much of the random order's budget sigma order needs to come half-way, in mAP."""
    n = len(pairs.new)
    orders = {
        name: backfilling_order(name, transformed=pairs.transformed, new=pairs.new, log_variance=pairs.sigma)
        for name in ("sigma", "random")
    }
    shared: dict[str, Any] = {"orders": orders, "cutoffs": cutoffs(n, 20), "confidence": 0.95, "seed": 0}
    assert pairs.labels is not None
    curves = predict_map(pairs.new, pairs.transformed, pairs.labels, **shared)
    half = statistics.mean([curves["random"].values[0], curves["random"].values[-1]])
    needed = {name: curve.reaching(half) for name, curve in curves.items()}
    at_half = curves["sigma"].reaching(curves["random"].at(0.5)[0])
    budget = needed["sigma"] / needed["random"]
    return [
        figure("sigma order: share of random's budget to half of the gain, mAP", budget, "", at_most=0.6),
        figure("sigma order: share of the gallery to random's mAP at 50 %", at_half, ""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows for the memory")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--old", metavar="FILE", help="old embeddings (n, d), .npy, not trained on")
    parser.add_argument("--new", metavar="FILE", help="new embeddings of the same items")
    parser.add_argument("--labels", metavar="FILE", help="their labels")
    parser.add_argument("--transformation", metavar="FILE", help="a transformation with uncertainty")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs; the figures mean nothing")
    arguments = parser.parse_args()
    quick = arguments.quick
    given = arguments.old is not None
    pairs = read_pairs(arguments) if given else made_up_pairs(400 if quick else 10_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = measure_speed(folder, 512 if quick else 2**18, 1 if quick else arguments.turns, 32 if quick else 2048)
        shutil.rmtree(folder / "upgraded", ignore_errors=True)
        figures += measure_memory(folder, 5_000 if quick else arguments.rows)
    figures += measure_bands(pairs, 100 if quick else 2000, 2 if quick else SAMPLES)
    if pairs.labels is not None:
        figures += measure_orders(pairs)
    report(figures, arguments.json)


if __name__ == "__main__":
    main()
