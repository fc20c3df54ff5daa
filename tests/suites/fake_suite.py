"""A suite whose scripts are a few lines each: they write what the real ones would, and note how they were called."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from suites.config import SuiteConfig
from suites.planning import plan
from suites.stages import content_of, run_stage
from utils.config import build

SCRIPT = """
import json, pathlib, shutil, sys, time

name = pathlib.Path(__file__).stem
with open("calls.jsonl", "a") as log:
    log.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
if pathlib.Path(f"{name}.hangs").exists():
    time.sleep(60)
if pathlib.Path(f"{name}.fails").exists():
    sys.exit(int(pathlib.Path(f"{name}.fails").read_text()))
if "--config" in sys.argv:
    config = json.load(open(sys.argv[2]))
    for argument in sys.argv[3:]:
        key, _, text = argument.partition("=")
        *parents, last = key.split(".")
        values = config
        for parent in parents:
            values = values.setdefault(parent, {})
        values[last] = json.loads(text)
"""
WRITE_DATA = """
root = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
for split in ("training", "validation"):
    for label in range(3):
        folder = root / split / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(4):
            (folder / f"{i}.ppm").write_bytes(b"P6 8 8 255 " + bytes([80 * label, 60 * i, 0] * 64))
"""
WRITE_MODEL = """
for key in ("output_model_path", "output_transformation_path", "output_transformed_old_model_path"):
    if config.get(key):
        path = pathlib.Path(config[key])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([config["epochs"], config.get("seed")]))
"""
WRITE_RESULT = """
quality = float(config["gallery_model_path"].partition("quality")[2].removesuffix(".pt").partition("_")[0])
metrics = {"cmc_top1": quality, "cmc_top5": quality + 0.1, "map": quality - 0.1}
result = {"num_queries": 12, "num_gallery": 12, "distance_metric": "l2", "metrics": metrics, "backfilling": {}}
for order in config["eval_params"].get("backfilling_list", []):
    curve = {name: [value, value + 0.05, value + 0.1] for name, value in metrics.items()}
    auc = {name: value + 0.05 for name, value in metrics.items()}
    result["backfilling"][order] = {"cutoffs": [0, 6, 12], "fractions": [0.0, 0.5, 1.0], **curve, "auc": auc}
output = pathlib.Path(config["output"])
output.parent.mkdir(parents=True, exist_ok=True)
output.write_text(json.dumps(result))
folder = config["eval_params"].get("embeddings_output_dir")
if folder:
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    for name in ("query.npz", "gallery.npz"):
        shutil.copy("embeddings.npz", pathlib.Path(folder) / name)
"""
SCRIPTS = {
    "prepare_dataset.py": WRITE_DATA,
    "train_backbone.py": WRITE_MODEL,
    "train_transformation.py": WRITE_MODEL,
    "eval.py": WRITE_RESULT,
}
DATASET = {"name": "glyphs", "data_root": "data_store/fake", "batch_size": 4}
OPTIMIZER = {"algorithm": "adam", "lr": 0.001}
OLD, H_OLD, NEW = "checkpoints/quality0.2.pt", "checkpoints/quality0.4.pt", "checkpoints/quality0.6.pt"


def backbone(path: str) -> dict[str, Any]:
    arch = {"arch": "ResNet18", "num_classes": 3}
    run = {"epochs": 3, "output_model_path": path}
    return {"arch_params": arch, "optimizer_params": OPTIMIZER, "dataset_params": DATASET, **run}


def evaluation(query: str, gallery: str, **eval_params: Any) -> dict[str, Any]:
    models = {"query_model_path": query, "gallery_model_path": gallery}
    return {**models, "dataset_params": DATASET, "eval_params": eval_params}


CONFIGS = {
    "old": backbone(OLD),
    "new": backbone(NEW),
    "h": {
        "old_model_path": OLD,
        "new_model_path": NEW,
        "arch_params": {"arch": "fct"},
        "optimizer_params": OPTIMIZER,
        "dataset_params": DATASET,
        "epochs": 2,
        "output_transformation_path": "checkpoints/h.pt",
        "output_transformed_old_model_path": H_OLD,
    },
    "eval_old_old": evaluation(OLD, OLD),
    "eval_new_new": evaluation(NEW, NEW),
    "eval_new_old": evaluation(NEW, H_OLD, backfilling=1, backfilling_list=["random", "distance"]),
}


def suite_values(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The suite's YAML as nested values; `changes` by dotted keys, in which a number counts the items of a list."""
    scripts = {"old": "train_backbone.py", "new": "train_backbone.py", "h": "train_transformation.py"}
    stages = {name: {"script": scripts.get(name, "eval.py"), "config": f"configs/{name}.yaml"} for name in CONFIGS}
    data = {"script": "prepare_dataset.py", "arguments": ["--dataset", "fake"], "output": "data_store/fake"}
    values = {
        "name": "fake",
        "title": "A fake suite",
        "output_dir": "results/fake",
        "stages": {"data": data, **stages},
        "old_old": "eval_old_old",
        "new_new": "eval_new_new",
        "examples": "eval_new_old",
        "tables": {
            "no_backfilling": [
                {"case": "old/old", "stage": "eval_old_old", "published": [34.2, 60.6, 16.5]},
                {"case": "new/new", "stage": "eval_new_new"},
                {"case": "FCT new/old", "side_info": True, "published": [50.2, 73.7, 32.2]},
            ],
            "backfilling": [
                {"case": "FCT new/old", "side_info": False, "order": "random", "stage": "eval_new_old"},
                {"case": "FCT new/old", "side_info": True, "order": "random", "published": [64.7, 82.4, 42.6]},
            ],
        },
    }
    values = json.loads(json.dumps(values))
    for dotted, value in (changes or {}).items():
        *parents, last = dotted.split(".")
        part = values
        for name in parents:
            part = part[int(name)] if isinstance(part, list) else part.setdefault(name, {})
        part[last] = value
    return values


def write_suite(root: Path) -> None:
    """Write the scripts, their configs and the suite below `root`."""
    (root / "configs").mkdir(exist_ok=True)
    for name, ending in SCRIPTS.items():
        (root / name).write_text(SCRIPT + ending)
    for name, config in CONFIGS.items():
        write_config(root, name, config)
    write_config(root, "suite", suite_values())
    rows = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    np.savez(root / "embeddings.npz", embeddings=rows, ids=np.arange(12), labels=np.arange(12) // 4)


def write_config(root: Path, name: str, values: dict[str, Any]) -> None:
    (root / "configs" / f"{name}.yaml").write_text(json.dumps(values))  # JSON is YAML, and the scripts start sooner


def read_suite(values: dict[str, Any]) -> SuiteConfig:
    return build(SuiteConfig, values, source="suite.yaml")


def run(root: Path, changes: dict[str, Any] | None = None) -> list[str]:
    """Run the suite's stages in turn, as a process of its own does.

    Returns:
        The labels of the stages whose script was called; `LABEL goes on` where that may go on from a checkpoint.
    """
    log, ran = root / "calls.jsonl", []
    content_of.cache_clear()
    for stage in plan(read_suite(suite_values(changes)), root):
        log.unlink(missing_ok=True)
        run_stage(stage, heading=stage.label)
        if log.exists():
            goes_on = stage.can_resume and "resume=false" not in json.loads(log.read_text())
            ran.append(f"{stage.label} goes on" if goes_on else stage.label)
    return ran
