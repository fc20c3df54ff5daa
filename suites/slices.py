"""A training in slices: machines that are lent for minutes, one after the other, train one model.

    python -m suites.slices --config configs/cifar100_backbone_old.yaml --folder slices [--minutes 9] [key=value ...]
    python -m suites.slices --config configs/cifar100_backbone_old.yaml --dry-run --rate 4000 [--images 25000]

A slice puts together what the one before has left in `folder`, trains with train_backbone.py until its time is over,
and leaves what the next one needs there: the checkpoint, and at the end the model, in parts of at most 16 MiB, 64 MiB
in all. For that weights are rounded to bf16, and the optimizer's momentum is dropped, once a slice (`utils/parts.py`).
The exit code is that of the training: 75 until the last slice, which ends with 0.

Without a slice, `--dry-run` says how many there will be, of which sizes, at a rate in images a second that is given.
"""

import argparse
import math
import signal
import subprocess
import sys
from pathlib import Path

from trainers.backbone.config import BackboneConfig
from utils.config import load_config
from utils.errors import UserError, run_script
from utils.launch import end_with_parent
from utils.runs import checkpoint_of

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 45.0  # until a training is under way, of the time of a slice
END_SECONDS = 45.0  # to finish a step, and to write and round what there is
MIB = 2**20


def main(argv: list[str] | None = None) -> None:
    """Run a slice, or say what slices there would be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="slices", help="what slices leave for each other (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=9.0, help="of a slice (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="only say how many slices there are, of which sizes")
    parser.add_argument("--rate", type=float, help="images a second of a training, for --dry-run")
    parser.add_argument("--images", type=int, help="in an epoch, for --dry-run; else those of the data root")
    options, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    config = load_config(BackboneConfig, argparse.ArgumentParser(), rest)
    if options.dry_run:
        if options.rate is None:
            raise UserError("--rate: is missing; benchmarks/gpu.py measures it")
        say_slices(config, options.minutes, options.rate, options.images)
        return
    if 60 * options.minutes <= START_SECONDS + END_SECONDS:
        raise UserError(f"--minutes: should be more than {(START_SECONDS + END_SECONDS) / 60:g}")
    command = [sys.executable, str(ROOT / "train_backbone.py"), *rest]
    sys.exit(run_slice(config, command, Path(options.folder), 60 * options.minutes - END_SECONDS))


def run_slice(config: BackboneConfig, command: list[str], folder: Path, seconds: float) -> int:
    """Go on with a training for so long, and leave in `folder` what the next slice needs -> its exit code."""
    from utils.parts import join, split, write_rounded

    checkpoint, model = checkpoint_of(config.output_model_path), Path(config.output_model_path)
    if join(folder, model):
        print(f"{model}: is trained")
        return 0
    join(folder, checkpoint)
    with subprocess.Popen(command, preexec_fn=end_with_parent) as training:
        try:
            code = training.wait(seconds)
        except subprocess.TimeoutExpired:
            training.send_signal(signal.SIGTERM)
            code = training.wait()
    left = model if code == 0 else checkpoint
    if not left.is_file():
        return code if code >= 0 else 128 - code
    write_rounded(left)
    folder.mkdir(parents=True, exist_ok=True)
    parts = split(left, folder)
    if code == 0:
        for path in folder.glob(f"{checkpoint.name}.*"):
            path.unlink()
    print(f"{left}: {sum(part.stat().st_size for part in parts) / MIB:.1f} MiB in {len(parts)} parts in {folder}")
    return code if code >= 0 else 128 - code


def say_slices(config: BackboneConfig, minutes: float, rate: float, images: int | None) -> None:
    """Print the slices of a training: how many, what each trains, and what it leaves."""
    from data.datasets import list_split
    from utils.parts import ALL_BYTES, PART_BYTES

    count = len(list_split(config.dataset_params, "training")) if images is None else images
    views = 2 if config.objective == "simclr" else 1
    batches = count // config.dataset_params.batch_size
    epoch = batches * config.dataset_params.batch_size * views / rate
    usable = 60 * minutes - START_SECONDS - END_SECONDS
    slices, size = math.ceil(config.epochs * epoch / usable), bytes_left(config)
    print(f"{config.output_model_path}: {config.epochs} epochs of {count:,} images, at {rate:,.0f} images/s")
    print(f"each leaves {size / MIB:.1f} of {ALL_BYTES / MIB:g} MiB, in {math.ceil(size / PART_BYTES)} parts")
    for number in range(slices):
        start, end = (min(config.epochs, which * usable / epoch) for which in (number, number + 1))
        spent = ((end - start) * epoch + START_SECONDS + END_SECONDS) / 60
        print(f"slice {number + 1} of {slices}: epochs {start:.1f} to {end:.1f}, {spent:.1f} minutes")


def bytes_left(config: BackboneConfig) -> int:
    """About the size of what a slice leaves: the weights, rounded."""
    import torch

    from data.datasets import resolve_image_size
    from models.backbones import backbone_arguments, build_backbone
    from trainers.backbone.simclr import ProjectedBackbone, ProjectionHead
    from utils.parts import rounded

    module: torch.nn.Module
    with torch.device("meta"):
        size = resolve_image_size(config.dataset_params)
        module = backbone = build_backbone(**backbone_arguments(config.arch_params, size))
        if config.objective == "simclr":
            simclr = config.simclr_params
            head = ProjectionHead(backbone.fc.in_channels, simclr.projection_hidden_dim, simclr.projection_dim)
            module = ProjectedBackbone(backbone, head)
    return sum(tensor.nbytes for tensor in rounded(dict(module.state_dict())).values())


if __name__ == "__main__":
    run_script(main)
