"""Put a data set onto disk in the layout that the configs name: training/CLASS/* and validation/CLASS/*.

    python prepare_dataset.py                                        # download CIFAR-100
    python prepare_dataset.py --source DIR_OR_ARCHIVE                # CIFAR-100 from a local copy
    python prepare_dataset.py --dataset imagenet --source DIR        # ILSVRC2012 from folders or the official tar files
    python prepare_dataset.py --dataset glyphs [--seed N]            # rendered here; synthetic

A folder that is prepared already is left alone; an interrupted run is never taken for a finished one.
"""

import argparse
from pathlib import Path

from data import cifar100, glyphs, imagenet
from data.preparation import Recipe, prepare, read_stamp
from utils.errors import UserError, run_script

OUTPUTS = {
    "cifar100": "data_store/cifar-100-python",
    "imagenet": "data_store/imagenet-1.0.2/data/raw",
    "glyphs": "data_store/glyphs",
}
GLYPHS_PARAMETERS = {"seed": 0, "train_per_class": 200, "validation_per_class": 50}


def main() -> None:
    """Prepare the data set that the command line names."""
    arguments = parse_arguments()
    source: Path | None = arguments.source
    output: Path = arguments.output or Path(OUTPUTS[arguments.dataset])
    recipe = Recipe(arguments.dataset, str(source.resolve()) if source else None)
    if arguments.dataset == "cifar100":
        done = prepare(output, recipe, lambda folder: cifar100.lay_out(folder, source))
    elif arguments.dataset == "imagenet":
        done = prepare(output, recipe, lambda folder: imagenet.lay_out(folder, source))
    else:
        parameters = {name: getattr(arguments, name) for name in GLYPHS_PARAMETERS}
        recipe = Recipe("glyphs", parameters=parameters)
        done = prepare(output, recipe, lambda folder: glyphs.lay_out(folder, **parameters))
    counts = read_stamp(output)["images"]
    images = f"{counts['training']:,} training and {counts['validation']:,} validation images"
    print(f"{output}: {images}" if done else f"{output}: already prepared ({images})")


def parse_arguments() -> argparse.Namespace:
    """The command line, with the flags that do not fit the data set refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=list(OUTPUTS), default="cifar100", help="default: %(default)s")
    parser.add_argument("--source", type=Path, metavar="DIR_OR_ARCHIVE", help="a local copy of the original files")
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"default: {', '.join(OUTPUTS.values())}")
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
    return arguments


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


if __name__ == "__main__":
    run_script(main)
