"""Put a data set onto disk in the layout that the configs name: training/CLASS/* and validation/CLASS/*.

    python prepare_dataset.py                                        # download CIFAR-100
    python prepare_dataset.py --source DIR_OR_ARCHIVE                # CIFAR-100 from a local copy
    python prepare_dataset.py --dataset imagenet --source DIR        # ILSVRC2012 from folders or the official tar files
    python prepare_dataset.py --dataset glyphs [--seed N]            # rendered here; synthetic
    python prepare_dataset.py --dataset imagenet --resize 256        # also a copy of smaller images, OUTPUT-256

ImageNet's official devkit, where it has to tell the classes of the validation images, is read by scipy (pip install
scipy). A folder that is prepared already is left alone; an interrupted run is never taken for a finished one.
"""

import argparse
from pathlib import Path

from utils.errors import UserError, run_script
from utils.paths import expanded

OUTPUTS = {
    "cifar100": "data_store/cifar-100-python",
    "imagenet": "data_store/imagenet-1.0.2/data/raw",
    "glyphs": "data_store/glyphs",
}
GLYPHS_PARAMETERS = {"seed": 0, "train_per_class": 150, "validation_per_class": 40}
LOCAL_SPLIT = "local, split not verified"


def main() -> None:
    """Prepare the data set that the command line names."""
    arguments = parse_arguments()

    from data import cifar100, glyphs, imagenet, resized
    from data.preparation import Recipe, prepare

    source: Path | None = arguments.source
    output: Path = arguments.output or Path(OUTPUTS[arguments.dataset])
    recipe = Recipe(arguments.dataset, str(source.resolve()) if source else None, split=LOCAL_SPLIT)
    if arguments.dataset == "cifar100":
        if source is None:
            recipe = Recipe("cifar100", split="official")
        done = prepare(output, recipe, lambda folder: cifar100.lay_out(folder, source))
    elif arguments.dataset == "imagenet":
        done = prepare(output, recipe, lambda folder: imagenet.lay_out(folder, source))
    else:
        parameters = {name: getattr(arguments, name) for name in GLYPHS_PARAMETERS}
        recipe = Recipe("glyphs", parameters=parameters, split="rendered")
        done = prepare(output, recipe, lambda folder: glyphs.lay_out(folder, **parameters))
    report(output, done, "prepared")
    if arguments.resize is not None:
        copy, done = resized.resize(output, arguments.resize)
        report(copy, done, "resized")


def report(folder: Path, done: bool, state: str) -> None:
    """Say what a folder holds."""
    from data.preparation import read_stamp

    counts = read_stamp(folder)["images"]
    images = f"{counts['training']:,} training and {counts['validation']:,} validation images"
    print(f"{folder}: {images}" if done else f"{folder}: already {state} ({images})")


def parse_arguments() -> argparse.Namespace:
    """The command line, with the flags that do not fit the data set refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=list(OUTPUTS), default="cifar100", help="default: %(default)s")
    parser.add_argument("--source", type=_path, metavar="DIR_OR_ARCHIVE", help="a local copy of the original files")
    parser.add_argument("--output", type=_path, metavar="DIR", help=f"default: {', '.join(OUTPUTS.values())}")
    parser.add_argument(
        "--resize", type=int, metavar="N", help="also write a copy, OUTPUT-N, larger images reduced to N pixels"
    )
    for name, default in GLYPHS_PARAMETERS.items():
        parser.add_argument(_flag(name), type=int, metavar="N", help=f"glyphs only; default: {default}")
    arguments = parser.parse_args()
    for name, default in GLYPHS_PARAMETERS.items():
        value, minimum = getattr(arguments, name), 0 if name == "seed" else 1
        if value is None:
            setattr(arguments, name, default)
        elif arguments.dataset != "glyphs":
            raise UserError(f"{_flag(name)}: is for --dataset glyphs only")
        elif value < minimum:
            raise UserError(f"{_flag(name)}: should be at least {minimum}, got {value}")
    if arguments.source is not None and arguments.dataset == "glyphs":
        raise UserError("--source: glyphs are rendered, they have no source")
    if arguments.resize is not None and arguments.resize < 1:
        raise UserError(f"--resize: should be at least 1, got {arguments.resize}")
    return arguments


def _path(text: str) -> Path:
    return Path(expanded(text, "command line"))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


if __name__ == "__main__":
    run_script(main)
