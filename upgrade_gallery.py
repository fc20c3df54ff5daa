"""Upgrade a gallery of old embeddings to a new model: transform it, then re-embed a part at a time.

    python upgrade_gallery.py transform --config upgrade.yaml [key=value ...]    # into a table of the new space
    python upgrade_gallery.py plan      --config upgrade.yaml                    # the order, and what it will cost
    python upgrade_gallery.py apply     --config upgrade.yaml --batch FILE       # new embeddings with their ids
    python upgrade_gallery.py status    --config upgrade.yaml [--verify]
    python upgrade_gallery.py rollback  --config upgrade.yaml [--to transformed | BATCHES | TAG | old]
    python upgrade_gallery.py push      --config upgrade.yaml [--dry-run]        # to the store that the gallery is in
    python upgrade_gallery.py cutover   --config upgrade.yaml [--undo]
    python upgrade_gallery.py export    --config upgrade.yaml [--to FILE] [--pairs NAME] [--next FILE.npy [--limit N]]

docs/upgrade_your_gallery.md tells the whole story.
"""

import argparse
from typing import get_args

from upgrade.config import Step, UpgradeConfig
from utils.config import load_config
from utils.errors import run_script
from utils.extras import load_extra


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=get_args(Step), help="what to do")
    parser.add_argument("--batch", metavar="FILE", help="apply: new embeddings with their ids")
    parser.add_argument(
        "--insist", action="store_const", const=True, help="apply: a batch that looks like another model's"
    )
    parser.add_argument("--to", help="rollback: transformed, a number of batches, a tag, or old; export: the file")
    parser.add_argument("--verify", action="store_const", const=True, help="status: check every row")
    parser.add_argument("--dry-run", action="store_const", const=True, help="push: only say what would be done")
    parser.add_argument("--undo", action="store_const", const=True, help="cutover: the way back")
    parser.add_argument(
        "--pairs", metavar="NAME", help="export: pairs of old and new embeddings, for fit_embeddings.py"
    )
    parser.add_argument("--next", metavar="FILE", help="export: ids to re-embed next, .npy")
    parser.add_argument("--limit", type=int, help="export: so many of them at most")
    config = load_config(UpgradeConfig, parser)
    for module in ("pyarrow", "lance"):
        load_extra(module, where="upgrade_gallery.py")
    from upgrade.steps import STEPS  # needs both

    STEPS[config.step](config)


if __name__ == "__main__":
    run_script(main)
