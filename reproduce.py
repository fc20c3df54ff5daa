"""Reproduce a suite of experiments: data, models, transformations and evaluations -> the paper's tables and plots.

    python reproduce.py --config configs/suites/quickstart.yaml [overrides.seed=1 ...]
    python reproduce.py --config configs/suites/quickstart.yaml stages.backbone_old.overrides.epochs=2
    python reproduce.py --config configs/suites/cifar100_32px.yaml seeds=[0,1,2] [only=[backbone_old,backbone_new]]

    python reproduce.py --config configs/suites/quickstart.yaml demo=docs/demo.gif

Stages whose outputs are up to date are skipped; after an interruption the same command goes on. Paths in configs are
relative to the current directory, those of the scripts and configs themselves to this file's folder.
"""

import argparse
from pathlib import Path

from suites.config import SuiteConfig
from suites.methods import expand
from utils.config import load_config
from utils.errors import run_script
from utils.preemption import Preemption


def main() -> None:
    """Run the suite that the command line names."""
    parser = argparse.ArgumentParser(description="Reproduce a suite of experiments.")
    suite = load_config(SuiteConfig, parser, prepare=expand)

    from suites.reproduction import reproduce

    with Preemption(before="the suite was done"):
        reproduce(suite, root=Path(__file__).resolve().parent)


if __name__ == "__main__":
    run_script(main)
