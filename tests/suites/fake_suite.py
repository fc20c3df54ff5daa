"""A suite whose scripts are a few lines each: they write what the real ones would, and note how they were called."""

import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from suites.config import SuiteConfig
from suites.planning import plan
from suites.stages import content_of, run_stage
from utils.config import build, parse_yaml


def evaluation(quality: float, orders: Iterable[str]) -> dict[str, Any]:
    """What eval.py would find in a gallery of that quality."""
    metrics = {"cmc_top1": quality, "cmc_top5": quality + 0.1, "map": quality - 0.1}
    curves = {name: [value, value + 0.05, value + 0.1] for name, value in metrics.items()}
    auc = {name: value + 0.05 for name, value in metrics.items()}
    points = {"cutoffs": [0, 6, 12], "fractions": [0.0, 0.5, 1.0], **curves, "auc": auc}
    backfilling = {order: dict(points) for order in orders}
    return {"num_queries": 12, "distance_metric": "l2", "metrics": metrics, "backfilling": backfilling}


IMPORTS = """
import itertools, json, sys, time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
"""
RUN = """
name = Path(__file__).stem
with open("calls.jsonl", "a") as log:
    log.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
if Path(f"{name}.hangs").exists():
    time.sleep(60)
if Path(f"{name}.fails").exists():
    sys.exit(int(Path(f"{name}.fails").read_text()))
config, written = {}, {}  # path -> content
if "--config" in sys.argv:
    config = json.load(open(sys.argv[2]))
    for argument in sys.argv[3:]:
        key, _, text = argument.partition("=")
        *parents, last = key.split(".")
        values = config
        for parent in parents:
            values = values.setdefault(parent, {})
        values[last] = json.loads(text)
if name == "prepare_dataset":
    root = sys.argv[sys.argv.index("--output") + 1]
    for split, label, i in itertools.product(("training", "validation"), "012", "0123"):
        written[f"{root}/{split}/{label}/{i}.ppm"] = f"P6 8 8 255 {64 * (label + i + '0')}".encode()
elif name == "eval":
    quality = float(config["gallery_model_path"].partition("quality")[2].removesuffix(".pt").partition("_")[0])
    result = evaluation(quality, config["eval_params"].get("backfilling_list", []))
    written[config["output"]] = json.dumps(result).encode()
    if folder := config["eval_params"].get("embeddings_output_dir"):
        written |= dict.fromkeys((f"{folder}/query.npz", f"{folder}/gallery.npz"), Path("embeddings.npz").read_bytes())
else:
    for key in ("output_model_path", "output_transformation_path", "output_transformed_old_model_path"):
        if key in config:
            written[config[key]] = json.dumps([config["epochs"], config.get("seed")]).encode()
for path, content in written.items():
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)
"""
SCRIPT = IMPORTS + inspect.getsource(evaluation) + RUN  # of each, by its name
SCRIPTS = ("prepare_dataset.py", "train_backbone.py", "train_transformation.py", "eval.py")
OLD, H_OLD, NEW = "checkpoints/quality0.2.pt", "checkpoints/quality0.4.pt", "checkpoints/quality0.6.pt"
DATASET = "dataset_params: {name: glyphs, data_root: data_store/fake, batch_size: 4}"
OPTIMIZER = "optimizer_params: {algorithm: adam, lr: 0.001}"
CONFIGS = parse_yaml(f"""
backbone: {{arch_params: {{arch: ResNet18, num_classes: 3}}, {OPTIMIZER}, {DATASET}, epochs: 3, output_model_path: ''}}
h:
  {OPTIMIZER}
  {DATASET}
  old_model_path: {OLD}
  new_model_path: {NEW}
  arch_params: {{arch: fct}}
  epochs: 2
  output_transformation_path: checkpoints/h.pt
  output_transformed_old_model_path: {H_OLD}
eval: {{query_model_path: {NEW}, gallery_model_path: {NEW}, {DATASET}, eval_params: {{}}}}
""")
SUITE = f"""
name: fake
title: A fake suite
output_dir: results/fake
stages:
  data: {{script: prepare_dataset.py, arguments: [--dataset, fake], output: data_store/fake}}
  old: {{script: train_backbone.py, config: configs/backbone.yaml, overrides: {{output_model_path: {OLD}}}}}
  new: {{script: train_backbone.py, config: configs/backbone.yaml, overrides: {{output_model_path: {NEW}}}}}
  h: {{script: train_transformation.py, config: configs/h.yaml}}
  eval_old_old:
    script: eval.py
    config: configs/eval.yaml
    overrides: {{query_model_path: {OLD}, gallery_model_path: {OLD}}}
  eval_new_new: {{script: eval.py, config: configs/eval.yaml}}
  eval_new_old:
    script: eval.py
    config: configs/eval.yaml
    overrides:
      gallery_model_path: {H_OLD}
      eval_params: {{backfilling: 1, backfilling_list: [random, distance]}}
old_old: eval_old_old
new_new: eval_new_new
examples: eval_new_old
tables:
  no_backfilling:
  - {{case: old/old, stage: eval_old_old, published: [34.2, 60.6, 16.5]}}
  - {{case: new/new, stage: eval_new_new}}
  - {{case: FCT new/old, side_info: true, published: [50.2, 73.7, 32.2]}}
  backfilling:
  - {{case: FCT new/old, side_info: false, order: random, stage: eval_new_old}}
  - {{case: FCT new/old, side_info: true, order: random, published: [64.7, 82.4, 42.6]}}
"""
EVERY_STAGE = ["data", "old", "new", "h", "eval_old_old", "eval_new_new", "eval_new_old"]


def read_suite(changes: dict[str, Any] | None = None) -> SuiteConfig:
    """The suite with `changes` by dotted keys, in which a number counts the items of a list."""
    values = parse_yaml(SUITE)
    for dotted, value in (changes or {}).items():
        *parents, last = dotted.split(".")
        part = values
        for name in parents:
            part = part[int(name)] if isinstance(part, list) else part.setdefault(name, {})
        part[last] = value
    return build(SuiteConfig, values, source="suite.yaml")


def write_suite(root: Path) -> None:
    """Write the scripts, their configs and the suite below `root`."""
    (root / "configs").mkdir(exist_ok=True)
    for name in SCRIPTS:
        (root / name).write_text(SCRIPT)
    for name, config in (CONFIGS | {"suite": parse_yaml(SUITE)}).items():
        write_config(root, name, config)
    rows = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    np.savez(root / "embeddings.npz", embeddings=rows, ids=np.arange(12), labels=np.arange(12) // 4)


def write_config(root: Path, name: str, values: dict[str, Any]) -> None:
    (root / "configs" / f"{name}.yaml").write_text(json.dumps(values))  # JSON is YAML, and the scripts start sooner


def run(root: Path, changes: dict[str, Any] | None = None) -> list[str]:
    """Run the suite's stages in turn, as a process of its own does.

    Returns:
        The labels of the stages whose script was called; `LABEL goes on` where that may go on from a checkpoint.
    """
    log, ran = root / "calls.jsonl", []
    content_of.cache_clear()
    for stage in plan(read_suite(changes), root):
        log.unlink(missing_ok=True)
        run_stage(stage, heading=stage.label)
        if log.exists():
            goes_on = stage.can_resume and "resume=false" not in json.loads(log.read_text())
            ran.append(f"{stage.label} goes on" if goes_on else stage.label)
    return ran
