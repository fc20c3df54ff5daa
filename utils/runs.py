"""A training run on disk: beside its output stand the resolved config, a JSONL log and, until it ends, a checkpoint."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from utils.config import to_yaml
from utils.config_files import check_outputs, paths
from utils.data_roots import Contents, difference
from utils.distributed import World
from utils.errors import UserError
from utils.event_files import EventFiles
from utils.files import read_torch, remove_leftovers, sha256_of, write_text, write_torch
from utils.paths import without_suffix
from utils.precision import Resolved, resolve_precision

# Keys that do not change the weights that a run ends with.
NEUTRAL_KEYS = {"resume", "num_workers", "verbose", "export_formats", "embeddings_dir", "processes", "tensorboard"}
FORMER_NAMES = {"interval_level": "confidence"}  # of keys, by which finished runs know them


class Run:
    """The files of one training run, named after its output: `old.pt` has `old.config.yaml`, `old.log.jsonl`, ...

    Only the main process writes. A checkpoint belongs to one config, to the content of its input files, and to the
    images that the run began with. It also holds what the machine decided, `precision` among it, so that a run that
    goes on elsewhere computes as it began.

    Args:
        images: what the run reads (on the main process); None where it reads no images.

    Raises:
        UserError: TensorBoard is asked for and not installed, or there is a checkpoint that is damaged, or belongs to
            another config, other input files or images.
    """

    def __init__(self, output: str, config: Any, world: World, images: Contents | None = None) -> None:
        stem = without_suffix(output)
        self.config_path = stem.with_name(f"{stem.name}.config.yaml")
        self.log_path = stem.with_name(f"{stem.name}.log.jsonl")
        self.checkpoint_path = checkpoint_of(output)
        self.world, self.config, self.images = world, config, images
        self.identity = fingerprint(config)
        events = EventFiles(stem.with_name(f"{stem.name}.tensorboard")) if config.tensorboard else None
        self._events = events if world.is_main else None
        found = self._read_checkpoint()  # before anything is written: the run may not be ours to go on with
        self._found = None if found is None else (found["state"], found["history"])
        self.precision: Resolved = resolve_precision(config.precision, world.device)
        self._decided: dict[str, int] = {}
        if found is not None:
            if world.is_main and found["precision"] != self.precision:
                print(f"going on in {found['precision']}, as the run began")
            self.precision, self._decided = found["precision"], found.get("decided", {})
        if world.is_main:
            check_outputs(config)
            outputs = [Path(path) for _, path in paths(config, "output")]
            for path in (self.config_path, self.log_path, self.checkpoint_path, *outputs):
                remove_leftovers(path)
            write_text(self.config_path, to_yaml(config))

    def decide(self, key: str, choose: Callable[[], int]) -> int:
        """The value of a config key that says `auto`: as the run began with it, else what `choose` finds here."""
        if key not in self._decided:
            self._decided[key] = choose()
        return self._decided[key]

    def save(self, state: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """Write the checkpoint, then the log of the finished epochs: one JSON line each."""
        if self.world.is_main:
            belongs = {"identity": self.identity, "images": self.images}
            decided = {"precision": self.precision, "decided": self._decided}
            write_torch(self.checkpoint_path, {**belongs, **decided, "history": history, "state": state})
        self.log(history)

    def log(self, history: list[dict[str, Any]]) -> None:
        """Write the log: a JSON line for each record, and event files where the config asks for them."""
        if self.world.is_main:
            write_text(self.log_path, "".join(json.dumps(record) + "\n" for record in history))
        if self._events is not None:
            self._events.write(history)

    def restore(self) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """The last checkpoint's state and history, or None where there is nothing to go on from."""
        found, self._found = self._found, None  # so that the trainer alone holds on to it
        return found

    def _read_checkpoint(self) -> dict[str, Any] | None:
        path = self.checkpoint_path
        if not self.config.resume and self.world.is_main:
            path.unlink(missing_ok=True)  # or a run that is killed in its first epoch would leave the old one behind
        if not self.config.resume or not path.exists():
            return None
        advice = "delete it, or pass resume=False to start again"
        try:
            checkpoint = read_torch(path)
        except ValueError:
            raise UserError(f"{path}: the checkpoint cannot be read; {advice}") from None
        if not isinstance(checkpoint, dict) or checkpoint.get("identity") != self.identity:
            raise UserError(f"{path}: the checkpoint belongs to another config or other input files; {advice}")
        before = checkpoint.get("images")  # earlier versions' checkpoints have none
        if before is None or self.images is None:
            return checkpoint
        read = {split: of_split for split, of_split in before.items() if split in self.images}
        if changed := difference(read, self.images):
            root = self.config.dataset_params.data_root
            raise UserError(
                f"{path}: {root} does not hold the images that the run began with: {changed};\n"
                "put those back, or pass resume=False to start again"
            )
        return checkpoint

    def finish(self) -> None:
        """Remove the checkpoint: the output is written."""
        if self.world.is_main:
            self.checkpoint_path.unlink(missing_ok=True)
        if self._events is not None:
            self._events.close()


def checkpoint_of(output: str) -> Path:
    """Where a run that writes `output` keeps its checkpoint."""
    stem = without_suffix(output)
    return stem.with_name(f"{stem.name}.checkpoint.pt")


def fingerprint(config: Any) -> str:
    """A hash of everything in a config that its result depends on: values, and the content of its input files."""
    inputs = {name: sha256_of(path) for name, path in paths(config, "input") if path and Path(path).exists()}
    content = json.dumps([decisive_values(config), inputs], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def decisive_values(config: Any) -> Any:
    """The nested values of a config that its result depends on: less neutral keys, and less keys at their default.

    So a key that a later version adds, with a default that does what was done before, leaves finished runs valid; for
    the same reason a default never changes, and a key that is renamed counts by its former name. A section whose
    default is none counts even if all in it is default.
    """
    if not is_dataclass(config):
        return config
    values = {}
    for field in fields(config):
        value = decisive_values(getattr(config, field.name))
        # MISSING, which equals no value, where there is no default
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name not in NEUTRAL_KEYS and value != decisive_values(default):
            values[FORMER_NAMES.get(field.name, field.name)] = value
    return values
