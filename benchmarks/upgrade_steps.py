"""The steps of an upgrade, timed in a process of their own, so that bench_upgrade.py can compare two checkouts.

    python benchmarks/upgrade_steps.py CODE FOLDER BATCHES

CODE is a checkout: this one, or one of a953105, whose galleries were folders of `.npy` with a journal. FOLDER holds
`old.npy`, `h.pt` and the batches `0.npz`, `1.npz`, ...; prints the seconds as JSON.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def steps_of_tables(config: Any, batches: list[str]) -> dict[str, Callable[[], Any]]:
    """The steps of this code."""
    import torch

    from upgrade.batches import apply_batch
    from upgrade.history import roll_back
    from upgrade.opening import open_table
    from upgrade.priorities import Chosen, write_priorities
    from upgrade.transform import transform_gallery

    def apply() -> None:
        for batch in batches:
            apply_batch(open_table(config.output), batch, insist=True)  # they are random

    return {
        "transform": lambda: transform_gallery(config, torch.device("cpu")),
        "plan": lambda: write_priorities(open_table(config.output), Chosen("sigma", None), seed=0),
        "apply": apply,
        "rollback": lambda: roll_back(open_table(config.output), str(len(batches) // 2)),
    }


def steps_of_folders(config: Any, batches: list[str]) -> dict[str, Callable[[], Any]]:
    """The steps of the code before."""
    from importlib import import_module

    from utils.distributed import World

    def of(name: str) -> Any:
        return import_module(f"upgrade.{name}")

    folder = Path(config.output)

    def opened() -> Any:
        return of("gallery").Gallery.open(folder)

    def plan() -> None:
        gallery = opened()
        of("order").write_order(folder / "order.npy", gallery, gallery.rows("state"), seed=0)

    def apply() -> None:
        for batch in batches:
            of("batches").apply_batch(opened(), batch)
            of("transactions").finish_pending(folder)

    def rollback() -> None:
        of("rollback").roll_back(opened(), len(batches) // 2, seed=0)
        of("transactions").finish_pending(folder)

    return {
        "transform": lambda: of("transform").transform_gallery(config, World()),
        "plan": plan,
        "apply": apply,
        "rollback": rollback,
    }


if __name__ == "__main__":
    code, folder, count = Path(sys.argv[1]).resolve(), Path(sys.argv[2]), int(sys.argv[3])
    sys.path.insert(0, str(code))
    from upgrade.config import UpgradeConfig

    files = {"gallery": "old.npy", "transformation_path": "h.pt", "output": "upgraded"}
    keys: dict[str, Any] = {name: str(folder / file) for name, file in files.items()}
    config = UpgradeConfig(step="transform", old_model="old", new_model="new", **keys)
    shutil.rmtree(folder / "upgraded", ignore_errors=True)
    kind = steps_of_tables if (code / "upgrade" / "table.py").exists() else steps_of_folders
    steps = kind(config, [str(folder / f"{number}.npz") for number in range(count)])
    print(json.dumps({name: seconds(step) for name, step in steps.items()}))
